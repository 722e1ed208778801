"""The survey: one walk of the original over the calibration data that says what every group costs at every size.

An axis on which any basis will do costs the eigenvalues that its best basis leaves out, and so does the rank of a
weight; positions that are selected cost what second-order elimination leaves of their consumers' outputs. All are
squared errors of calls that read the axis; a probe of each on the model's own output makes them comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.errors import LocalError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.basis import Basis, optimal_basis, principal_axes, rotation
from fxslim.passes.consumers import CONVOLUTIONS, Consumer, at_several_depths, find_consumers
from fxslim.passes.enough import drawn, enough
from fxslim.passes.importance import position_scores, problem, top
from fxslim.passes.low_rank import Matrix, pair_basis, truncated
from fxslim.passes.restore import Progress
from fxslim.passes.second_order import Elimination, Problem, eliminate
from fxslim.passes.statistics import CalibrationWalk, SecondMoment
from fxslim.passes.stream_curve import Readers
from fxslim.passes.subspaces import Gathered, Subspace, gather_at, leading
from fxslim.passes.team import current_team

__all__ = ["Curve", "Survey", "fitted", "looked_at", "survey"]

RIDGE = 1e-6  # of a Gram matrix that is known from data alone
_SMALLEST = 16  # selection is followed down to this part of a group
_PROBED = 0.02  # a subspace is probed where it loses about this share of its energy
_FELT = 1e-3  # and not where it loses less than this: beyond its rank there is nothing to see


@dataclass
class Curve:
    """What a group costs, or the rank of a weight: `losses: [size + 1]`, the squared error when it keeps 0, 1, ...
    size positions (infinite where nothing is known), and a state in which its effect on the output can be probed."""

    losses: Tensor
    probed: int  # positions that the probe keeps
    mask: Tensor | None  # [*batch, size] of a group
    weights: MutableMapping[str, Tensor] = field(default_factory=dict)  # refitted for the probe, by name
    effect: float | None = None  # divergence of the model's output at the probe
    readers: Readers | None = None  # of a residual stream, which is probed at several sizes

    def scaled(self) -> Tensor:
        """The losses in units of the output's divergence: [size + 1].

        Where the probe had no effect what it removed is free, where the curve says that it should have had none it cost
        its effect; of less than it kept nothing is known then.
        """
        if self.effect is None or self.readers is not None:
            return self.losses
        effect, at = float("inf") if math.isnan(self.effect) else self.effect, float(self.losses[self.probed])
        if at > 0 and 0 < effect < float("inf"):
            return self.losses * (effect / at)
        found, size = torch.full_like(self.losses, float("inf")), len(self.losses) - 1
        found[size] = 0.0
        if effect < float("inf"):
            found[self.probed :] = torch.linspace(effect, 0.0, size + 1 - self.probed, dtype=found.dtype)
        return found


@dataclass
class Survey:
    """The curves, by name of the group or weight, and the bases of subspaces, by name of the group."""

    curves: dict[str, Curve]
    bases: dict[str, Basis]
    subspaces: tuple[Subspace, ...]
    notes: tuple[str, ...]


def fitted(batches: Sequence[Sequence[Tensor]]) -> Sequence[Sequence[Tensor]]:
    """All batches but the last one, by which `probe` judges: what was fitted is small on its own data."""
    return batches[:-1] or batches


def looked_at(analysis: Analysis, batches: Sequence[Sequence[Tensor]]) -> Sequence[Sequence[Tensor]]:
    """The batches that a survey needs, of those that `probe` does not judge by."""
    learned = fitted(batches)
    return drawn(learned, enough(analysis, learned))


def survey(
    analysis: Analysis, groups: Sequence[Group], subspaces: Sequence[Subspace], batches: Sequence[Sequence[Tensor]],
    progress: Progress | None = None, matrices: Sequence[Matrix] = (),
) -> Survey:  # fmt: skip
    """The curves of all groups, and of the ranks of weights, from one walk; groups that are no subspaces need consumers
    with weights.

    Raises:
        InputError: the calibration data is empty or makes an activation that is not finite.
    """
    own = {s.group.name for s in subspaces}
    collector = _Collector(analysis, [g for g in groups if g.name not in own], subspaces, matrices)
    walk = CalibrationWalk(Evaluator(analysis.program), batches, few=True)
    for number, node in enumerate(nodes := list(analysis.program.graph.nodes)):
        if progress is not None:
            progress(f"survey: {node.name}", number, len(nodes))
        collector.visit(node, walk, batches)
    curves, bases = collector.results()
    return Survey(curves, bases, tuple(subspaces), tuple(collector.notes))


class _Collector:
    """Gathers statistics call by call, and turns those of a group into its curve as soon as they are complete, so that
    few moments are held at a time. Of several processes each makes some of the curves."""

    def __init__(
        self, analysis: Analysis, groups: Sequence[Group], subspaces: Sequence[Subspace], matrices: Sequence[Matrix]
    ) -> None:
        self.analysis, self.subspaces = analysis, subspaces
        self._team = current_team()
        self._names: list[str] = []  # of curves, in the order in which their statistics were complete
        self._mine: dict[str, tuple[Curve, Basis | None]] = {}
        self._everywhere: set[str] = set()  # those that every process makes
        self._matrices = {m.consumer.node: m for m in matrices}
        self._last: tuple[fx.Node, SecondMoment] | None = None  # of the input that several calls in a row read
        self.notes: list[str] = []
        self._readers = {s.group.name: Readers.of(s.group, analysis.program.weights) for s in subspaces if s.stream}
        self._gathered = {s.group.name: Gathered() for s in subspaces}
        self._sides = {s.group.name: len(s.sides) for s in subspaces}
        self._consumers = consumers = {c.node.name: c for c in find_consumers(analysis.axes)[0]}
        self._groups = {g.name: g for g in groups}
        self._wanted = {g.name: [consumers[n] for n in g.consumers if n in consumers] for g in groups}
        self._moments: dict[fx.Node, SecondMoment] = {}
        self._waiting = {name: {c.node for c in own} for name, own in self._wanted.items() if own}
        self.notes += [f"{name} stays whole: no weight sums over it" for name, own in self._wanted.items() if not own]

    def visit(self, node: fx.Node, walk: CalibrationWalk, batches: Sequence[Sequence[Tensor]]) -> None:
        """Takes what the call `node` shows."""
        for subspace in self.subspaces:
            if any(s.call is node for s in subspace.sides):
                walk.advance_to(node)
                if subspace.stream:
                    self._readers[subspace.group.name].visit(self._consumers.get(node.name), walk)
                done = gather_at(self.analysis, subspace, node, walk, batches, self._gathered[subspace.group.name])
                self._sides[subspace.group.name] -= done
                if not self._sides[subspace.group.name]:
                    self._subspace_is_complete(subspace)
        if node in self._matrices:
            matrix = self._matrices[node]
            moment = self._moment(matrix.consumer, walk)
            self._solve(matrix.weight, lambda: self._rank(matrix, moment))
        names = [name for name, nodes in self._waiting.items() if node in nodes]
        if names:
            consumer = next(c for c in self._wanted[names[0]] if c.node is node)
            self._moments[node] = self._moment(consumer, walk)
            for name in names:
                self._waiting[name].discard(node)
                if not self._waiting[name]:
                    self._solve(name, lambda group=self._groups[name]: self._selection(group))  # type: ignore[misc]
            needed = {c.node for name, left in self._waiting.items() if left for c in self._wanted[name]}
            self._moments = {n: m for n, m in self._moments.items() if n in needed}

    def results(self) -> tuple[dict[str, Curve], dict[str, Basis]]:
        """All curves, and the bases of subspaces, by name."""
        found = {name: self._handed(name, number) for number, name in enumerate(self._names)}
        bases = {name: basis for name in self._names if (basis := found[name][1]) is not None}
        return {name: found[name][0] for name in self._names}, bases

    def _handed(self, name: str, number: int) -> tuple[Curve, Basis | None]:
        """What the process whose turn it was has made, with its weights in a store of this process: one at a time, for
        they may be on disk here and there."""
        own = self._mine.get(name)
        if self._team.size == 1 or name in self._everywhere:
            assert own is not None
            return own
        plain = None if own is None else (replace(own[0], weights=dict(own[0].weights)), own[1])
        made = self._team.handed(plain, number % self._team.size)
        assert made is not None
        weights = self.analysis.program.weights.empty()
        weights.update(made[0].weights)
        return (replace(made[0], weights=weights), made[1]) if own is None else own

    def _solve(self, name: str, make: Callable[[], tuple[Curve, Basis | None]], *, everywhere: bool = False) -> None:
        """Makes a curve where it is this process's turn."""
        if everywhere or self._team.turn(len(self._names)):
            self._mine[name] = make()
        if everywhere:  # what reads a stream is no data to hand round
            self._everywhere.add(name)
        self._names.append(name)

    def _moment(self, consumer: Consumer, walk: CalibrationWalk) -> SecondMoment:
        """The second moment of what a call reads; taken once for calls in a row that read the same."""
        shared = consumer.window == 1 and consumer.blocks == 1 and consumer.node.target not in CONVOLUTIONS
        if shared and self._last is not None and self._last[0] is consumer.source:
            return self._last[1]
        walk.advance_to(consumer.node)
        found = walk.moment(consumer)
        self._last = (consumer.source, found) if shared else None
        return found

    def _rank(self, matrix: Matrix, moment: SecondMoment) -> tuple[Curve, None]:
        weight = matrix.consumer.parameters(self.analysis.program)[0][0]
        basis = pair_basis(weight, moment)
        losses = basis.losses()
        rank = _shows(losses)
        probed = truncated(weight, basis, rank)
        weights = self.analysis.program.weights.empty()
        weights.update(matrix.consumer.stored(self.analysis.program, probed.unsqueeze(0), None))
        return Curve(losses, rank, None, weights), None

    def _subspace_is_complete(self, subspace: Subspace) -> None:
        found = self._gathered.pop(subspace.group.name)
        readers = self._readers.pop(subspace.group.name, None)
        self._solve(
            subspace.group.name, lambda: self._subspace(subspace, found, readers), everywhere=readers is not None
        )

    def _subspace(self, subspace: Subspace, found: Gathered, readers: Readers | None) -> tuple[Curve, Basis]:
        group = subspace.group
        second, gram = found.living, found.reading
        assert second is not None and gram is not None
        if not bool(second.isfinite().all() and gram.isfinite().all()):
            raise LocalError(
                f"the second moments of {group.name!r} overflow", remedy="check the calibration data for extreme values"
            )
        if readers is not None:
            basis = self._team.handed(principal_axes(second))
            readers.change_basis(basis)
        elif subspace.rotations:
            basis = rotation(second, gram)
        else:
            basis = optimal_basis(second, gram, RIDGE if subspace.estimated else 0.0)
        losses = basis.losses()
        count = _shows(losses)
        return Curve(losses, count, leading(group, count), readers=readers), basis

    def _selection(self, group: Group) -> tuple[Curve, None]:
        own = [(c, self._moments[c.node]) for c in self._wanted[group.name]]
        half = max(1, group.size // 2)
        if at_several_depths(self.analysis.program, [c for c, _ in own]):
            scores = position_scores(self.analysis, "obs", own, group)
            ascending = scores.sort(dim=-1).values.reshape(-1, group.size).sum(0).cumsum(0).flip(0)
            losses = torch.cat([ascending, ascending.new_zeros(1)])
            return Curve(losses, half, top(scores, half)), None
        problems = [problem(self.analysis, c, m, group) for c, m in own]
        smallest = max(1, group.size // _SMALLEST)
        probed = _felt(problems, group, half, smallest)
        weights = self.analysis.program.weights.empty()
        for (consumer, _), matrix in zip(own, probed.weights, strict=True):
            split = (matrix, None) if not consumer.shifted else (matrix[..., :-1], matrix[..., -1])
            weights.update(consumer.stored(self.analysis.program, *split))
        rest = eliminate(problems, group.shape, smallest, start=probed)
        return Curve(rest.losses, probed.count, probed.mask, weights), None


def _shows(losses: Tensor) -> int:
    """How many coordinates are kept where about the share `_PROBED` of the energy is lost."""
    close = (losses[1:-1] - _PROBED * losses[0]).abs()
    return int(close.masked_fill(losses[1:-1] < _FELT * losses[0], float("inf")).argmin()) + 1


def _felt(problems: Sequence[Problem], group: Group, count: int, smallest: int) -> Elimination:
    """The state with `count` positions, or with half as many until data, and not the ridge alone, shows a loss: where
    most neurons are dead a probe of the others' loss must reach them."""
    before = [p.weight.clone() for p in problems]
    state = eliminate(problems, group.shape, count)
    while count > smallest and _shown(problems, before) < float(state.losses[count]) / 2:
        count = max(smallest, count // 2)
        state = eliminate(problems, group.shape, count, start=state)
    return state


def _shown(problems: Sequence[Problem], before: Sequence[Tensor]) -> float:
    """The squared error on the data: tr(D H D^T)."""
    differences = [(w - p.weight, p.moment) for w, p in zip(before, problems, strict=True)]
    return sum(float(torch.einsum("gnk,gnk->", d @ h, d)) for d, h in differences)
