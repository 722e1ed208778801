"""Importance: how much each position of a group matters. Strategies by the names that the papers gave them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.select import Kept, accumulate, coordinates
from fxslim.graph.axes.terms import Axis
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.consumers import Consumer, at_several_depths, find_consumers
from fxslim.passes.scores import SCORES, scored_elsewhere
from fxslim.passes.second_order import Problem, eliminate
from fxslim.passes.statistics import CalibrationWalk, SecondMoment
from fxslim.passes.taylor import first_order

__all__ = [
    "BY_DATA",
    "IMPORTANCES",
    "Chooser",
    "Importance",
    "choose",
    "importance_names",
    "needs_data",
    "owners",
    "position_scores",
    "problem",
    "scores_for",
    "scores_on_original",
    "sums_once",
    "top",
]

Importance = Literal["magnitude", "random", "taylor", "fasp", "flap", "activation", "obs"]
BY_DATA: tuple[Importance, ...] = ("fasp", "flap", "activation", "obs")  # of what consumers read
IMPORTANCES: tuple[Importance, ...] = ("magnitude", "random", "taylor", *BY_DATA)


def scores_for(
    importance: Importance, analysis: Analysis, groups: Sequence[Group], seed: int,
    batches: Sequence[Sequence[Tensor]] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Scores that weights, or their gradients on `batches`, decide, by group name: [*batch, size], larger is more
    important.

    Raises:
        InputError: the strategy is unknown.
    """
    if importance == "magnitude":
        return {g.name: magnitude(analysis, g) for g in groups}
    if importance == "random":
        return {g.name: random(g, seed) for g in groups}
    if importance == "taylor" and batches:
        return first_order(analysis, groups, batches)
    if importance in SCORES:
        return {g.name: scored_elsewhere(importance, analysis, g, batches) for g in groups}
    raise InputError(f"unknown importance {importance!r}", remedy=f"choose one of {', '.join(importance_names())}")


def importance_names() -> tuple[str, ...]:
    """All importances by name: fxslim's own, then those that were registered."""
    return (*IMPORTANCES, *SCORES)


def needs_data(importance: str) -> bool:
    """Whether an importance has nothing to go by without calibration data."""
    return importance in (*BY_DATA, "taylor") or (importance in SCORES and SCORES[importance].needs_data)


def magnitude(analysis: Analysis, group: Group) -> Tensor:
    """The 2-norm of everything that a position owns, over all weights of the group: [*batch, size] float64."""
    nodes = analysis.program.weight_nodes()
    total = torch.zeros(group.shape, dtype=torch.float64)
    for name in dict.fromkeys(site.weight for site in group.sites):
        squares = analysis.program.weights[name].detach().double().square()
        total += accumulate(squares, analysis.axes.dims(nodes[name]), group.axis, group.batch)
    return total.sqrt()


def random(group: Group, seed: int) -> Tensor:
    """Uniform numbers that depend on the seed and the group's name alone: [*batch, size] float64."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {group.name}".encode()))  # it reads 32 bits only
    return torch.rand(group.shape, generator=generator, dtype=torch.float64)


class Chooser:
    """Chooses positions by what their consumers make of them, on the way of a restoration.

    A group is decided when the walk first meets one of its consumers, from the compressed upstream. Where consumers
    lie at different depths (a residual stream, a dense block), later inputs do not exist yet: such groups are decided
    on the original.
    """

    def __init__(
        self,
        analysis: Analysis,
        groups: Sequence[Group],
        counts: Mapping[Axis, int],
        batches: Sequence[Sequence[Tensor]],
        importance: Importance = "fasp",
    ) -> None:
        self.analysis, self.counts, self.importance = analysis, counts, importance
        wanted = {node for g in groups for node in g.consumers}
        self.consumers = [c for c in find_consumers(analysis.axes)[0] if c.node.name in wanted]
        self._own = {g.name: [c for c in self.consumers if c.node.name in g.consumers] for g in groups}
        self._undecided = [g for g in groups if self._own[g.name]]
        self._groups = {g.name: g for g in groups}
        self._early = self._decide_on_original(batches)

    def _decide_on_original(self, batches: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Scores of the groups whose consumers lie at different depths."""
        spread = [g for g in self._undecided if at_several_depths(self.analysis.program, self._own[g.name])]
        return scores_on_original(self.importance, self.analysis, spread, batches) if spread else {}

    def deciding(self) -> list[Consumer]:
        """The consumers at which groups are decided, each the first that a group meets."""
        return [c for c in self.consumers if any(own and own[0] is c for own in self._own.values())]

    def decide(self, consumer: Consumer, walk: CalibrationWalk, moment: SecondMoment) -> dict[str, Tensor]:
        """What is kept of the groups that this consumer, with the moment of its inputs, is the first to sum over, by
        name: [*batch, size] bool. They are open until they are settled."""
        masks: dict[str, Tensor] = {}
        for group in [g for g in self._undecided if self._own[g.name][0] is consumer]:
            count, score = self.counts[group.axis], self._early.get(group.name)
            if score is None:
                moment = moment.to(torch.device("cpu"))
                own = [(c, moment if c is consumer else walk.moment(c)) for c in self._own[group.name]]
                solve = partial(choose, self.analysis, self.importance, own, group, count)
                masks[group.name] = walk.team.solved(len(self._undecided) - len(masks), solve)
            else:
                masks[group.name] = top(score, count)
        return masks

    def kept(self, masks: Mapping[str, Tensor]) -> dict[Axis, Kept]:
        """Decisions by name of the group as a selection has them."""
        return {self._groups[name].axis: Kept(self._groups[name].batch, mask) for name, mask in masks.items()}

    def settle(self, masks: Mapping[str, Tensor]) -> dict[Axis, Kept]:
        """The same, for groups that are decided from here on."""
        self._undecided = [g for g in self._undecided if g.name not in masks]
        return self.kept(masks)

    def asked(self) -> list[tuple[str, int]]:
        """What it decides by, and how much of each group it keeps."""
        return [(self.importance, 0), *((name, self.counts[g.axis]) for name, g in self._groups.items())]


