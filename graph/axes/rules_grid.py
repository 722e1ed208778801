"""Rules of diagonals, triangles and grids: operators whose results compare one position with another, or cross them."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import all_fixed, clause

__all__: list[str] = []

aten = torch.ops.aten
GENERAL = Symmetry.GENERAL
COMPARED = "row and column are compared"


@rule(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(call: Call) -> DimRule:
    """Every row repeated along the dimensions of all others; `xy` exchanges the first two."""
    letters = [
        "1" if shape in ((), (1,)) else n for n, shape in zip(names(len(call.tensors)), call.shapes, strict=True)
    ]
    operands = ", ".join(n if shape else "()" for n, shape in zip(letters, call.shapes, strict=True))
    out = list(letters)
    if call.arguments.get("indexing") == "xy" and len(out) > 1:
        out[0], out[1] = out[1], out[0]
    return DimRule.parse(f"{operands} -> {', '.join([text(out)] * len(call.results))}")


@rule(aten.broadcast_tensors.default)
def broadcast(call: Call) -> DimRule:
    """All operands in the shape that they have together."""
    letters = names(max(len(shape) for shape in call.shapes))
    rows = [
        ["1" if size == 1 else n for size, n in zip(shape, letters[len(letters) - len(shape) :], strict=True)]
        for shape in call.shapes
    ]
    whole = ["1" if size == 1 else n for size, n in zip(call.results[0], letters, strict=True)]
    spread = clause("permutation", [x for x in whole if any(x not in row for row in rows)])
    return DimRule.parse(
        f"{', '.join(map(text, rows))} -> {', '.join([text(whole)] * len(rows))}{spread}", default=GENERAL
    )


@rule(aten.tril_indices.default, aten.triu_indices.default)
def triangle_indices(call: Call) -> DimRule:
    """The positions of a triangle, by row and column."""
    return all_fixed(call, COMPARED)


@rule(aten.diag_embed.default)
def diag_embed(call: Call) -> DimRule:
    """The last dimension becomes the diagonal of two new ones."""
    rank = len(call.results[0])
    i, j = call.dim("dim1", rank), call.dim("dim2", rank)
    letters = names(rank - 2)
    rest = iter(letters)
    out = ["p" if d == i else "q" if d == j else next(rest) for d in range(rank)]
    return DimRule.parse(f"{text((*letters, 'z'))} -> {text(out)} | fixed z p q", default=GENERAL, why=COMPARED)


@rule(aten.diag.default, aten.diagflat.default)
def diag(call: Call) -> DimRule:
    """A vector as the diagonal of a matrix, or the diagonal of a matrix."""
    return all_fixed(call, COMPARED)


@rule(aten.trace.default)
def trace(call: Call) -> DimRule:
    """The sum over the diagonal."""
    return DimRule.parse("a b -> () | fixed a b", default=GENERAL, why=COMPARED)


@rule(aten.diagonal_scatter.default)
def diagonal_scatter(call: Call) -> DimRule:
    """A diagonal is replaced."""
    letters = names(len(call.shapes[0]))
    pair = (letters[call.dim("dim1", len(letters))], letters[call.dim("dim2", len(letters))])
    own = [*(x for x in letters if x not in pair), "z"]
    fixed = clause("fixed", [*pair, "z"])
    return DimRule.parse(f"{text(letters)}, {text(own)} -> {text(letters)}{fixed}", default=GENERAL, why=COMPARED)


@rule(aten.block_diag.default)
def block_diag(call: Call) -> DimRule:
    """Matrices along a diagonal, zero elsewhere; a vector is a row."""
    rows, columns = [], []
    operands = []
    for i, shape in enumerate(call.shapes):
        dims = [f"r{i}", f"c{i}"][2 - len(shape) :]
        operands.append(text(dims))
        rows.append(f"r{i}" if len(shape) == 2 else "1")
        columns.append(f"c{i}" if shape else "1")
    out = [f"[{'|'.join(x)}]" if len(x) > 1 else x[0] for x in (rows, columns)]
    return DimRule.parse(f"{', '.join(operands)} -> {text(out)}", default=GENERAL)


@rule(aten.rot90.default)
def rot90(call: Call) -> DimRule:
    """A quarter turn reads one of two dimensions backwards, and they change places; a half turn reads both so."""
    letters = list(names(len(call.shapes[0])))
    i, j = call.dims("dims", len(letters))
    out = list(letters)
    if call.arg("k") % 2:
        out[i], out[j] = out[j], out[i]
    fixed = clause("fixed", ([], [letters[j]], [letters[i], letters[j]], [letters[i]])[call.arg("k") % 4])
    why = "positions move to other positions"
    return DimRule.parse(f"{text(letters)} -> {text(out)}{fixed}", default=GENERAL, why=why)


@rule(
    aten.hann_window.default, aten.hann_window.periodic, aten.hamming_window.default, aten.hamming_window.periodic,
    aten.blackman_window.default, aten.blackman_window.periodic, aten.bartlett_window.default,
    aten.bartlett_window.periodic, aten.kaiser_window.default, aten.kaiser_window.periodic, aten.kaiser_window.beta,
    aten.logspace.default, aten.fft_fftfreq.default, aten.fft_rfftfreq.default,
)  # fmt: skip
def sampled_function(call: Call) -> DimRule:
    """A function of the position."""
    return DimRule.parse("-> a | fixed a", why="its values are positions")
