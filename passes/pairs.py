"""Pairs: two linear maps, one straight after the other, and the basis of the axis between them by which their product
is best cut.

For y = W_out W_in x and a matrix C that says how x is weighed, the least ||(W - W_r) C^1/2|| is the truncated singular
value decomposition of W C^1/2. As a basis of the inner axis z = W_in x that is the optimum of `basis.optimal_basis` for
S = W_in C W_in^T and K = W_out^T W_out: no Cholesky factor, no inverse of C (Swift-SVD 2026).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.basis import Basis, optimal_basis
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.factorise import Factorise
from fxslim.passes.restore import Progress
from fxslim.passes.spec import named_in, spec_name
from fxslim.passes.statistics import CalibrationWalk
from fxslim.passes.subspaces import Subspace, find_subspaces
from fxslim.passes.survey import Survey
from fxslim.passes.team import current_team

__all__ = ["METRICS", "Metric", "Pair", "find_pairs", "pair_bases"]

Metric = Literal["plain", "scaled", "whitened"]
METRICS: tuple[Metric, ...] = ("plain", "scaled", "whitened")
_ALPHA = 0.5  # ASVD (Yuan 2023): the power of the mean magnitude by which inputs are scaled


@dataclass(frozen=True)
class Pair:
    """A weight that was factorised: the group of its rank, and the calls of both factors."""

    weight: str  # as it was called
    subspace: Subspace
    first: Consumer
    second: Consumer

    @property
    def group(self) -> Group:
        """The group of the rank."""
        return self.subspace.group


def find_pairs(analysis: Analysis) -> dict[str, Pair]:
    """The pairs that the factorise pass made of a program, by the name that the weight had."""
    consumers = {c.weight: c for c in find_consumers(analysis.axes)[0]}
    names = [n for text in analysis.program.history if spec_name(text) == Factorise.name for n in named_in(text)]
    subspaces, _ = find_subspaces(analysis, analysis.prunable)
    found = {}
    for subspace in subspaces:
        weights = {name for name, _, _ in subspace.weights}
        for name in names:
            own = sorted(w for w in weights if re.fullmatch(rf"{re.escape(name)}_(in|out)\d*", w))
            if len(own) == 2 == len(weights) and all(w in consumers for w in own):
                found[name] = Pair(name, subspace, consumers[own[0]], consumers[own[1]])
    return found


def pair_bases(
    analysis: Analysis, pairs: Sequence[Pair], metric: Metric, batches: Sequence[Sequence[Tensor]] | None,
    progress: Progress | None = None,
) -> Survey:  # fmt: skip
    """The bases of the pairs. `plain` weighs all inputs alike (SVD), `scaled` by the root of their mean magnitude
    (ASVD), `whitened` by their second moment (SVD-LLM): these need `batches`."""
    bases: dict[str, Basis] = {}
    walk = CalibrationWalk(Evaluator(analysis.program), batches) if metric != "plain" and batches else None
    order = {node: i for i, node in enumerate(analysis.program.graph.nodes)}
    for number, pair in enumerate(sorted(pairs, key=lambda p: order[p.first.node])):
        if progress is not None:
            progress(f"basis: {pair.weight}", number, len(pairs))
        first, second = (c.parameters(analysis.program)[0][0].double() for c in (pair.first, pair.second))
        weighed = _weighed(pair.first, metric, walk, first)
        bases[pair.group.name] = current_team().solved(
            number, partial(optimal_basis, first @ weighed, second.mT @ second)
        )
    return Survey({}, bases, tuple(p.subspace for p in pairs), ())


def _weighed(consumer: Consumer, metric: Metric, walk: CalibrationWalk | None, first: Tensor) -> Tensor:
    """C W_in^T: [k, r]."""
    if walk is None:
        return first.mT
    walk.advance_to(consumer.node)
    if metric == "whitened":
        return walk.moment(consumer).matrix[0, :-1, :-1] @ first.mT
    columns = (consumer.columns(value)[0].double().abs() for value in walk.values(consumer.source))
    sums = walk.total(torch.cat([c.sum(0), c.new_tensor([len(c)])]) for c in columns)
    return (sums[:-1] / sums[-1]).pow(2 * _ALPHA).unsqueeze(1) * first.mT
