"""Plans by latency: the least loss within a share of the measured time, on the execution provider that will serve.

The times of single operators divide the budget; the whole model decides. It is measured which multiples sizes should
fall on, and after each plan what it really takes: a plan that misses its target is made again with another one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fxslim.api import Applied, compress
from fxslim.export import export_onnx, resolve_provider
from fxslim.export.clock import OperatorClock, measure_clock
from fxslim.export.latency import run_times
from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import CheckError, PlanError
from fxslim.graph.program import Program
from fxslim.operator_times import OperatorTimes
from fxslim.passes.budget import choose_groups
from fxslim.passes.options import check_options
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prune import Prune
from fxslim.passes.subspaces import leading

__all__ = ["Attempt", "LatencyPlans", "MeasuredPlan"]

_PERIOD = 32  # sizes on its multiples are fast on everything that is known
_ANY = object()  # stands for a clock where none is needed yet
_MULTIPLES = (1, 4, 16)
_PROBED = 0.8  # the share of positions around which multiples are compared
_WORTH = 1.03  # a multiple is taken if sizes on it are at most so much slower than those on the period let expect
_WIDE = 2 * _PERIOD  # narrower groups do not take part in the comparison
_ATTEMPTS = 4
_BELOW_ONE = 0.98  # a target of 1 would be no plan
_NEAR = 0.03  # how far from its target a plan's time may be


@dataclass(frozen=True)
class Attempt:
    """A plan that was tried: the share of the time that it was made for, and that its model took."""

    target: float
    measured: float


@dataclass(frozen=True)
class MeasuredPlan:
    """The plan that was chosen, what it makes of the program, and how it was found."""

    plan: Plan
    applied: Applied
    keep: float  # the share of the time that was asked for
    multiple: int
    chosen: Attempt
    attempts: tuple[Attempt, ...]

    @property
    def missed(self) -> bool:
        """Whether the plan that was chosen takes clearly more than was asked for."""
        return self.chosen.measured > self.keep * (1 + 2 * _NEAR)


def refuse_untimed(options: Mapping[str, Any]) -> None:
    """Returns if a plan with these options can be made by latency; asked before anything is measured.

    Raises:
        InputError: it chooses ranks alone or shares weights, or an option has no effect.
    """
    check_options({**options, "of": "latency", "clock": _ANY})  # type: ignore[typeddict-item]


class LatencyPlans:
    """Makes plans by the time that a model takes on one provider with given flat inputs."""

    def __init__(
        self, analysis: Analysis, original: Path, pair_of: Callable[[Program], Mapping[str, Sequence[Tensor]]], *,
        provider: str, threads: int, scratch: Path, opset: int | None = None, times: OperatorTimes | None = None,
    ) -> None:  # fmt: skip
        """`original` is the ONNX file of the program, `pair_of` says with which flat inputs it and a slim one of it are
        timed, as `original` and `slim` (those of caches may differ); models that are tried are written to `scratch`.

        Raises:
            CheckError: the model or an operator does not run on the provider.
        """
        self.analysis, self.original, self.scratch = analysis, original, scratch
        self.pair_of, self.inputs = pair_of, tuple(pair_of(analysis.program)["original"])
        self.provider, self.threads, self.opset = resolve_provider(provider), threads, opset
        self.times = times or OperatorTimes(self.provider, threads)
        self.clock: OperatorClock = measure_clock(
            analysis.axes, original, self.inputs, provider=self.provider, threads=threads, table=self.times.table
        )

    def compress(
        self, keep: float, *, round_to: int | None = None, of: Target = "latency", **options: Any
    ) -> MeasuredPlan:  # fmt: skip
        """The plan whose model takes at most the share `keep` of the time, as near as can be found in a few attempts;
        options are those of `fxslim.compress`. `round_to` None stands for the multiple that is measured to pay; with
        `of` parameters or MACs these are what is divided, and the time alone decides how much of them.

        Raises:
            CheckError: no plan brings the time near the share.
            InputError, VerifyError: as `compress` does.
        """
        refuse_untimed(options if round_to is None else {**options, "round_to": round_to})
        multiple = 1 if round_to is None else round_to
        if round_to is None and not options.get("depth"):  # without branches sizes stay what they are
            multiple = self.preferred_multiple(options.get("keep_fixed", ()))
        self.clock.unit = multiple
        try:
            found = self._attempts(keep, of, multiple, options)
        finally:
            self.times.save()
        attempt, plan, applied = _nearest(found, keep)
        return MeasuredPlan(plan, applied, keep, multiple, attempt, tuple(a for a, *_ in found))

    def _attempts(
        self, keep: float, of: Target, multiple: int, options: dict[str, Any]
    ) -> list[tuple[Attempt, Plan, Applied]]:
        """Plans that were tried, with what they took."""
        found: list[tuple[Attempt, Plan, Applied]] = []
        target, surveys = keep, options.pop("surveys", None)
        surveys = {} if surveys is None else surveys  # an empty one is the caller's, to be filled
        while len(found) < _ATTEMPTS:
            try:
                plan, applied = compress(
                    self.analysis, target, of=of, clock=self.clock, round_to=multiple, surveys=surveys, **options
                )
            except PlanError as error:
                if found:
                    break  # nothing smaller can be made
                raise CheckError(f"no plan pays: {error.what}", at=error.at, remedy=error.remedy) from error
            attempt = Attempt(target, self.share_of(applied.program))
            found.append((attempt, plan, applied))
            if abs(attempt.measured / keep - 1) <= _NEAR:
                break
            target = _next_target([a for a, *_ in found], keep)
        return found

    def share_of(self, program: Program) -> float:
        """The time of a slim program as a share of the original's."""
        path = self.scratch / "tried.onnx"
        export_onnx(program, path, opset=self.opset)
        pair = self.pair_of(program)
        times = self._shortest({"original": (self.original, pair["original"]), "slim": (path, pair["slim"])})
        return times["slim"] / times["original"]

    def preferred_multiple(self, keep_fixed: Sequence[str] = ()) -> int:
        """The smallest multiple on which sizes are as fast for their arithmetic as on multiples of 32.

        All wide groups are a multiple above one size and below another that both are on the period; the time between
        these two is what is expected.
        """
        shapes = [tuple(x.shape) for x in self.inputs]
        key = f"{self.analysis.program.fingerprint()} {shapes} {sorted(keep_fixed)} {self.opset}"
        if key not in self.times.multiples:
            self.times.multiples[key] = self._measured_multiple(keep_fixed)
            self.times.save()
        return self.times.multiples[key]

    def _measured_multiple(self, keep_fixed: Sequence[str]) -> int:
        groups, _ = choose_groups(self.analysis, groups=None, keep_fixed=keep_fixed, inexact=False)
        wide = [g for g in groups if g.size >= _WIDE and not g.batch]
        if not wide:
            return 1
        costs = CostModel(self.analysis.axes)
        ends = {g.axis: max(2 * _PERIOD, int(_PROBED * g.size) // _PERIOD * _PERIOD) for g in wide}
        models, macs = {}, {}
        for name in (0, *_MULTIPLES, _PERIOD):  # how far above the lower end
            counts = {axis: end - _PERIOD + name for axis, end in ends.items()}
            program = Prune(_by_counts(self.analysis, wide, counts))(self.analysis).program
            path = self.scratch / f"multiple-{name}.onnx"
            export_onnx(program, path, opset=self.opset)
            models[str(name)], macs[str(name)] = (path, self.pair_of(program)["slim"]), costs.macs(counts)
        if macs["0"] == macs[str(_PERIOD)]:
            return 1  # no product grows with them
        times = self._shortest(models)
        lower, upper = times["0"], times[str(_PERIOD)]
        for multiple in _MULTIPLES:
            share = (macs[str(multiple)] - macs["0"]) / (macs[str(_PERIOD)] - macs["0"])
            if times[str(multiple)] <= _WORTH * (lower + share * (upper - lower)):
                return multiple
        return _PERIOD

    def _shortest(self, models: dict[str, tuple[Path, Sequence[Tensor]]]) -> dict[str, float]:
        """The shortest run of each, in s, after turns in random order: whatever else runs on the machine only adds."""
        order, times = random.Random(0), {name: float("inf") for name in models}
        for _ in range(2):
            names = list(models)
            order.shuffle(names)
            for name in names:
                path, inputs = models[name]
                times[name] = min(times[name], *run_times(path, inputs, self.provider, self.threads))
        return times


def _next_target(attempts: Sequence[Attempt], keep: float) -> float:
    """The target to try next: between the nearest that was too slow and the nearest that was too fast, else in
    proportion to what the last one missed."""
    slow = [a for a in attempts if a.measured > keep]
    fast = [a for a in attempts if a.measured <= keep]
    if not slow or not fast:
        last = attempts[-1]
        return min(_BELOW_ONE, max(0.01, last.target * keep / last.measured))
    above, below = min(slow, key=lambda a: a.target), max(fast, key=lambda a: a.target)
    share = (keep - below.measured) / (above.measured - below.measured)
    return below.target + min(0.8, max(0.2, share)) * (above.target - below.target)


def _by_counts(analysis: Analysis, groups: Sequence[Group], counts: Mapping[Axis, int]) -> Plan:
    """A plan that keeps the first positions of every group: for time it does not matter which."""
    cuts = tuple(Cut.from_mask(g, leading(g, counts[g.axis])) for g in groups)
    return Plan(analysis.program.fingerprint(), cuts)


def _nearest(found: Sequence[tuple[Attempt, Plan, Applied]], keep: float) -> tuple[Attempt, Plan, Applied]:
    """The slowest of those that are fast enough; else the fastest."""
    enough = [f for f in found if f[0].measured <= keep * (1 + _NEAR)]
    return max(enough, key=lambda f: f[0].measured) if enough else min(found, key=lambda f: f[0].measured)
