"""The decoder class for optimum. Importing it needs optimum: `fxslim.loaders` says so where it is missing."""

from __future__ import annotations

from typing import Any

import torch
from optimum.onnxruntime import ORTModelForCausalLM

from fxslim.decoders import PAST, PRESENT
from fxslim.export import refuse_dim_names
from fxslim.generation import decoder_of_session

__all__ = ["SlimModelForCausalLM"]


class SlimModelForCausalLM(ORTModelForCausalLM):  # type: ignore[misc]
    """optimum's `ORTModelForCausalLM` with the shapes of the caches read off the session: each layer may have heads and
    widths of its own, keys other widths than values. Loads, generates and saves as its parent does, with and without
    IO binding.

    Raises:
        InputError: the file is no decoder with a cache for every layer, or a dimension has a name that optimum, which
            evaluates names, should not see.
    """

    def __init__(self, *, config: Any = None, session: Any = None, **options: Any) -> None:
        refuse_dim_names(session)
        decoder = decoder_of_session(session)
        super().__init__(config=config, session=session, **options)
        self._sizes = {name: (cache.shape[1], cache.shape[3]) for name, cache in decoder.empty.items()}

    def forward(
        self, input_ids: Any, attention_mask: Any = None, past_key_values: Any = None, position_ids: Any = None,
        use_cache: bool | None = None, **others: Any,
    ) -> Any:  # fmt: skip
        """Logits [batch, new, vocabulary], and the longer caches as pairs of keys and values of each layer."""
        if past_key_values is None:
            past_key_values = self._nothing(len(input_ids))
        return super().forward(input_ids, attention_mask, past_key_values, position_ids, use_cache, **others)

    def _nothing(self, rows: int) -> tuple[tuple[torch.Tensor, ...], ...]:
        """Caches without a position: for each layer its keys and values [rows, heads, 0, width]."""
        sizes = [self._sizes[name] for name in self.key_value_input_names]
        empty = [torch.zeros(rows, heads, 0, width, dtype=self.dtype, device=self.device) for heads, width in sizes]
        return tuple(tuple(empty[i : i + 2]) for i in range(0, len(empty), 2))

    def _prepare_io_binding(self, *args: Any, known_output_shapes: Any = None, **options: Any) -> Any:
        """As the parent does it, with the sizes of each cache in place of one for all."""
        known = {
            name: self._grown(name, shape) if name.startswith(PRESENT) else shape
            for name, shape in (known_output_shapes or {}).items()
        }
        return super()._prepare_io_binding(*args, known_output_shapes=known, **options)

    def _grown(self, output: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        heads, width = self._sizes[PAST + output.removeprefix(PRESENT)]
        return shape[0], heads, shape[2], width
