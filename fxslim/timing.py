"""What is timed: inputs of chosen sizes for a model and the slim one of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor

from fxslim.data import Batches
from fxslim.export.samples import cache_dims, draw_inputs, example_sizes
from fxslim.graph.caches import refitted_caches
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program

_NUMBER = re.compile(r"[0-9]{1,9}")

__all__ = ["parse_sizes", "sized_inputs", "timed_inputs"]


def parse_sizes(text: str | None) -> dict[str, int] | None:
    """Sizes by the names of dynamic dimensions: `batch_size=1,sequence_length=256`. None for none.

    Raises:
        InputError: something is no name=number, or less than 0.
    """
    if text is None:
        return None
    found: dict[str, int] = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        name, _, number = part.rpartition("=")
        if not name or not _NUMBER.fullmatch(number.strip()) or name.strip() in found:
            raise InputError(f"{part!r} is no size of a dimension", remedy="--sizes batch_size=1,sequence_length=256")
        found[name.strip()] = int(number)
    return found


def sized_inputs(program: Program, sizes: Mapping[str, int], seed: int = 0) -> tuple[Tensor, ...]:
    """Flat inputs of these sizes, drawn like the example's; dimensions that are not named are as there.

    Raises:
        InputError: the program has no such dynamic dimension, or none at all.
    """
    known = example_sizes(program)
    if unknown := [name for name in sizes if name not in known]:
        raise InputError(
            f"the model has no dynamic dimension {unknown[0]!r}",
            remedy=f"choose among {', '.join(known)}" if known else "leave --sizes out: all its sizes are fixed",
        )
    past, _ = cache_dims(program)
    if empty := [name for name, size in sizes.items() if size == 0 and name not in past]:
        raise InputError(f"the dimension {empty[0]!r} cannot be 0", remedy="only caches may be empty")
    return tuple(draw_inputs(program, {**known, **sizes}, torch.Generator().manual_seed(seed)))


def timed_inputs(
    original: Program, small: Program, data: Batches | None, sizes: Mapping[str, int] | None = None
) -> dict[str, tuple[Tensor, ...]]:
    """Flat inputs for `original` and `slim`: of the sizes given; else one row of real data where every input is a
    batch, else each program's example inputs (caches may differ).

    Raises:
        InputError: the sizes name a dimension that is not there.
    """
    if sizes:
        return {"original": sized_inputs(original, sizes), "slim": sized_inputs(small, sizes)}
    batched = all(0 in original.dynamic.get(name, {}) for name in original.input_names)
    if data is not None and batched:
        row = tuple(t[:1].contiguous() for t in data.inputs[0])
        with suppress(InputError):  # a cache that holds something has another width in each
            return {"original": row, "slim": refitted_caches(small, row)}
    return {"original": original.example_inputs, "slim": small.example_inputs}
