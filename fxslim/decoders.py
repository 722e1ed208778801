"""Decoders with their key-value cache as inputs and outputs: prefill and a step of decoding in one graph.

Inputs, outputs and dynamic dimensions are called as optimum calls them: `past_key_values.0.key` goes in,
`present.0.key` comes back, with `past_sequence_length + sequence_length` positions. What a cache looks like (its
layers, heads and widths) is read off the model's own: it is run once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxslim.graph.errors import InputError
from fxslim.graph.placeholder import Placeholder, has_placeholders

__all__ = ["PAST", "PRESENT", "CachedDecoder", "DecoderInputs", "decoder_inputs"]

PAST, PRESENT = "past_key_values", "present"
_BATCH, _NEW, _PAST = "batch_size", "sequence_length", "past_sequence_length"
_ROWS, _LENGTH, _PAST_LENGTH = 2, 24, 9  # of the example inputs; different, so that no two sizes are mistaken


class CachedDecoder(nn.Module):
    """A language model called with its cache as tensors. It has the model's own parts, so that weights keep their
    names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self._whole = (model,)  # in a tuple: it is no part of this module
        self.train(model.training)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None,
        past_key_values: Sequence[Mapping[str, Tensor]] = (),
    ) -> dict[str, Tensor]:  # fmt: skip
        """The logits [batch, new, vocabulary], and every layer's keys and values, old and new:
        [batch, heads, past + new, width]."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if position_ids is not None:
            given["position_ids"] = position_ids
        logits, layers = _call(self._whole[0], given, past_key_values)
        found = {"logits": logits}
        for number, layer in enumerate(layers):
            found[f"{PRESENT}.{number}.key"], found[f"{PRESENT}.{number}.value"] = layer.keys, layer.values
        return found


@dataclass(frozen=True)
class DecoderInputs:
    """How a decoder is captured: see `fxslim.graph.capture.capture`."""

    kwargs: dict[str, Any]
    dynamic_shapes: dict[str, Any]
    caches: dict[str, str]
    names: dict[str, str]


def decoder_inputs(model: nn.Module, vocabulary: int, limit: int | None, where: str) -> DecoderInputs:
    """Example inputs for `CachedDecoder(model)`: two rows of ids below `vocabulary`, of which the first have gone
    through the model already and are in its caches (random numbers where its weights are on disk). Rows are no longer
    than `limit` altogether.

    Raises:
        InputError: the model is no decoder, or keeps something else than keys and values of all positions.
    """
    _refuse_others(model, where)
    past, new = _lengths(limit, where)
    ids = torch.randint(0, vocabulary, (_ROWS, past + new), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(past + new).expand(_ROWS, -1)
    caches = _first_caches(model, _given(model, ids[:, :past], ids[:, :past], positions[:, :past]), where)
    kwargs: dict[str, Any] = {**_given(model, ids[:, past:], ids, positions[:, past:]), PAST: caches}
    places = [(i, kind) for i in range(len(caches)) for kind in ("key", "value")]
    grown = {0: _BATCH, 2: _PAST}
    new_ones, all_of_them = {0: _BATCH, 1: _NEW}, {0: _BATCH, 1: f"{_PAST} + {_NEW}"}
    shapes: dict[str, Any] = {name: all_of_them if name == "attention_mask" else new_ones for name in kwargs}
    shapes[PAST] = [{"key": grown, "value": grown} for _ in caches]
    return DecoderInputs(
        kwargs, shapes, {f"{PAST}_{i}_{kind}": f"{PRESENT}.{i}.{kind}" for i, kind in places},
        {f"{PAST}_{i}_{kind}": f"{PAST}.{i}.{kind}" for i, kind in places},
    )  # fmt: skip


def _given(model: nn.Module, new: Tensor, seen: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """What goes in beside the caches: new ids, a mask over all that are `seen`, positions if the model takes them."""
    given = {"input_ids": new, "attention_mask": torch.ones_like(seen), "position_ids": positions}
    return {name: value for name, value in given.items() if name in inspect.signature(model.forward).parameters}


def _call(
    model: nn.Module, given: Mapping[str, Tensor], caches: Sequence[Mapping[str, Tensor]],
    state: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, list[Any]]:  # fmt: skip
    """The logits, and the layers of a cache that held `caches` and has grown; of a model with other weights where there
    is a `state`."""
    from transformers import DynamicCache  # optional, and seconds to import

    cache = DynamicCache()
    for number, layer in enumerate(caches):
        cache.update(layer["key"], layer["value"], number)
    arguments = {**given, str(_cache_argument(model)): cache, "use_cache": True}
    output = model(**arguments) if state is None else torch.func.functional_call(model, dict(state), (), arguments)
    return output.logits, list(cache.layers)  # the model writes into the cache that it is given


def _cache_argument(model: nn.Module) -> str | None:
    """What the model calls its cache: transformers has renamed it."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in ("past_key_values", "cache") if name in taken), None)


