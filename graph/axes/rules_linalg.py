"""Rules of linear algebra on matrices: both dimensions of a matrix are mixed, leading ones are a batch."""

from __future__ import annotations

from typing import Any

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import filled

__all__: list[str] = []

aten = torch.ops.aten
GENERAL, PERMUTATION = Symmetry.GENERAL, Symmetry.PERMUTATION
MIXED = "rows and columns are mixed"

_LINES: dict[Any, str] = {
    aten.linalg_inv.default: "* n n -> * n n | fixed n",
    aten.linalg_inv_ex.default: "* n n -> * n n, * | fixed n",
    aten.linalg_det.default: "* n n -> * | fixed n",
    aten.linalg_slogdet.default: "* n n -> *, * | fixed n",
    aten.logdet.default: "* n n -> * | fixed n",
    aten.linalg_cholesky.default: "* n n -> * n n | fixed n",
    aten.cholesky_inverse.default: "* n n -> * n n | fixed n",
    aten.cholesky_solve.default: "* n k, * n n -> * n k | fixed n | permutation *",
    aten.linalg_qr.default: "* m n -> * m k, * k n | fixed m n k",
    aten.linalg_svd.default: "* m n -> * m u, * k, * v n | fixed m n u k v",
    aten.linalg_svdvals.default: "* m n -> * k | fixed m n k",
    aten.svd.default: "* m n -> * m u, * k, * n v | fixed m n u k v",
    aten.linalg_eigh.default: "* n n -> * n, * n n | fixed n",
    aten.linalg_eigvalsh.default: "* n n -> * n | fixed n",
    aten.linalg_pinv.default: "* m n -> * n m | fixed m n",
    aten.linalg_pinv.atol_rtol_float: "* m n -> * n m | fixed m n",
    aten.linalg_matrix_power.default: "* n n -> * n n | fixed n",
    aten.matrix_exp.default: "* n n -> * n n | fixed n",
    aten.linalg_lu.default: "* m n -> * m p, * p k, * k n | fixed m n k p",
    aten.linalg_lu_factor.default: "* m n -> * m n, * k | fixed m n k",
    aten.linalg_lu_factor_ex.default: "* m n -> * m n, * k, * | fixed m n k",
    aten.linalg_householder_product.default: "* m n, * k -> * m n | fixed m n k",
}


@rule(*_LINES)
def decomposition(call: Call) -> DimRule:
    """Inverses, decompositions and solutions, as listed."""
    return filled(call, _LINES[call.op], GENERAL if "permutation" in _LINES[call.op] else PERMUTATION, why=MIXED)


@rule(aten.linalg_pinv.atol_rtol_tensor)
def pseudo_inverse(call: Call) -> DimRule:
    """With tolerances as numbers or tensors."""
    return filled(call, f"* m n{', *' * (len(call.tensors) - 1)} -> * n m | fixed m n", why=MIXED)


@rule(aten.linalg_solve.default, aten.linalg_solve_ex.default)
def solve(call: Call) -> DimRule:
    """A X = B or X A = B; the other dimension of B takes any basis. B may be vectors."""
    vector = len(call.shapes[1]) == 1 or call.shapes[1] == call.shapes[0][:-1]
    other = "* n" if vector else ("* n k" if call.arg("left") else "* k n")
    info = ", *" if call.op is aten.linalg_solve_ex.default else ""
    basis = "" if vector or info else " | permutation *"  # the information is a number
    return filled(call, f"* n n, {other} -> {other}{info} | fixed n{basis}", GENERAL if basis else PERMUTATION, MIXED)


@rule(aten.linalg_solve_triangular.default)
def solve_triangular(call: Call) -> DimRule:
    """A X = B or X A = B, A triangular."""
    other = "* n k" if call.arg("left") else "* k n"
    return filled(call, f"* n n, {other} -> {other} | fixed n | permutation *", GENERAL, MIXED)


@rule(aten.linalg_lu_solve.default)
def solve_factored(call: Call) -> DimRule:
    """A X = B or X A = B, A given by its factors and the order of its rows."""
    other = "* n k" if call.arg("left") else "* k n"
    return filled(call, f"* n n, * n, {other} -> {other} | fixed n | permutation *", GENERAL, MIXED)


@rule(aten.linalg_matrix_rank.atol_rtol_tensor, aten.linalg_matrix_rank.default)
def matrix_rank(call: Call) -> DimRule:
    """The number of independent rows and columns."""
    return filled(call, f"* m n{', *' * (len(call.tensors) - 1)} -> * | fixed m n", why=MIXED)


@rule(aten.linalg_multi_dot.default)
def chain(call: Call) -> DimRule:
    """A product of matrices; the first and the last may be vectors."""
    letters = names(len(call.tensors) + 1)
    rows = [letters[i : i + 2] for i in range(len(call.tensors))]
    ends = [letters[0], letters[-1]]
    if len(call.shapes[0]) == 1:
        rows[0], ends = rows[0][1:], ends[1:]
    if len(call.shapes[-1]) == 1:
        rows[-1], ends = rows[-1][:-1], ends[:-1]
    costs = [text(row) for row in rows]
    return DimRule.parse(f"{', '.join(map(text, rows))} -> {text(ends)}", default=GENERAL, costs=costs)


@rule(aten.linalg_cross.default)
def cross(call: Call) -> DimRule:
    """The product of vectors of three numbers along `dim`."""
    rank = max(map(len, call.shapes))
    letters, dim = names(rank), call.dim("dim", rank)
    rows = [
        ["1" if size == 1 else n for size, n in zip(shape, letters[rank - len(shape) :], strict=True)]
        for shape in call.shapes
    ]
    out = [n if any(n in row for row in rows) else "1" for n in letters]
    return DimRule.parse(
        f"{', '.join(map(text, rows))} -> {text(out)} | fixed {letters[dim]}", why="its three positions are mixed"
    )