def scores_on_original(
    importance: Importance, analysis: Analysis, groups: Sequence[Group], batches: Sequence[Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Scores by what the consumers of a group make of it in the original program, by group name: [*batch, size]; one
    consumer after the other."""
    walk, total = CalibrationWalk(Evaluator(analysis.program), batches), dict[str, Tensor]()
    for consumer in find_consumers(analysis.axes)[0]:
        members = [g for g in groups if consumer.node.name in g.consumers]
        if members:
            walk.advance_to(consumer.node)
            moment = walk.moment(consumer)
            for group in members:
                score = position_scores(analysis, importance, [(consumer, moment)], group)
                total[group.name] = total[group.name] + score if group.name in total else score
    return total


def choose(
    analysis: Analysis, importance: Importance, own: Sequence[tuple[Consumer, SecondMoment]], group: Group, count: int
) -> Tensor:
    """The `count` positions of a group that stay: [*batch, size] bool."""
    if importance == "obs":
        problems = [problem(analysis, consumer, moment, group) for consumer, moment in own]
        return eliminate(problems, group.shape, count).mask
    return top(position_scores(analysis, importance, own, group), count)


def problem(analysis: Analysis, consumer: Consumer, moment: SecondMoment, group: Group) -> Problem:
    """A consumer as second-order selection sees it, with the constant as a column of its own where it has a bias."""
    weight, bias = (None if p is None else p.cpu() for p in consumer.parameters(analysis.program))
    assert weight is not None
    owner = owners(consumer, group)
    if bias is None:
        return Problem(weight.double(), moment.matrix[:, :-1, :-1], owner)
    extended = torch.cat([weight.double(), bias.double().unsqueeze(2)], 2)
    return Problem(extended, moment.matrix, torch.cat([owner, torch.full_like(owner[:, :1], -1)], 1))


def sums_once(consumer: Consumer, group: Group) -> bool:
    """Whether every column of a consumer belongs to one position of the group: not where the axis is multiplied with
    itself."""
    found = coordinates(consumer.features)
    return all(len(found.get(axis, ())) == 1 for axis in (*group.batch, group.axis))


def owners(consumer: Consumer, group: Group) -> Tensor:
    """The number of the group's position (batch positions major) that each column belongs to: [g, k]; -1 for none."""
    found = coordinates(consumer.features)
    (own,) = found[group.axis]
    number = torch.zeros_like(own)
    for axis in (*group.batch, group.axis):
        (coordinate,) = found[axis]
        number = number * int(axis.size) + coordinate.clamp(min=0)
    number = torch.where(own >= 0, number, torch.full_like(number, -1))
    return number.reshape(consumer.blocks, -1).repeat_interleave(consumer.window, dim=1)


def position_scores(
    analysis: Analysis, importance: Importance, own: Sequence[tuple[Consumer, SecondMoment]], group: Group
) -> Tensor:
    """What removing each position by itself costs its consumers: [*batch, size] float64.

    `fasp`: sum_i |W_ij| ||X_j|| (FASP 2025, after Wanda); `flap`: the fluctuation var(X_j) sum_i W_ij^2 (FLAP, An
    2024, WIFV); `activation`: ||X_j|| (TransAct, Shen 2024); `obs`: sum_i W_ij^2 / (H^-1)_jj (Hassibi 1993).
    """
    total = torch.zeros(group.shape, dtype=torch.float64)
    for consumer, moment in own:
        if importance == "obs":
            scores = problem(analysis, consumer, moment, group).scores(total.numel())
            total += scores.reshape(group.shape)
            continue
        weight = consumer.parameters(analysis.program)[0].cpu().double()
        if importance == "fasp":
            columns = weight.abs().sum(1) * moment.norms()
        elif importance == "flap":
            columns = weight.square().sum(1) * moment.variances()
        else:
            columns = moment.norms()
        features = columns.reshape(-1, consumer.window).sum(1)  # a convolution's window belongs to its channel
        total += accumulate(features, (consumer.features,), group.axis, group.batch)
    return total


def top(scores: Tensor, count: int) -> Tensor:
    """True for the `count` largest scores of each row: [*batch, size] bool. Ties go to the earlier position."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
