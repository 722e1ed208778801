"""Rules of operators that look values up among others, or whose result's size depends on values."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import all_fixed, clause, filled

__all__: list[str] = []

aten = torch.ops.aten
SORTED = "values are placed among these"


@rule(aten.bucketize.Tensor)
def bucketize(call: Call) -> DimRule:
    """The number of a value's bucket."""
    return filled(call, "*, k -> * | fixed k", why=SORTED)


@rule(aten.searchsorted.Tensor)
def searchsorted(call: Call) -> DimRule:
    """Where a value belongs in a sorted row: one row for all, or one for each leading position."""
    rows = len(call.shapes[0]) > 1
    sorter = ", * k" if len(call.tensors) == 3 and rows else (", k" if len(call.tensors) == 3 else "")
    line = f"* k, * v{sorter} -> * v" if rows else f"k, *{sorter} -> *"
    return filled(call, f"{line} | fixed k", why=SORTED)


@rule(aten.isin.Tensor_Tensor)
def isin(call: Call) -> DimRule:
    """Whether a value is one of the others."""
    letters, others = names(len(call.shapes[0])), names(len(call.shapes[1]), "k")
    fixed = clause("fixed", others)
    return DimRule.parse(f"{text(letters)}, {text(others)} -> {text(letters)}{fixed}", why=SORTED)


@rule(
    aten.nonzero.default, aten.nonzero_numpy.default, aten.nonzero_static.default, aten.argwhere.default,
    aten.where.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default, aten.repeat_interleave.Tensor,
)  # fmt: skip
def found_by_value(call: Call) -> DimRule:
    """Values decide what the result holds, and where."""
    return all_fixed(call, "values decide what the result holds")


@rule(aten.histc.default)
def histogram(call: Call) -> DimRule:
    """Counts of values between bounds that they give themselves."""
    return all_fixed(call, "every value counts")


@rule(aten.take.default, aten.put.default)
def flat_index(call: Call) -> DimRule:
    """By index into the flattened tensor; the result has the shape of the index."""
    if call.op is aten.put.default:
        return all_fixed(call, "its positions are written by index")
    letters, own = names(len(call.shapes[0]), "x"), names(len(call.shapes[1]))
    fixed = clause("fixed", letters)
    return DimRule.parse(f"{text(letters)}, {text(own)} -> {text(own)}{fixed}", why="its positions are read by index")


@rule(aten.take_along_dim.default)
def take_along_dim(call: Call) -> DimRule:
    """Along `dim` by index; the other dimensions broadcast."""
    x, positions = call.shapes
    if call.arg("dim") is None:
        return all_fixed(call, "its positions are read by index")
    dim = call.dim("dim", len(x))
    letters = names(len(x))
    own = ["1" if size == 1 and d != dim else n for d, (n, size) in enumerate(zip(letters, x, strict=True))]
    other = ["1" if size == 1 and d != dim else n for d, (n, size) in enumerate(zip(letters, positions, strict=True))]
    other[dim] = "i"
    out = ["i" if d == dim else (n if n in (*own, *other) else "1") for d, n in enumerate(letters)]
    fixed = clause("fixed", [letters[dim]])
    return DimRule.parse(f"{text(own)}, {text(other)} -> {text(out)}{fixed}", why="its positions are read by index")


@rule(aten.repeat_interleave.self_Tensor)
def repeat_by_counts(call: Call) -> DimRule:
    """Every position of `dim` as often as its count says."""
    x, counts = call.shapes
    if call.arg("dim") is None:
        return all_fixed(call, "the counts are values")
    letters = list(names(len(x)))
    dim = call.dim("dim", len(x))
    row = "1" if counts == (1,) else letters[dim]
    out = [*letters[:dim], "n", *letters[dim + 1 :]]
    fixed = clause("fixed", [letters[dim], "n"])
    row = "()" if not counts else row
    return DimRule.parse(f"{text(letters)}, {row} -> {text(out)}{fixed}", why="the counts are values")
