"""Importance: how much each position of a group matters. Strategies by the names that the papers gave them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.select import Kept, accumulate
from fxslim.graph.axes.terms import Axis
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.statistics import CalibrationWalk

__all__ = ["IMPORTANCES", "ColumnScores", "Importance", "column_scores", "scores_for", "top"]

Importance = Literal["magnitude", "random", "fasp"]
IMPORTANCES: tuple[Importance, ...] = ("magnitude", "random", "fasp")


def scores_for(importance: Importance, analysis: Analysis, groups: Sequence[Group], seed: int) -> dict[str, Tensor]:
    """Scores that weights alone decide, by group name: [*batch, size], larger is more important.

    Raises:
        InputError: the strategy is unknown.
    """
    if importance == "magnitude":
        return {g.name: magnitude(analysis, g) for g in groups}
    if importance == "random":
        return {g.name: random(g, seed) for g in groups}
    raise InputError(f"unknown importance {importance!r}", remedy=f"choose one of {', '.join(IMPORTANCES)}")


def magnitude(analysis: Analysis, group: Group) -> Tensor:
    """The 2-norm of everything that a position owns, over all weights of the group: [*batch, size] float64."""
    nodes = analysis.program.weight_nodes()
    total = torch.zeros([int(a.size) for a in (*group.batch, group.axis)], dtype=torch.float64)
    for name in dict.fromkeys(site.weight for site in group.sites):
        squares = analysis.program.weights[name].detach().double().square()
        total += accumulate(squares, analysis.axes.dims(nodes[name]), group.axis, group.batch)
    return total.sqrt()


def random(group: Group, seed: int) -> Tensor:
    """Uniform numbers that depend on the seed and the group's name alone: [*batch, size] float64."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {group.name}".encode()))  # it reads 32 bits only
    return torch.rand([int(a.size) for a in (*group.batch, group.axis)], generator=generator, dtype=torch.float64)


class ColumnScores:
    """FASP's column score (2025, arXiv 2501.09412, after Wanda): position j scores sum_i |W_ij| · ||X_j||_2, added
    over all consumers of the group.

    A group is decided when the walk first meets one of its consumers, from the compressed upstream. Where consumers
    lie at different depths (a residual stream, a dense block), later inputs do not exist yet: such groups are scored
    on the original.
    """

    def __init__(
        self,
        analysis: Analysis,
        groups: Sequence[Group],
        counts: Mapping[Axis, int],
        batches: Sequence[Sequence[Tensor]],
    ) -> None:
        self.analysis, self.counts = analysis, counts
        wanted = {node for g in groups for node in g.consumers}
        self.consumers = [c for c in find_consumers(analysis.axes)[0] if c.node.name in wanted]
        self._order = {node: i for i, node in enumerate(analysis.program.graph.nodes)}
        self._own = {g.name: [c for c in self.consumers if c.node.name in g.consumers] for g in groups}
        self._undecided = [g for g in groups if self._own[g.name]]
        self._early = self._score_on_original(batches)

    def _spread(self, group: Group) -> bool:
        own = self._own[group.name]
        return any(self._order[c.source] >= self._order[own[0].node] for c in own)

    def _score_on_original(self, batches: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        spread = [g for g in self._undecided if self._spread(g)]
        walk = CalibrationWalk(Evaluator(self.analysis.program), batches) if spread else None
        total: dict[str, Tensor] = {}
        for consumer in self.consumers if walk is not None else ():
            members = [g for g in spread if consumer in self._own[g.name]]
            if members and walk is not None:
                walk.advance_to(consumer.node)
                norms = column_norms(consumer, walk)
                for group in members:
                    score = column_scores(self.analysis, consumer, norms, group)
                    total[group.name] = total[group.name] + score if group.name in total else score
        return total

    def decide(self, consumer: Consumer, walk: CalibrationWalk) -> dict[Axis, Kept]:
        """The kept positions of the groups that this consumer is the first to sum over."""
        decided: dict[Axis, Kept] = {}
        for group in [g for g in self._undecided if self._own[g.name][0] is consumer]:
            self._undecided.remove(group)
            score = self._early.get(group.name)
            if score is None:
                parts = [column_scores(self.analysis, c, column_norms(c, walk), group) for c in self._own[group.name]]
                score = torch.stack(parts).sum(0)
            decided[group.axis] = Kept(group.batch, top(score, self.counts[group.axis]))
        return decided


def top(scores: Tensor, count: int) -> Tensor:
    """True for the `count` largest scores of each row: [*batch, size] bool. Ties go to the earlier position."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def column_norms(consumer: Consumer, walk: CalibrationWalk) -> Tensor:
    """||X_j||_2 over all tokens of all batches, for every column of a consumer: [g, k] float64."""
    squares: Tensor | None = None
    for value in walk.values(consumer.source):
        part = consumer.columns(value).double().square().sum(1)
        squares = part if squares is None else squares + part
    assert squares is not None
    return squares.sqrt()


def column_scores(analysis: Analysis, consumer: Consumer, norms: Tensor, group: Group) -> Tensor:
    """The scores of a group's positions at one consumer: [*batch, size] float64."""
    weight = consumer.matrix(analysis.program.weights[consumer.weight]).detach().double()
    columns = weight.abs().sum(1) * norms  # [g, k]
    features = columns.reshape(-1, consumer.window).sum(1)  # a convolution's window belongs to its channel
    return accumulate(features, (consumer.features,), group.axis, group.batch)
