"""Products of activations: what a position costs where no weight, but a second activation, is summed over with it.

Queries meet keys along an axis: a logit is the sum over positions p of the sum over d in p of q_d k_d, with one d for
each p, or the two of a rotary pair. Position p alone contributes to all logits, squared and summed,

    sum_qk (sum_(d in p) q_d k_d)^2 = tr(Q_pp K_pp)

with the second moments Q_pp, K_pp of its dimensions, apart for each row of the batch and each head. Nothing takes over
what is removed: on both sides stand activations. An axis that several calls sum over (one rotary table for all layers,
the query heads of a key-value head) costs the sum of all. Masks are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor, fx

from fxslim.graph.axes.analysis import CallAxes
from fxslim.graph.axes.fibres import holders
from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.notation import Kind, Pattern, Product, letters_of
from fxslim.graph.axes.registry import Call
from fxslim.graph.axes.select import accumulate, coordinates, number_of
from fxslim.graph.axes.terms import expr_size
from fxslim.graph.axes.weights import weight_like
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import bind_symbols
from fxslim.passes.importance import Importance, top
from fxslim.passes.statistics import CalibrationWalk
from fxslim.passes.survey import Curve

__all__ = ["Contraction", "find_products", "product_curve", "product_scores"]

Symbols = Mapping[sympy.Symbol, int]
_PROBED = 0.02  # a curve is probed where about this share of all is lost: far below, and it says nothing of far above


@dataclass(frozen=True)
class Contraction:
    """One call that sums over an axis with two activations: their places among its operands, the letter that is summed
    over, the positions of that dimension by position of the axis [size, m], and the letters that both have besides."""

    call: CallAxes
    sides: tuple[int, int]
    letter: str
    positions: Tensor
    shared: tuple[str, ...]
    factor: float  # of the sum


def find_products(analysis: Analysis, groups: Sequence[Group]) -> dict[str, tuple[Contraction, ...]]:
    """By name the groups among `groups` over which nothing sums but products of two activations that can be read off
    their rules."""
    constants = weight_like(analysis.program.graph)
    calls = {node.name: call for node, call in analysis.axes.calls.items()}
    found: dict[str, tuple[Contraction, ...]] = {}
    for group in groups:
        own = [_contraction(analysis, calls[name], group, constants) for name in group.consumers]
        known = tuple(c for c in own if c is not None)
        if known and len(known) == len(own):
            found[group.name] = known
    return found


def _contraction(
    analysis: Analysis, call: CallAxes, group: Group, constants: Mapping[fx.Node, frozenset[str]]
) -> Contraction | None:
    terms, rule = analysis.axes.terms, call.rule
    summed = [x for x, e in call.letters.items() if rule.kind(x) is Kind.REDUCE and group.axis in terms.atoms(e)]
    if len(summed) != 1:
        return None
    (letter,) = summed
    sides = [i for i, dims in enumerate(rule.operands) if letter in letters_of(dims)]
    patterns = [p for i in sides for p in rule.operands[i]]
    if len(sides) != 2 or any(call.operands[i] in constants for i in sides) or not all(map(_splits, patterns)):
        return None
    if any(rule.operands[i].count(letter) != 1 for i in sides):
        return None
    positions = _positions(analysis, call, letter, group)
    left, right = ([x for p in rule.operands[i] for x in _letters(p)] for i in sides)
    shared = tuple(x for x in left if x in right and x != letter)
    exprs = [terms.resolve(call.letters[x]) for x in shared]
    if positions is None or any(len(holders(exprs, axis)) != 1 for axis in group.batch):
        return None
    scale = Call(call.node).arguments.get("scale")
    factor = float(scale) if isinstance(scale, int | float) else 1.0
    return Contraction(call, (sides[0], sides[1]), letter, positions, shared, factor)


def _splits(pattern: Pattern) -> bool:
    """Whether a dimension is a letter, or a product of letters."""
    return isinstance(pattern, str) or (
        isinstance(pattern, Product) and all(isinstance(factor, str) for factor in pattern.factors)
    )


def _letters(pattern: Pattern) -> list[str]:
    """The letters of a dimension that `_splits`, 1 left out."""
    return [x for x in letters_of((pattern,)) if x != "1"]


def _positions(analysis: Analysis, call: CallAxes, letter: str, group: Group) -> Tensor | None:
    """The positions on the letter's dimension that each position of the axis owns: [size, m]."""
    expr = analysis.axes.terms.resolve(call.letters[letter])
    if not isinstance(expr_size(expr), int):
        return None
    found = coordinates(expr)
    if len(found[group.axis]) != 1 or any(axis in found for axis in group.batch):
        return None  # multiplied with itself, or other positions for each head side by side
    (owner,) = found[group.axis]
    counts = torch.bincount(owner[owner >= 0], minlength=group.size)
    if not bool((counts == counts[0]).all()):
        return None
    order = owner.argsort(stable=True)
    return order[owner[order] >= 0].reshape(group.size, -1)


