"""Rules of operators that write by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import clause
from fxslim.graph.axes.terms import Size

__all__: list[str] = []

aten = torch.ops.aten
BY_INDEX = "its positions are written by index"
GENERAL = Symmetry.GENERAL


@rule(aten.index_put.default)
def index_put(call: Call) -> DimRule | None:
    """x[i, j, :] = v: indexed dimensions stay, the others are aligned with the values. A mask covers several."""
    x = call.shapes[0]
    indices = list(call.arg("indices"))
    used = [i for i in indices if i is not None]
    if any(i.meta["val"].dtype in (torch.bool, torch.uint8) for i in used):
        return _masked_put(call, indices) if len(used) == 1 else None
    letters, shapes = names(len(x)), call.shapes[1:-1]
    places = [d for d, i in enumerate(indices) if i is not None]
    inner = names(max(len(s) for s in shapes), "i")
    rows = [_aligned(s, inner) for s in shapes]
    rest = [n for d, n in enumerate(letters) if d not in places]
    place = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    return _put(call, letters, rows, [*rest[:place], *inner, *rest[place:]], rest)


def _masked_put(call: Call, indices: list[fx.Node | None]) -> DimRule:
    """One number for every position of a mask is a choice of each element; several are written in order."""
    letters, mask = names(len(call.shapes[0])), call.shapes[1]
    first = next(d for d, i in enumerate(indices) if i is not None)
    covered = letters[first : first + len(mask)]
    rest = [n for n in letters if n not in covered]
    if all(size == 1 for size in call.shapes[2]):
        value = text(["1"] * len(call.shapes[2]))
        return DimRule.parse(f"{text(letters)}, {text(covered)}, {value} -> {text(letters)}")
    return _put(call, letters, [list(covered)], [*rest[:first], "n", *rest[first:]], rest)


def _put(
    call: Call, letters: tuple[str, ...], rows: Sequence[Sequence[str]], whole: list[str], rest: list[str]
) -> DimRule:
    """The rule where `whole` are the dimensions that values are broadcast to and only `rest` may be sliced."""
    values = _aligned(call.shapes[-1], whole)
    fixed = [x for x in (*letters, *(x for row in rows for x in row), *values) if x not in rest]
    spread = clause("permutation", [x for x in rest if x not in values])
    operands = ", ".join(map(text, [list(letters), *map(list, rows), values]))
    return DimRule.parse(
        f"{operands} -> {text(letters)}{clause('fixed', fixed)}{spread}", default=GENERAL, why=BY_INDEX
    )


def _aligned(shape: Sequence[Size], letters: Sequence[str]) -> list[str]:
    own = letters[len(letters) - len(shape) :]
    return ["1" if size == 1 else x for size, x in zip(shape, own, strict=True)]


@rule(
    aten.index_add.default, aten.index_copy.default, aten.index_reduce.default, aten.index_fill.int_Scalar,
    aten.index_fill.int_Tensor,
)  # fmt: skip
def index_write(call: Call) -> DimRule:
    """Positions of one dimension are written; the others are aligned with the source."""
    x = call.shapes[0]
    letters = names(len(x)) or ("1",)
    dim = call.dim("dim", len(x)) if x else 0
    row = "i" if len(call.shapes[1]) else "()"
    operands = [text(letters if x else ()), row]
    if "source" in call.arguments:
        operands.append(text(_aligned(call.shapes[2], (*letters[:dim], "i", *letters[dim + 1 :]))))
    elif len(call.tensors) == 3:
        operands.append("()")
    fixed = clause("fixed", [letters[dim], *(["i"] if row == "i" else [])])
    default = GENERAL if call.op in (aten.index_add.default, aten.index_copy.default) else Symmetry.PERMUTATION
    return DimRule.parse(f"{', '.join(operands)} -> {operands[0]}{fixed}", default=default, why=BY_INDEX)


@rule(
    aten.scatter.src, aten.scatter.value, aten.scatter.reduce, aten.scatter.value_reduce, aten.scatter_add.default,
    aten.scatter_reduce.two,
)  # fmt: skip
def scatter(call: Call) -> DimRule:
    """Along `dim` by index; the other dimensions are aligned where all sizes agree."""
    x = call.shapes[0]
    letters = names(len(x))
    dim = call.dim("dim", len(x)) if x else 0
    free = {d for d in range(len(x)) if d != dim and all(shape[d] == x[d] for shape in call.shapes)}
    rows = [
        [n if d in free else f"{prefix}{n}" for d, n in enumerate(letters[: len(shape)])]
        for prefix, shape in zip(("", "i", "s"), call.shapes, strict=False)
    ]
    fixed = clause("fixed", [n for row in rows for d, n in enumerate(row) if d not in free])
    return DimRule.parse(f"{', '.join(map(text, rows))} -> {text(letters)}{fixed}", why=BY_INDEX)


@rule(aten.masked_scatter.default)
def masked_scatter(call: Call) -> DimRule:
    """The source is read in order, wherever the mask is true. Where the mask is a row's flag repeated over the last
    dimension, whole rows are written: that dimension passes."""
    x, mask, source = call.shapes
    letters, other = names(len(x)), names(len(source), "s")
    whole = bool(x) and bool(source) and source[-1] == x[-1] and _is_repeated(call.tensors[1])
    if whole:
        other = (*other[:-1], letters[-1])
    rows = [letters, tuple(_aligned(mask, letters)), other]
    fixed = clause("fixed", [n for row in rows for n in row if not (whole and n == letters[-1])])
    line = f"{', '.join(map(text, rows))} -> {text(letters)}{fixed}"
    return DimRule.parse(line, default=GENERAL, why="the source is read in order")


def _is_repeated(mask: fx.Node) -> bool:
    """Whether a mask is the expansion of one with a single position in its last dimension."""
    while mask.target in (aten.clone.default, aten._to_copy.default, aten.to.dtype, aten.contiguous.default):
        mask = mask.args[0]  # type: ignore[assignment]
    if mask.target not in (aten.expand.default, aten.expand_as.default):
        return False
    source = mask.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    return len(shape) == 0 or shape[-1] == 1
