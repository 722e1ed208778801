"""Inputs to check a program with: several sizes of its dynamic dimensions, values like those of its example."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from fxslim.graph.axes.analysis import find_caches
from fxslim.graph.dims import known_size, summands
from fxslim.graph.errors import CheckError, InputError
from fxslim.graph.program import Program

__all__ = [
    "Sizes", "cache_dims", "default_shapes", "draw_inputs", "example_sizes", "reordered_rows", "single_variations",
]  # fmt: skip

Sizes = dict[str, int]
"""A size for every dynamic dimension, by name."""

_ODD = (3, 5, 7, 11, 13)
_MASK_ONES = 0.85


def example_sizes(program: Program) -> Sizes:
    """The sizes that the example inputs have."""
    return {
        name: tensor.shape[dim]
        for key, tensor in zip(program.input_names, program.example_inputs, strict=True)
        for dim, name in program.dynamic.get(key, {}).items()
        if not summands(name)  # its size follows from theirs
    }


def default_shapes(program: Program) -> list[Sizes]:
    """The example's sizes, odd ones, all ones, and larger than the example; only the first where nothing is dynamic.

    Where caches grow, also with empty ones (prefill), and with one new position (a step of decoding).
    """
    example = example_sizes(program)
    if not example:
        return [{}]
    odd = {name: _ODD[i % len(_ODD)] for i, name in enumerate(example)}
    candidates = [example, odd, dict.fromkeys(example, 1), {name: 2 * size + 1 for name, size in example.items()}]
    candidates += _with_caches(program, example)
    return [sizes for i, sizes in enumerate(candidates) if sizes not in candidates[:i]]


def cache_dims(program: Program) -> tuple[set[str], set[str]]:
    """The names of the dynamic dimensions that only caches have (past positions), and that only other inputs have (new
    ones). Sums of others are not among them."""
    caches = find_caches(program)
    on_caches = {n for key in caches for n in program.dynamic.get(key, {}).values()}
    elsewhere = {n for key in program.input_names if key not in caches for n in program.dynamic.get(key, {}).values()}
    free = {n for n in on_caches | elsewhere if not summands(n)}
    return (on_caches - elsewhere) & free, (elsewhere - on_caches) & free


def _with_caches(program: Program, example: Sizes) -> list[Sizes]:
    past, new = cache_dims(program)
    if not past:
        return []
    return [{**example, **dict.fromkeys(past, 0)}, {**example, **dict.fromkeys(new, 1)}]


def single_variations(program: Program) -> list[Sizes]:
    """The example's sizes with one dimension changed: for programs in which the dimensions depend on each other."""
    example = example_sizes(program)
    return [{**example, name: 2 * size + 1} for name, size in example.items()] if len(example) > 1 else []


def reordered_rows(program: Program) -> list[torch.Tensor] | None:
    """The example inputs with their rows in another order, for programs that no drawn inputs fit (corners of a box that
    must ascend); None where there is a single row, or the inputs disagree on their number."""
    rows = {t.shape[0] for t in program.example_inputs if t.dim() > 0}
    if len(rows) != 1 or rows == {1}:
        return None
    return [t.roll(1, 0) if t.dim() > 0 else t for t in program.example_inputs]


def draw_inputs(program: Program, sizes: Mapping[str, int], generator: torch.Generator) -> list[torch.Tensor]:
    """Flat inputs of the given sizes, drawn like the example: integers in its range, floats with its mean and spread.

    An input whose example holds only 0 and 1, mostly 1, is taken for a mask: mostly ones, and ones in front, so that no
    row is masked altogether. Where 1 is the exception, each row keeps its number of ones, in other places: they mark
    where something else is put in. Columns of floats that hold whole numbers in the example are indices: they stay so.

    Raises:
        InputError: a dynamic dimension has no size.
    """
    symbols = _symbols(program, sizes)
    return [
        _draw(example, _shape(node, example, program, sizes, symbols), generator)
        for node, example in zip(program.graph.find_nodes(op="placeholder"), program.example_inputs, strict=True)
    ]


