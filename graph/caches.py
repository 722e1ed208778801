"""Caches of a program as values: what they hold in a program of other widths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxslim.graph.axes.analysis import find_caches
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program

__all__ = ["refitted_caches"]


def refitted_caches(program: Program, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Flat inputs for `program` from those of one whose caches have other widths: caches that hold nothing, or zeros,
    do so in its widths. All else is as it was.

    Raises:
        InputError: a cache of another width holds something, which only the program that wrote it can read.
    """
    found, caches = [], find_caches(program)
    for node, tensor in zip(program.graph.find_nodes(op="placeholder"), tensors, strict=True):
        own = node.meta["val"].shape
        shape = [a if isinstance(a, int) else b for a, b in zip(own, tensor.shape, strict=True)]
        if node.name not in caches or list(tensor.shape) == shape:
            found.append(tensor)
        elif not bool(tensor.any()):
            found.append(tensor.new_zeros(shape))
        else:
            raise InputError(
                f"the cache {node.name!r} holds something of the shape {list(tensor.shape)}, the program takes {shape}",
                at=program.source,
                remedy="give data with empty caches",
            )
    return tuple(found)
