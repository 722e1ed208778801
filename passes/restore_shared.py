"""Restoration of shared weights: each is refitted for all branches that use it, by least squares, in one solve.

With X_b what the call of branch b reads now, behind all that is shared before it, and Y_b what it returned in the
original, the weight and the branches' own biases minimise sum_b ||X_b W^T + 1 c_b^T - Y_b||^2. Centred for every branch
that has a bias, with ridge d and W_0 the weight that is shared,

    W = (sum_b Y_b^T X_b + d W_0) (sum_b X_b^T X_b + d I)^-1,    c_b = mean(Y_b) - W mean(X_b)

For the first call of a branch Y_b = X_b W_b^T + 1 c_b^T: the average of the weights where all X_b^T X_b are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.select import Selection
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.divergence import divergence
from fxslim.passes.refit import LADDER
from fxslim.passes.restore import Progress, Restoration, RestoredConsumer, few_tokens
from fxslim.passes.statistics import CalibrationWalk, SecondMoment

__all__ = ["Use", "restore_shared", "solve_shared"]


@dataclass(frozen=True)
class Use:
    """What one branch asks of a shared weight. `target: [g, n, k + 1]` is its own weight with its bias; `moment` is
    that of [Z X 1], where Z is what the call read in the original and X what it reads now: [g, 2k + 1, 2k + 1]."""

    target: Tensor
    moment: SecondMoment
    biased: bool

    @property
    def now(self) -> Tensor:
        """[X 1]^T [X 1]: [g, k + 1, k + 1]."""
        k = self.target.shape[-1] - 1
        return self.moment.matrix[:, k:, k:]

    @property
    def wanted(self) -> Tensor:
        """Y^T [X 1]: [g, n, k + 1]."""
        k = self.target.shape[-1] - 1
        return self.target[..., :-1] @ self.moment.matrix[:, :k, k:] + self.target[..., -1:] @ self.now[:, -1:]

    @property
    def energy(self) -> float:
        """||Y||^2."""
        k = self.target.shape[-1] - 1
        before = torch.cat([self.moment.matrix[:, :k], self.moment.matrix[:, -1:]], dim=1)
        before = torch.cat([before[..., :k], before[..., -1:]], dim=2)
        return float(torch.einsum("gnk,gkl,gnl->", self.target, before, self.target))

    def residual(self, weight: Tensor) -> float:
        """||[X 1] W^T - Y||^2 for a weight with its bias: [g, n, k + 1]."""
        squared = torch.einsum("gnk,gkl,gnl->", weight, self.now, weight)
        return max(0.0, float(squared - 2 * (weight * self.wanted).sum()) + self.energy)


def solve_shared(uses: Sequence[Use], start: Tensor, ridge: float) -> list[Tensor] | None:
    """The weight that serves all uses best, with each one's bias: [g, n, k + 1] for each use; None where the system is
    singular. `start: [g, n, k]` is the weight that the ridge (relative to the mean diagonal) draws to."""
    system, right = torch.zeros_like(uses[0].now[:, :-1, :-1]), torch.zeros_like(start)
    for use in uses:
        now, wanted, count = use.now, use.wanted, use.now[:, -1:, -1:] if use.biased else float("inf")
        system += now[:, :-1, :-1] - now[:, :-1, -1:] @ now[:, -1:, :-1] / count
        right += wanted[..., :-1] - wanted[..., -1:] @ now[:, -1:, :-1] / count
    diagonal = system.diagonal(dim1=1, dim2=2)
    damping = (ridge * diagonal.mean(dim=1, keepdim=True)).expand_as(diagonal).clone()
    damping[diagonal <= 0] = 1.0  # a dead column keeps its weight, whatever the scale
    factor, failed = torch.linalg.cholesky_ex(system + torch.diag_embed(damping))
    if bool(failed.any()):
        return None
    weight = torch.cholesky_solve((right + start * damping.unsqueeze(1)).mT, factor).mT
    if not bool(weight.isfinite().all()):
        return None
    return [torch.cat([weight, _bias(use, weight)], dim=-1) for use in uses]


def _bias(use: Use, weight: Tensor) -> Tensor:
    """The bias that fits a weight best: [g, n, 1]; the present one (none) where the use has none of its own."""
    if not use.biased:
        return use.target[..., -1:]
    return (use.wanted[..., -1:] - weight @ use.now[:, :-1, -1:]) / use.now[:, -1:, -1:]


def restore_shared(
    before: Analysis, shared: Sequence[Mapping[str, str]], batches: Sequence[Sequence[Tensor]],
    progress: Progress | None = None,
) -> Restoration:  # fmt: skip
    """Refits of shared weights and of the biases beside them, in graph order, each seeing the upstream as refitted so
    far. `before` is the program whose branches have their own weights; `shared` says for each set of branches which
    weights go and which are used instead (`shared_weights`).

    Weights that read the same values (queries, keys and values) are refitted together. The last batch judges: refits
    that do not lower the divergence of the model's output there are rejected, and what is shared stays the copy.

    Raises:
        InputError: the calibration data is empty or makes an activation that is not finite.
    """
    if not batches:
        raise InputError("restoration needs calibration data, which is empty", remedy="give at least one batch")
    return _Restorer(before, shared, batches).run(progress)


@dataclass(frozen=True)
class _Sites:
    """The calls of one shared weight, that of the branch whose weight it is first."""

    consumers: tuple[Consumer, ...]

    @property
    def sources(self) -> tuple[fx.Node, ...]:
        return tuple(c.source for c in self.consumers)


class _Restorer:
    def __init__(
        self, before: Analysis, shared: Sequence[Mapping[str, str]], batches: Sequence[Sequence[Tensor]]
    ) -> None:
        self._program, self._batches = before.program, batches
        self._order = {node: i for i, node in enumerate(before.program.graph.nodes)}
        self._original, self._now = Evaluator(before.program), Evaluator(before.program)
        for replaced in shared:
            for name, kept in replaced.items():
                self._now.set_weight(name, before.program.weights[kept])
        self._wanted = self._original.run(batches[-1])
        self._cost = self._divergence()
        self._weights: dict[str, Tensor] = {}
        self._rows: list[RestoredConsumer] = []
        self._warnings: list[str] = []  # of too few tokens
        self._said: list[str] = []  # what else could not be done
        self._together = self._grouped(before, shared)

    def _grouped(self, before: Analysis, shared: Sequence[Mapping[str, str]]) -> list[list[_Sites]]:
        """Weights that read the same values, in the order of the graph."""
        consumers = {c.weight: c for c in find_consumers(before.axes)[0]}
        found: dict[tuple[fx.Node, ...], list[_Sites]] = {}
        for replaced in shared:
            for kept in dict.fromkeys(replaced.values()):
                names = [kept, *(n for n, k in replaced.items() if k == kept)]
                if missing := [n for n in names if n not in consumers]:
                    self._said.append(f"not refitted, only shared: {missing[0]} is no weight of a linear map")
                    continue
                sites = _Sites(tuple(consumers[n] for n in names))
                found.setdefault(sites.sources, []).append(sites)
        return sorted(found.values(), key=lambda group: min(self._order[c.node] for c in group[0].consumers))

    def run(self, progress: Progress | None) -> Restoration:
        for number, group in enumerate(self._together):
            if progress is not None:
                progress(group[0].consumers[0].weight, number, len(self._together))
            self._refit(group)
        said = tuple(self._said)
        return Restoration(self._weights, tuple(self._rows), (*self._warnings, *said), Selection({}), said)

    def _refit(self, group: Sequence[_Sites]) -> None:
        """Refits the weights that read the same values; all are taken, or none is."""
        moments = self._moments(group[0])
        fits = [_Fit.of(self._uses(sites, moments), self._start(sites)) for sites in group]
        values: dict[str, Tensor] = {}
        for sites, fit in zip(group, fits, strict=True):
            for consumer, solution in zip(sites.consumers, fit.solutions, strict=fit.ridge is not None):
                values |= consumer.stored(self._program, solution[..., :-1], solution[..., -1])
        old = {name: self._now.weight(name) for name in values}
        self._set(values)
        cost = self._divergence() if values else self._cost
        accepted = bool(values) and cost < self._cost
        if accepted:
            self._cost = cost
            replaced = {c.weight for sites in group for c in sites.consumers[1:]}
            self._weights |= {name: value for name, value in values.items() if name not in replaced}
        else:
            self._set(old)
        for sites, fit in zip(group, fits, strict=True):
            self._report(sites, fit, accepted and fit.ridge is not None)

    def _moments(self, sites: _Sites) -> list[tuple[SecondMoment, SecondMoment]]:
        """For each call, the moments of [Z X 1] over the training and over the held-out part."""
        walk = CalibrationWalk(self._now, self._batches, self._original)
        found: dict[Consumer, tuple[SecondMoment, SecondMoment]] = {}
        for consumer in sorted(sites.consumers, key=lambda c: self._order[c.node]):
            walk.advance_to(consumer.node)
            columns = [consumer.columns(value) for value in walk.values(consumer.source)]
            both = [torch.cat([z, x], dim=2) for x, z in zip(columns[::2], columns[1::2], strict=True)]
            found[consumer] = walk.split(both, SecondMoment.over, passes=1)
        return [found[c] for c in sites.consumers]

    def _uses(self, sites: _Sites, moments: Sequence[tuple[SecondMoment, SecondMoment]]) -> list[tuple[Use, Use]]:
        """Training and held-out part of what each call asks for."""
        uses = []
        for consumer, parts in zip(sites.consumers, moments, strict=True):
            matrix, bias = consumer.parameters(self._program)
            last = torch.zeros_like(matrix[..., :1]) if bias is None else bias.unsqueeze(-1)
            target = torch.cat([matrix, last], dim=-1).double()
            train, held_out = (Use(target, moment, bias is not None) for moment in parts)
            uses.append((train, held_out))
        return uses

    def _start(self, sites: _Sites) -> Tensor:
        return sites.consumers[0].parameters(self._program)[0].double()

    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._now.set_weight(name, value)

    def _divergence(self) -> float:
        return divergence(self._program.output_names, self._wanted, self._now.run(self._batches[-1]))

    def _report(self, sites: _Sites, fit: _Fit, accepted: bool) -> None:
        first, columns = sites.consumers[0], fit.columns
        reason = "" if accepted else "no ridge lowered the residual on held-out data"
        if not accepted and fit.ridge is not None:
            reason = "it did not lower the divergence of the output on held-out data"
        ridge, after = (fit.ridge, fit.after) if accepted else (None, fit.before)
        row = RestoredConsumer(
            first.node.name,
            first.weight,
            columns,
            columns,
            fit.tokens,
            accepted,
            ridge,
            fit.before,
            after,
            reason,
            columns + first.shifted,
        )
        self._rows.append(row)
        self._warnings += few_tokens(first.weight, fit.tokens, columns)


@dataclass(frozen=True)
class _Fit:
    """A shared weight with each use's bias, refitted at the ridge that held-out data likes best: nothing, where none
    improves on what is shared."""

    solutions: tuple[Tensor, ...]
    ridge: float | None
    before: float  # relative residual on held-out data
    after: float
    tokens: int
    columns: int

    @staticmethod
    def of(uses: Sequence[tuple[Use, Use]], start: Tensor) -> _Fit:
        train, held_out = [u for u, _ in uses], [u for _, u in uses]
        scale = max(sum(u.energy for u in held_out), 1e-300)
        copies = [torch.cat([start, u.target[..., -1:]], dim=-1) for u in held_out]
        before = sum(u.residual(copy) for u, copy in zip(held_out, copies, strict=True)) / scale
        best: tuple[float, float | None, tuple[Tensor, ...]] = before, None, ()
        for ridge in LADDER:
            solutions = solve_shared(train, start, ridge)
            if solutions is not None:
                error = sum(u.residual(s) for u, s in zip(held_out, solutions, strict=True)) / scale
                if error < best[0]:
                    best = error, ridge, tuple(solutions)
        tokens = sum(u.moment.count for u, _ in uses) + sum(u.moment.count for _, u in uses)
        return _Fit(best[2], best[1], before, best[0], tokens, start.shape[-1])