def _refuse_others(model: nn.Module, where: str) -> None:
    taken = inspect.signature(model.forward).parameters
    missing = [name for name in ("input_ids", "attention_mask", "use_cache") if name not in taken]
    missing += [] if _cache_argument(model) else [PAST]
    if missing or "decoder_input_ids" in taken:
        said = f"its forward pass has no argument {missing[0]!r}" if missing else "it is an encoder with a decoder"
        raise _refusal(model, said, where)


def _refusal(model: nn.Module, said: str, where: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot be called with a key-value cache: {said}",
        at=where,
        rule="text-generation is for decoders that keep keys and values of all positions",
        remedy="leave --task out, or write a factory of (module, args, kwargs, dynamic_shapes)",
    )


def _lengths(limit: int | None, where: str) -> tuple[int, int]:
    """Positions in the caches and new ones."""
    whole = min(_PAST_LENGTH + _LENGTH, limit or _PAST_LENGTH + _LENGTH)
    past = min(_PAST_LENGTH, whole // 3)
    if past < 2:
        raise InputError(f"the model takes {whole} positions: too few for a cache and new ones", at=where)
    return past, whole - past


def _first_caches(model: nn.Module, given: Mapping[str, Tensor], where: str) -> list[dict[str, Tensor]]:
    """What the model keeps of its first inputs: keys and values [rows, heads, length, width] of every layer."""
    try:
        with torch.no_grad():
            layers = _drawn_layers(model, given) if has_placeholders(model) else _call(model, given, [])[1]
    except Exception as error:  # the model's own code
        reason = str(error).strip().splitlines() or [""]
        raise _refusal(model, f"{type(error).__name__}: {reason[0][:300]}", where) from error
    rows, length = given["input_ids"].shape
    found = []
    for number, layer in enumerate(layers):
        kept = {"key": getattr(layer, "keys", None), "value": getattr(layer, "values", None)}
        found.append({kind: tensor for kind, tensor in kept.items() if _holds_all(tensor, rows, length)})
        if len(found[-1]) < len(kept):
            raise _refusal(model, f"layer {number} of its cache is a {type(layer).__name__}", where)
    if not found:
        raise _refusal(model, "it returns none", where)
    return found


@dataclass(frozen=True)
class _Layer:
    keys: Any
    values: Any


def _drawn_layers(model: nn.Module, given: Mapping[str, Tensor]) -> list[_Layer]:
    """Layers of the shapes that the model's own have, holding random numbers: its weights are on disk, and running it
    would read them all."""
    generator = torch.Generator().manual_seed(0)

    def drawn(kept: Any) -> Any:
        whole = isinstance(kept, Tensor) and kept.is_floating_point()
        return torch.randn(kept.shape, generator=generator).to(kept.dtype) if whole else kept

    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        state = {n: torch.empty(t.shape, dtype=t.dtype) for n, t in tensors.items() if isinstance(t, Placeholder)}
        _, layers = _call(model, given, [], state)
    return [_Layer(drawn(getattr(x, "keys", None)), drawn(getattr(x, "values", None))) for x in layers]


def _holds_all(tensor: Any, rows: int, length: int) -> TypeGuard[Tensor]:
    """Whether it is [rows, heads, length, width]: something of every position."""
    return isinstance(tensor, Tensor) and tensor.dim() == 4 and (tensor.shape[0], tensor.shape[2]) == (rows, length)
