"""Greedy generation with a key-value cache: a program in PyTorch, or its ONNX file in plain ONNX Runtime.

The shapes of the caches are read off the program or the session, layer by layer: neither a configuration nor equal
widths are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxslim.decoders import PAST, PRESENT
from fxslim.graph.axes.analysis import find_caches
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program

__all__ = ["Decoder", "decoder_of_program", "decoder_of_session", "generate_greedily"]

_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Decoder:
    """Something that takes ids and caches, and returns logits and longer caches, all by name."""

    inputs: tuple[str, ...]
    caches: Mapping[str, str]  # cache input -> the output that replaces it
    empty: Mapping[str, Tensor]  # every cache without a position and without a row: [0, heads, 0, width]
    run: Run

    def __post_init__(self) -> None:
        if "input_ids" not in self.inputs or not self.caches:
            raise InputError(
                f"generation needs `input_ids` and caches, the inputs are {', '.join(self.inputs)}",
                remedy="make the model with --task text-generation",
            )
        known = {"input_ids", "attention_mask", "position_ids", *self.caches}
        if other := [name for name in self.inputs if name not in known]:
            raise InputError(f"the input {other[0]!r} does not follow from ids", remedy="call the model yourself")


def decoder_of_program(program: Program) -> Decoder:
    """The decoder that evaluates a program in its own precision.

    Raises:
        InputError: the program is no decoder with caches.
    """
    evaluator, names = Evaluator(program), program.outside_names
    outside = dict(zip(program.input_names, names, strict=True))
    empty = {}
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta["val"]
        sizes = [size if isinstance(size, int) else 0 for size in value.shape]
        empty[outside[node.name]] = torch.zeros(sizes, dtype=value.dtype)

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(program.output_names, evaluator.run([given[name] for name in names]), strict=True))

    caches = {outside[name]: output for name, output in find_caches(program).items()}
    return Decoder(names, caches, {name: empty[name] for name in caches}, run)


def decoder_of_session(session: Any) -> Decoder:
    """The decoder that runs an `onnxruntime.InferenceSession` of a file with optimum's names.

    Raises:
        InputError: the session has no caches, or keeps them in a type that NumPy does not have.
    """
    inputs = session.get_inputs()
    caches = {i.name: PRESENT + i.name.removeprefix(PAST) for i in inputs if i.name.startswith(f"{PAST}.")}
    empty = {}
    for value in inputs:
        if value.name in caches:
            if value.type not in _TYPES:
                raise InputError(f"the cache {value.name!r} is a {value.type}", remedy=f"use {', '.join(_TYPES)}")
            sizes = [size if isinstance(size, int) else 0 for size in value.shape]
            empty[value.name] = torch.zeros(sizes, dtype=_TYPES[value.type])
    names = [output.name for output in session.get_outputs()]

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        values = session.run(names, {name: value.numpy() for name, value in given.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return Decoder(tuple(i.name for i in inputs), caches, empty, run)


def generate_greedily(
    decoder: Decoder,
    input_ids: Tensor,
    new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    end: int | None = None,
) -> Tensor:
    """The ids [rows, length + new] after `input_ids` [rows, length]: each time the likeliest next one.

    Rows that are shorter are padded on the left, where `attention_mask` [rows, length] is zero. A row that has come to
    the id `end` goes on with it; where all have, generation ends.

    Raises:
        InputError: there is no id to begin with, or the mask has another shape.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if input_ids.dim() != 2 or not input_ids.numel() or mask.shape != input_ids.shape:
        raise InputError(
            f"ids {list(input_ids.shape)} and a mask {list(mask.shape)}", remedy="give both as [rows, length]"
        )
    rows, ids = len(input_ids), input_ids
    caches = {name: value.new_zeros(rows, *value.shape[1:]) for name, value in decoder.empty.items()}
    ended = torch.zeros(rows, dtype=torch.bool)
    new = input_ids
    for _ in range(new_tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        given = {"input_ids": new, "attention_mask": mask, "position_ids": positions, **caches}
        found = decoder.run({name: given[name].contiguous() for name in decoder.inputs})
        caches = {name: found[output] for name, output in decoder.caches.items()}
        new = found["logits"][:, -1:].argmax(-1)
        if end is not None:
            new = new.masked_fill(ended[:, None], end)
            ended |= new[:, 0] == end
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
        if bool(ended.all()):
            break
    return ids