def product_scores(
    analysis: Analysis, groups: Sequence[Group], products: Mapping[str, Sequence[Contraction]],
    batches: Sequence[Sequence[Tensor]], importance: Importance,
) -> dict[str, Tensor]:  # fmt: skip
    """What removing each position by itself costs in the original program, by group name: [*batch, size] float64.

    `obs` and `fasp`: tr(Q_pp K_pp) (nothing can be refitted, so that both are the error itself); `flap`: the same with
    keys about their mean over all keys, which a softmax takes off; `activation`: tr(Q_pp) tr(K_pp).

    Raises:
        InputError: the calibration data is empty or makes an activation that is not finite.
    """
    walk = CalibrationWalk(Evaluator(analysis.program), batches, few=True)
    total = {g.name: torch.zeros(g.shape, dtype=torch.float64) for g in groups if g.name in products}
    for node in analysis.program.graph.nodes:
        own = [(g, c) for g in groups for c in products.get(g.name, ()) if c.call.node is node]
        if own:
            walk.advance_to(node)
        for group, contraction in own:
            left, right = (walk.values(contraction.call.operands[i]) for i in contraction.sides)
            symbols = (bind_symbols(analysis.program, batches[i]) for i in walk.mine)
            parts = zip(left, right, symbols, strict=True)
            total[group.name] += walk.total(_costs(analysis, group, contraction, *p, importance) for p in parts)
    return total


def _costs(
    analysis: Analysis, group: Group, contraction: Contraction, left: Tensor, right: Tensor, symbols: Symbols,
    importance: Importance,
) -> Tensor:  # fmt: skip
    """The scores of one call for one batch: [*batch, size]."""
    queries = _moments(contraction, 0, left, symbols)
    keys = _moments(contraction, 1, right, symbols, centred=importance == "flap")
    if importance == "activation":
        costs = queries.diagonal(dim1=-2, dim2=-1).sum(-1) * keys.diagonal(dim1=-2, dim2=-1).sum(-1)
    else:
        costs = (queries * keys).sum((-2, -1))  # [*shared, size]
    exprs = [analysis.axes.terms.resolve(contraction.call.letters[x]) for x in contraction.shared]
    known = [i for i, e in enumerate(exprs) if isinstance(expr_size(e), int)]
    if dynamic := [i for i in range(len(exprs)) if i not in known]:
        costs = costs.sum(dynamic)
    dims = (*(exprs[i] for i in known), (group.axis,))
    return contraction.factor**2 * accumulate(costs, dims, group.axis, group.batch)


def _moments(contraction: Contraction, side: int, value: Tensor, symbols: Symbols, *, centred: bool = False) -> Tensor:
    """The second moments of the dimensions of each position, summed over what one side alone has:
    [*shared, size, m, m] float64."""
    call, letter = contraction.call, contraction.letter
    letters = [x for p in call.rule.operands[contraction.sides[side]] for x in _letters(p)]
    value = value.reshape([number_of(expr_size(call.letters[x]), symbols) for x in letters])
    free = [x for x in letters if x not in contraction.shared and x != letter]
    value = value.permute([letters.index(x) for x in (*contraction.shared, *free, letter)])
    value = value.reshape(*value.shape[: len(contraction.shared)], -1, value.shape[-1]).double()
    if centred:
        value = value - value.mean(-2, keepdim=True)
    own = value[..., contraction.positions]  # [*shared, free, size, m]
    return torch.einsum("...fpm,...fpn->...pmn", own, own)


def product_curve(scores: Tensor) -> Curve:
    """The curve of a group by its scores [*batch, size], as if positions cost what they cost alone."""
    size = scores.shape[-1]
    removed = scores.sort(dim=-1).values.reshape(-1, size).sum(0).cumsum(0).flip(0)
    losses = torch.cat([removed, removed.new_zeros(1)])
    count = int((losses[1:-1] - _PROBED * losses[0]).abs().argmin()) + 1
    return Curve(losses, count, top(scores, count))
