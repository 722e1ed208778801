"""Rules of reductions and of operators that look along a dimension (scans, sorting, triangles)."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text

__all__ = ["reduction"]

aten = torch.ops.aten


def reduction(
    call: Call, dims: tuple[int, ...], keepdim: bool, clause: str, default: Symmetry, results: int = 1
) -> DimRule:
    """The rule of a call that removes `dims`; `clause` says what that does. The terms of a sum are only permuted."""
    letters = names(len(call.shapes[0]))
    out = [("1" if keepdim else "") if i in dims else x for i, x in enumerate(letters)]
    kept = text([x for x in out if x])
    reduced = text([letters[i] for i in dims])
    suffix = f" | {clause} {reduced}" if clause and dims else ""
    if default is not Symmetry.PERMUTATION and dims:
        suffix += f" | permutation {reduced}"
    why = "the result names a position" if clause == "fixed" else ""
    return DimRule.parse(f"{text(letters)} -> {', '.join([kept] * results)}{suffix}", default=default, why=why)


@rule(aten.sum.dim_IntList, aten.sum.default)
def summation(call: Call) -> DimRule:
    """Removing a term equals making it zero."""
    named = call.op is aten.sum.dim_IntList
    dims = call.dims("dim", len(call.shapes[0])) if named else tuple(range(len(call.shapes[0])))
    return reduction(call, dims, named and bool(call.arg("keepdim")), "", Symmetry.GENERAL)


@rule(aten.mean.dim, aten.mean.default)
def mean(call: Call) -> DimRule:
    """The count changes with what is removed."""
    named = call.op is aten.mean.dim
    dims = call.dims("dim", len(call.shapes[0])) if named else tuple(range(len(call.shapes[0])))
    return reduction(call, dims, named and bool(call.arg("keepdim")), "tied", Symmetry.GENERAL)


@rule(aten.any.dim)
def any_(call: Call) -> DimRule:
    """Removing a position equals making it false."""
    return reduction(call, call.dims("dim", len(call.shapes[0])), bool(call.arg("keepdim")), "", Symmetry.PERMUTATION)


@rule(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim)
def vector_norm(call: Call) -> DimRule:
    """Of a positive or zero order, removing a position equals making it zero; a length stays under rotations."""
    order = call.arg("ord" if call.op is aten.linalg_vector_norm.default else "p")
    dims = call.dims("dim", len(call.shapes[0]))
    if order in (None, 2) and len(dims) == 1:
        return reduction(call, dims, bool(call.arg("keepdim")), "orthogonal", Symmetry.PERMUTATION)
    clause = "" if order is None or order >= 0 else "tied"
    return reduction(call, dims, bool(call.arg("keepdim")), clause, Symmetry.PERMUTATION)


@rule(
    aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim, aten.amax.default, aten.amin.default,
    aten.prod.dim_int, aten.logsumexp.default, aten.all.dim,
)  # fmt: skip
def statistic(call: Call) -> DimRule:
    """A statistic of all positions of `dim`: removing one is not the same as making it zero."""
    dims = call.dims("dim", len(call.shapes[0]))
    return reduction(call, dims, bool(call.arg("keepdim")), "tied", Symmetry.PERMUTATION)


@rule(aten.max.dim, aten.min.dim, aten.median.dim)
def extreme_with_index(call: Call) -> DimRule:
    """The second result is an index into `dim`."""
    dims = call.dims("dim", len(call.shapes[0]))
    return reduction(call, dims, bool(call.arg("keepdim")), "fixed", Symmetry.PERMUTATION, results=2)


@rule(aten.argmax.default, aten.argmin.default)
def arg_extreme(call: Call) -> DimRule:
    """The result is an index into `dim`."""
    dims = call.dims("dim", len(call.shapes[0]))
    return reduction(call, dims, bool(call.arg("keepdim")), "fixed", Symmetry.PERMUTATION)


@rule(aten.cumsum.default, aten.cumprod.default)
def scan(call: Call) -> DimRule:
    """Every position holds the sum of those before it."""
    (x,) = call.shapes
    dims = names(len(x))
    clause = f" | fixed {dims[call.dim('dim', len(x))]}" if x else ""
    default = Symmetry.GENERAL if call.op is aten.cumsum.default else Symmetry.PERMUTATION
    return DimRule.parse(f"{text(dims)} -> {text(dims)}{clause}", default=default, why="the order counts")


@rule(aten.topk.default)
def topk(call: Call) -> DimRule:
    """The k largest of `dim` and their indices."""
    (x,) = call.shapes
    if not x:
        return DimRule.parse("() -> (), ()")
    dims = list(names(len(x)))
    chosen = call.dim("dim", len(x))
    out = [*dims[:chosen], "k", *dims[chosen + 1 :]]
    return DimRule.parse(
        f"{text(dims)} -> {text(out)}, {text(out)} | fixed {dims[chosen]} k", why="the result names positions"
    )


@rule(aten.sort.default, aten.sort.stable)
def sort(call: Call) -> DimRule:
    """Sorted values and their indices."""
    (x,) = call.shapes
    dims = names(len(x))
    clause = f" | fixed {dims[call.dim('dim', len(x))]}" if x else ""
    return DimRule.parse(f"{text(dims)} -> {text(dims)}, {text(dims)}{clause}", why="the result names positions")


@rule(aten.triu.default, aten.tril.default)
def triangle(call: Call) -> DimRule:
    """The last two dimensions are compared with each other."""
    dims = names(len(call.shapes[0]))
    clause = f" | fixed {text(dims[-2:])}"
    why = "row and column are compared"
    return DimRule.parse(f"{text(dims)} -> {text(dims)}{clause}", default=Symmetry.GENERAL, why=why)


@rule(aten.flip.default, aten.roll.default)
def reorder(call: Call) -> DimRule:
    """The named dimensions are read in another order."""
    (x,) = call.shapes
    dims = names(len(x))
    nothing = call.op is aten.flip.default and not call.arg("dims")
    moved = [] if nothing else [dims[d] for d in call.dims("dims", len(x))]
    clause = f" | fixed {text(moved)}" if moved else ""
    why = "positions move to other positions"
    return DimRule.parse(f"{text(dims)} -> {text(dims)}{clause}", default=Symmetry.GENERAL, why=why)
