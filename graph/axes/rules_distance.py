"""Rules of distances, similarities and losses: element by element, then a sum or a mean."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import clause, filled
from fxslim.graph.axes.terms import Size

__all__: list[str] = []

aten = torch.ops.aten
NONE, MEAN = 0, 1  # reductions; 2 is the sum
BY_CLASS = "a target names one of its positions"


@rule(aten.cdist.default)
def cdist(call: Call) -> DimRule:
    """The distance of each row to each other row: removed coordinates equal zeros, Euclid's take rotations."""
    return filled(call, "* m k, * n k -> * m n | permutation * m n", _basis(call))


def _basis(call: Call) -> Symmetry:
    """What coordinates of a distance may be changed to."""
    return Symmetry.ORTHOGONAL if call.arg("p") == 2 else Symmetry.PERMUTATION


@rule(aten.pdist.default)
def pdist(call: Call) -> DimRule:
    """The distance of each row to each later row."""
    return filled(call, "m k -> n | fixed m n", _basis(call), "pairs of rows are counted")


@rule(aten.cosine_similarity.default, aten.linalg_vecdot.default)
def along_dim(call: Call) -> DimRule:
    """Two operands that broadcast, reduced along one dimension. A cosine takes rotations, a product any basis."""
    cosine = call.op is aten.cosine_similarity.default
    rank = max(map(len, call.shapes))
    letters, dim = names(rank), call.dim("dim", rank)
    rows = _rows(call, letters)
    out = [n if any(n in row for row in rows) else "1" for d, n in enumerate(letters) if d != dim]
    carried = all(letters[dim] in row for row in rows)
    tied = [x for x in letters[dim : dim + 1] if cosine and not carried and any(x in row for row in rows)]
    others = [x for x in letters if x != letters[dim] and any(x in row for row in rows)]
    permuted = [x for x in others if carried and (cosine or all(x in row for row in rows))]
    default = (Symmetry.ORTHOGONAL if cosine else Symmetry.GENERAL) if carried else Symmetry.PERMUTATION
    line = f"{', '.join(map(text, rows))} -> {text(out)}{clause('tied', tied)}{clause('permutation', permuted)}"
    return DimRule.parse(line, default=default)


def _rows(call: Call, letters: tuple[str, ...]) -> list[list[str]]:
    """Operands aligned at the right, dimensions of size 1 broadcast."""
    return [_aligned(shape, letters) for shape in call.shapes]


def _aligned(shape: tuple[Size, ...], letters: tuple[str, ...]) -> list[str]:
    own = letters[len(letters) - len(shape) :]
    return ["1" if size == 1 else n for size, n in zip(shape, own, strict=True)]


@rule(aten.pairwise_distance.default)
def pairwise_distance(call: Call) -> DimRule:
    """The distance of rows; a small number is added to each difference, so a removed one is not a zero."""
    letters = names(max(map(len, call.shapes)))
    rows = _rows(call, letters)
    whole = [n if any(n in row for row in rows) else "1" for n in letters]
    out = [*whole[:-1], *(["1"] if call.arg("keepdim") else [])]
    return DimRule.parse(f"{', '.join(map(text, rows))} -> {text(out)}{clause('tied', whole[-1:])}")


@rule(aten.dist.default)
def dist(call: Call) -> DimRule:
    """The norm of all differences."""
    return _reduced(call, reduction=2, vanishes=call.arg("p") >= 0)


def _reduced(call: Call, reduction: int, vanishes: bool) -> DimRule:
    """The rule of elements that are reduced; `vanishes` says whether zeros in all operands add nothing to a sum."""
    letters = names(max(map(len, call.shapes)))
    rows = _rows(call, letters)
    whole = [n if any(n in row for row in rows) else "1" for n in letters]
    operands = ", ".join(map(text, rows))
    if reduction == NONE:
        return DimRule.parse(f"{operands} -> {text(whole)}")
    if reduction == MEAN or not vanishes:
        return DimRule.parse(f"{operands} -> (){clause('tied', whole)}")
    spread = [n for n in whole if any(n not in row for row in rows[:2])]
    return DimRule.parse(f"{operands} -> (){clause('fixed', spread)}", why="one operand is repeated along it")


@rule(
    aten.mse_loss.default, aten.l1_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default,
    aten.kl_div.default, aten.binary_cross_entropy.default,
)  # fmt: skip
def loss_of_difference(call: Call) -> DimRule:
    """Zero where prediction and target are."""
    return _reduced(call, int(call.arg("reduction")), vanishes=True)


@rule(
    aten.binary_cross_entropy_with_logits.default, aten.soft_margin_loss.default, aten.poisson_nll_loss.default,
    aten.hinge_embedding_loss.default, aten.margin_ranking_loss.default,
)  # fmt: skip
def loss_with_offset(call: Call) -> DimRule:
    """Not zero where prediction and target are."""
    return _reduced(call, int(call.arg("reduction")), vanishes=False)


@rule(aten.cross_entropy_loss.default, aten.nll_loss_nd.default)
def class_loss(call: Call) -> DimRule | None:
    """Classes are named by the target, or weighted by it; examples and positions are averaged."""
    x, target, *weights = call.shapes
    batch, positions = ("b",) if len(x) > 1 else (), names(max(0, len(x) - 2), "p")
    rows = [(*batch, "c", *positions), (*batch, *positions) if len(target) < len(x) else (*batch, "c", *positions)]
    reduction = int(call.arg("reduction"))
    out = (*batch, *positions) if reduction == NONE else ()
    vanishes = reduction == NONE or (reduction != MEAN and call.op is aten.nll_loss_nd.default)
    tied = clause("tied", [] if vanishes else [*batch, *positions])
    operands = ", ".join([*map(text, rows), *["c" for _ in weights]])
    return DimRule.parse(f"{operands} -> {text(out)} | fixed c{tied}", why=BY_CLASS)


@rule(aten.cosine_embedding_loss.default, aten.triplet_margin_loss.default)
def embedding_loss(call: Call) -> DimRule:
    """Angles or distances of the last dimension, averaged over the others. A distance adds a small number to each
    difference."""
    letters = names(max(map(len, call.shapes)))
    rows = [letters[: len(shape)] for shape in call.shapes]
    reduction, cosine = int(call.arg("reduction")), call.op is aten.cosine_embedding_loss.default
    out = letters[:-1] if reduction == NONE else ()
    tied = [
        *(letters[:-1] if reduction == MEAN or (reduction and not cosine) else ()),
        *([] if cosine else letters[-1:]),
    ]
    return DimRule.parse(f"{', '.join(map(text, rows))} -> {text(out)}{clause('tied', tied)}")
