"""Rules of statistics over all positions, of pairs of statistics, and of operators that look along a dimension."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import clause
from fxslim.graph.axes.rules_reduce import reduction

__all__: list[str] = []

aten = torch.ops.aten
PERMUTATION = Symmetry.PERMUTATION
ORDER = "the order counts"


def _everything(call: Call) -> tuple[int, ...]:
    return tuple(range(len(call.shapes[0])))


@rule(
    aten.max.default, aten.min.default, aten.all.default, aten.prod.default, aten.std.default, aten.var.default,
    aten.median.default, aten.nanmedian.default,
)  # fmt: skip
def statistic_of_all(call: Call) -> DimRule:
    """One number from all positions."""
    return reduction(call, _everything(call), False, "tied", PERMUTATION)


@rule(aten.any.default)
def any_of_all(call: Call) -> DimRule:
    """Removing a position equals making it false."""
    return reduction(call, _everything(call), False, "", PERMUTATION)


@rule(aten.any.dims, aten.count_nonzero.dim_IntList, aten.count_nonzero.default, aten.nansum.default)
def count(call: Call) -> DimRule:
    """Removing a term equals making it zero. Numbers that are none are left out."""
    return reduction(call, _named(call), bool(call.arguments.get("keepdim", False)), "", PERMUTATION)


def _named(call: Call) -> tuple[int, ...]:
    """The dimensions named. To test none of them is to test each element."""
    if call.op in (aten.any.dims, aten.all.dims) and call.arg("dim") == []:
        return ()
    return call.dims("dim", len(call.shapes[0]))


@rule(aten.all.dims, aten.nanmean.default)
def statistic_of_some(call: Call) -> DimRule:
    """A statistic of all positions of some dimensions."""
    return reduction(call, _named(call), bool(call.arg("keepdim")), "tied", PERMUTATION)


@rule(
    aten.var_mean.default, aten.var_mean.dim, aten.var_mean.correction, aten.std_mean.default, aten.std_mean.dim,
    aten.std_mean.correction, aten.aminmax.default,
)  # fmt: skip
def pair_of_statistics(call: Call) -> DimRule:
    """Two numbers from the same positions."""
    named = "dim" in call.arguments
    dims = call.dims("dim", len(call.shapes[0])) if named else _everything(call)
    return reduction(call, dims, named and bool(call.arg("keepdim")), "tied", PERMUTATION, results=2)


@rule(aten.kthvalue.default, aten.mode.default, aten.nanmedian.dim)
def ranked_with_index(call: Call) -> DimRule:
    """The second result is an index into `dim`."""
    dims = call.dims("dim", len(call.shapes[0]))
    return reduction(call, dims, bool(call.arg("keepdim")), "fixed", PERMUTATION, results=2)


@rule(aten.quantile.scalar, aten.nanquantile.scalar)
def quantile(call: Call) -> DimRule:
    """Between two of the sorted positions."""
    return reduction(call, call.dims("dim", len(call.shapes[0])), bool(call.arg("keepdim")), "tied", PERMUTATION)


@rule(
    aten.linalg_norm.default, aten.linalg_norm.ord_str, aten.linalg_matrix_norm.default,
    aten.linalg_matrix_norm.str_ord, aten.norm.Scalar, aten.norm.ScalarOpt_dim_dtype, aten.norm.ScalarOpt_dtype,
)  # fmt: skip
def norm(call: Call) -> DimRule:
    """Of vectors, of a positive or zero order: removing a position equals making it zero. Those of matrices, other
    than the root of all squares, treat rows and columns together."""
    order = call.arguments.get("ord", call.arguments.get("p"))
    named = "dim" in call.arguments
    dims = call.dims("dim", len(call.shapes[0])) if named else _everything(call)
    matrix = len(dims) == 2 and "linalg" in str(call.op) and order not in (None, "fro")
    tied = matrix or (isinstance(order, int | float) and order < 0)
    return reduction(call, dims, named and bool(call.arg("keepdim")), "tied" if tied else "", PERMUTATION)


@rule(aten.cummax.default, aten.cummin.default)
def running_extreme(call: Call) -> DimRule:
    """The largest so far and where it was."""
    return _along(call, results=2)


@rule(aten.logcumsumexp.default, aten.argsort.default, aten.argsort.stable, aten.cumulative_trapezoid.dx)
def along(call: Call) -> DimRule:
    """Every position depends on the others of `dim` and on their order."""
    return _along(call)


def _along(call: Call, results: int = 1) -> DimRule:
    letters = names(len(call.shapes[0]))
    fixed = [letters[call.dim("dim", len(letters))]] if letters else []
    out = list(letters)
    if call.op is aten.cumulative_trapezoid.dx:
        out = [f"p{n}" if n in fixed else n for n in letters]
    fixed += [n for n in out if n not in letters]
    return DimRule.parse(f"{text(letters)} -> {', '.join([text(out)] * results)}{clause('fixed', fixed)}", why=ORDER)


@rule(aten.msort.default)
def sort_rows(call: Call) -> DimRule:
    """Sorted along the first dimension."""
    letters = names(len(call.shapes[0]))
    return DimRule.parse(f"{text(letters)} -> {text(letters)}{clause('fixed', letters[:1])}", why=ORDER)


@rule(aten.trapezoid.dx, aten.trapz.dx)
def trapezoid(call: Call) -> DimRule:
    """A sum in which the first and the last position count half."""
    letters = names(len(call.shapes[0]))
    dim = call.dim("dim", len(letters))
    out = (*letters[:dim], *letters[dim + 1 :])
    line = f"{text(letters)} -> {text(out)} | fixed {letters[dim]}"
    return DimRule.parse(line, default=Symmetry.GENERAL, why=ORDER)


@rule(aten.diff.default)
def difference(call: Call) -> DimRule:
    """Each position less the one before; more may be put in front and behind."""
    letters = list(names(len(call.shapes[0])))
    dim = call.dim("dim", len(letters))
    rows = [[*letters[:dim], f"{prefix}{letters[dim]}", *letters[dim + 1 :]] for prefix in ("", "s", "t")]
    out = [*letters[:dim], "i", *letters[dim + 1 :]]
    rows = rows[: len(call.tensors)]
    fixed = clause("fixed", [*(row[dim] for row in rows), "i"])
    return DimRule.parse(f"{', '.join(map(text, rows))} -> {text(out)}{fixed}", default=Symmetry.GENERAL, why=ORDER)
