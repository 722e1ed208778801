"""Rules of operators that read or write by index, and of operators that create tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, NewSizes, names, rule, text
from fxslim.graph.axes.rules_lines import clause

__all__: list[str] = []

aten = torch.ops.aten
BY_INDEX = "its positions are read by index"


@rule(aten.index.Tensor)
def index(call: Call) -> DimRule | None:
    """x[i, j, :]: indexed dimensions stay; the broadcast indices take the place of the first, or the front."""
    x, *shapes = call.shapes
    indices = list(call.arg("indices"))
    letters = names(len(x))
    used = [d for d, i in enumerate(indices) if i is not None]
    if any(indices[d].meta["val"].dtype in (torch.bool, torch.uint8) for d in used):
        return _by_mask(letters, used[0], len(shapes[0])) if len(used) == 1 else None
    rank = max(len(s) for s in shapes)
    inner = names(rank, "i")
    own = [inner[rank - len(s) :] for s in shapes]
    operands = [
        ["1" if size == 1 else n for size, n in zip(s, o, strict=True)] for s, o in zip(shapes, own, strict=True)
    ]
    adjacent = used == list(range(used[0], used[-1] + 1))
    place = used[0] if adjacent else 0
    rest = [n for d, n in enumerate(letters) if d not in used]
    out = [*rest[:place], *inner, *rest[place:]]
    rows = [text(letters), *map(text, operands)]
    clauses = f" | fixed {text([letters[d] for d in used])}" + (f" | permutation {text(inner)}" if inner else "")
    return DimRule.parse(f"{', '.join(rows)} -> {text(out)}{clauses}", default=Symmetry.GENERAL, why=BY_INDEX)


def _by_mask(letters: tuple[str, ...], first: int, rank: int) -> DimRule:
    """Where a mask is true: the dimensions that it covers become one."""
    covered = letters[first : first + rank]
    out = [*letters[:first], "n", *letters[first + rank :]]
    return DimRule.parse(
        f"{text(letters)}, {text(covered)} -> {text(out)} | fixed {text((*covered, 'n'))}",
        default=Symmetry.GENERAL, why="a mask chooses among its positions",
    )  # fmt: skip


@rule(aten.index_select.default)
def index_select(call: Call) -> DimRule:
    """Positions of one dimension by index."""
    x = call.shapes[0]
    if not x:
        return DimRule.parse("(), 1 -> ()" if call.shapes[1] else "(), () -> ()", default=Symmetry.GENERAL)
    letters, dim = list(names(len(x))), call.dim("dim", len(x))
    if not call.shapes[1]:
        kept = text([*letters[:dim], "1", *letters[dim + 1 :]])
        return DimRule.parse(
            f"{text(letters)}, () -> {kept} | fixed {letters[dim]}", default=Symmetry.GENERAL, why=BY_INDEX
        )
    out = [*letters[:dim], "i", *letters[dim + 1 :]]
    clauses = f" | fixed {letters[dim]} | permutation i"
    return DimRule.parse(f"{text(letters)}, i -> {text(out)}{clauses}", default=Symmetry.GENERAL, why=BY_INDEX)


@rule(aten.gather.default)
def gather(call: Call) -> DimRule:
    """Along `dim` by index; the other dimensions are aligned where their sizes agree."""
    x, positions = call.shapes
    dim = call.dim("dim", len(x))
    letters = names(len(x))
    other = [
        n if i != dim and s == t else f"i{n}" for i, (n, s, t) in enumerate(zip(letters, x, positions, strict=True))
    ]
    fixed = [n for i, n in enumerate(letters) if other[i] != n]
    fixed += [o for i, o in enumerate(other) if o not in letters and i != dim]
    return DimRule.parse(f"{text(letters)}, {text(other)} -> {text(other)}{clause('fixed', fixed)}", why=BY_INDEX)


@rule(aten.slice_scatter.default, aten.select_scatter.default)
def scatter_slice(call: Call) -> DimRule:
    """A stretch or a position of `dim` is replaced; the others are aligned."""
    x, source = call.shapes
    letters, dim = list(names(len(x))), call.dim("dim", len(x))
    own = [*letters[:dim], *(["s"] if len(source) == len(x) else []), *letters[dim + 1 :]]
    fixed = [letters[dim], *(["s"] if len(source) == len(x) else [])]
    return DimRule.parse(
        f"{text(letters)}, {text(own)} -> {text(letters)} | fixed {text(fixed)}", default=Symmetry.GENERAL, why=BY_INDEX
    )


def _size(call: Call, new: NewSizes) -> Mapping[str, Any]:
    return {"size": list(new.result())}


@rule(aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format, literals=_size)
def constant(call: Call) -> DimRule:
    """A tensor of one value: all positions are alike."""
    return DimRule.parse(f"-> {text(names(len(call.results[0])))}")


@rule(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default, literals=_size)
def constant_like(call: Call) -> DimRule:
    """A tensor of one value; of the operand only the type is read."""
    other = names(len(call.shapes[0]), "x")
    return DimRule.parse(f"{text(other)} -> {text(names(len(call.results[0])))}")


@rule(aten.scalar_tensor.default)
def scalar(call: Call) -> DimRule:
    """A number as a tensor."""
    return DimRule.parse("-> ()")


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default)
def positions(call: Call) -> DimRule:
    """Numbers that count: a selection of them is no such row."""
    return DimRule.parse("-> a | fixed a", why="its values are positions")


@rule(aten.eye.default, aten.eye.m)
def identity(call: Call) -> DimRule:
    """Row and column are compared."""
    return DimRule.parse("-> a b | fixed a b", why="row and column are compared")


@rule(aten.one_hot.default)
def one_hot(call: Call) -> DimRule:
    """Values become positions of a new last dimension."""
    letters = names(len(call.shapes[0]))
    return DimRule.parse(f"{text(letters)} -> {text((*letters, 'v'))} | fixed v", why="values become positions")


@rule(aten.diagonal.default)
def diagonal(call: Call) -> DimRule:
    """Two dimensions are read together."""
    letters = names(len(call.shapes[0]))
    i, j = call.dim("dim1", len(letters)), call.dim("dim2", len(letters))
    rest = [x for d, x in enumerate(letters) if d not in (i, j)]
    return DimRule.parse(
        f"{text(letters)} -> {text((*rest, 'z'))} | fixed {letters[i]} {letters[j]} z",
        default=Symmetry.GENERAL,
        why="row and column are compared",
    )