def _symbols(program: Program, sizes: Mapping[str, int]) -> dict[sympy.Symbol, int]:
    """Sizes of the exporter's own symbols, so that a dimension that is a sum of others can be computed."""
    known: dict[sympy.Symbol, int] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        for dim, name in program.dynamic.get(node.name, {}).items():
            symbol = _expression(node, dim)
            if isinstance(symbol, sympy.Symbol) and name in sizes:
                known[symbol] = sizes[name]
    return known


def _expression(node: fx.Node, dim: int) -> sympy.Expr | None:
    value = node.meta.get("val")
    size = value.shape[dim] if isinstance(value, torch.Tensor) else None
    return size.node.expr if isinstance(size, torch.SymInt) else None


def _shape(
    node: fx.Node,
    example: torch.Tensor,
    program: Program,
    sizes: Mapping[str, int],
    symbols: Mapping[Any, int],
) -> list[int]:
    shape = list(example.shape)
    for dim, name in program.dynamic.get(node.name, {}).items():
        expression = _expression(node, dim)
        if expression is not None and not expression.is_Symbol and expression.free_symbols <= symbols.keys():
            shape[dim] = int(expression.subs(symbols))
        elif (size := known_size(name, sizes)) is not None:
            shape[dim] = size
        else:
            raise InputError(
                f"the dynamic dimension {name!r} of {node.name!r} has no size", remedy=f"give a size for {name!r}"
            )
    return shape


def _draw(example: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    if example.is_complex():
        raise CheckError("complex inputs cannot be drawn", remedy="hand over inputs to check with")
    if _is_mask(example):
        return _mask(shape, generator).to(example.dtype)
    if _is_marks(example):
        return _marks(example, shape, generator)
    if example.is_floating_point():
        return _floats(example, shape, generator)
    if example.dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    return _integers(example, shape, generator).to(example.dtype)


def _floats(example: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Values with the mean and spread of the example; columns of whole numbers in the range that they have."""
    wide = example.double()
    columns = _whole_columns(wide) if wide.shape[-1:] == torch.Size(shape[-1:]) else []
    others = [i for i in range(shape[-1]) if i not in columns] if columns else []
    rest = wide[..., others] if others else wide
    spread = float(rest.std()) if rest.numel() > 1 else 1.0
    drawn = torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * spread + rest.mean()
    for column in columns:
        drawn[..., column] = _integers(wide[..., column], shape[:-1], generator).double()
    return drawn.to(example.dtype)


def _whole_columns(wide: torch.Tensor) -> list[int]:
    """The positions of the last dimension that hold whole numbers, not all the same (a constant may be anything)."""
    if wide.dim() < 2 or not wide.numel():
        return []
    rows = wide.flatten(0, -2)
    whole, varied = (rows == rows.round()).all(0), (rows != rows[:1]).any(0)
    alike = varied if not bool(whole.all()) else varied.any().expand_as(varied)
    return [int(i) for i in (whole & alike).nonzero().flatten()]


def _integers(example: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    low, high = (int(example.min()), int(example.max())) if example.numel() else (0, 0)
    return torch.randint(min(low, 0), high + 1, tuple(shape), generator=generator, dtype=torch.int64)


def _is_marks(example: torch.Tensor) -> bool:
    """Whether an input holds 0 and 1 in rows of several positions, and is none of the masks above."""
    if example.is_floating_point() or not example.numel() or example.dim() == 0 or example.shape[-1] < 2:
        return False
    return bool(((example == 0) | (example == 1)).all())


def _marks(example: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Rows with as many ones as a row of the example has, or as there are positions, in random places."""
    counts = (example != 0).sum(-1).flatten()
    rows = math.prod(shape[:-1])
    order = torch.rand(rows, shape[-1], generator=generator).argsort(-1).argsort(-1)  # a permutation in each row
    wanted = counts.repeat(-(-rows // counts.numel()))[:rows]
    return (order < wanted[:, None]).reshape(tuple(shape)).to(example.dtype)


def _is_mask(example: torch.Tensor) -> bool:
    values = example.double()
    return bool(((values == 0) | (values == 1)).all()) and example.numel() > 0 and float(values.mean()) > 0.5


def _mask(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    mask = torch.rand(tuple(shape), generator=generator) < _MASK_ONES
    if mask.dim():
        mask[..., :1] = True
    return mask
