"""Plans by latency: the least loss within a share of the measured time, on the execution provider that will serve.

The times of single operators divide the budget; the whole model decides. It is measured which multiples sizes should
fall on, and after each plan what it really takes: a plan that misses its target is made again with another one.
Times of single operators are never the whole truth (what a runtime fuses, what is still in its caches): plans that
divide MACs and parameters are measured as well, and of all that are fast enough the one with the least expected loss is
taken.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fxslim.api import Applied, finish
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
from fxslim.passes.planner import Planned, plan_and_restore
from fxslim.passes.prune import Prune
from fxslim.passes.subspaces import leading

__all__ = ["Attempt", "LatencyPlans", "MeasuredPlan"]

T = TypeVar("T")

_PERIOD = 32  # sizes on its multiples are fast on everything that is known
_ANY = object()  # stands for a clock where none is needed yet
_MULTIPLES = (1, 4, 16)
_PROBED = 0.8  # the share of positions around which multiples are compared
_WORTH = 1.03  # a multiple is taken if sizes on it are at most so much slower than those on the period let expect
_WIDE = 2 * _PERIOD  # narrower groups do not take part in the comparison
_ATTEMPTS = 4
_CURRENCIES: tuple[Target, ...] = ("latency", "macs", "params")  # in which a budget of losses is divided by turns
_BELOW_ONE = 0.98  # a target of 1 would be no plan
_NEAR = 0.03  # how far from its target a plan's time may be


@dataclass(frozen=True)
class Attempt:
    """A plan that was tried: the share of the time (or of what `of` says) that it was made for, the share of the time
    that its model took, and the loss that it expects, where its budget is one of losses."""

    target: float
    measured: float
    of: Target = "latency"
    loss: float | None = None


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
        restore, data = options.get("restore"), options.get("calibration")
        options["calibration"] = batches = None if data is None else list(data)
        options["surveys"] = {} if options.get("surveys") is None else options["surveys"]  # the caller's, to be filled
        divided = options.get("budget") == "global" and of == "latency"
        tried: list[Attempt] = []
        best: tuple[Attempt, Planned] | None = None
        try:
            for currency in _CURRENCIES if divided else (of,):
                for found in self._attempts(keep, currency, multiple, options):
                    tried.append(found[0])
                    best = found if best is None else _better(best, found, keep)
        finally:
            self.times.save()
        assert best is not None, "the first attempt is made or refused"
        plan, applied = finish(self.analysis, best[1], restore, batches, options)  # type: ignore[arg-type]
        return MeasuredPlan(plan, applied, keep, multiple, best[0], tuple(tried))

    def _attempts(
        self, keep: float, of: Target, multiple: int, options: dict[str, Any]
    ) -> Iterator[tuple[Attempt, Planned]]:
        """Plans that are tried, with what they take; for the time it does not matter how weights are restored.

        Raises:
            CheckError: there is no plan at all in the first currency.
        """
        tried: list[Attempt] = []
        target = keep
        while len(tried) < _ATTEMPTS:
            try:
                made = plan_and_restore(self.analysis, target, of=of, clock=self.clock, round_to=multiple, **options)
            except PlanError as error:
                if tried or of != "latency":
                    return  # nothing smaller can be made
                raise CheckError(f"no plan pays: {error.what}", at=error.at, remedy=error.remedy) from error
            share = self.share_of(Prune(made.plan)(made.analysis).program)
            tried.append(Attempt(target, share, of, made.plan.predicted.get("loss")))
            yield tried[-1], made
            if abs(share / keep - 1) <= _NEAR:
                return
            target = _next_target(tried, keep)

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


def _better(one: tuple[Attempt, T], other: tuple[Attempt, T], keep: float) -> tuple[Attempt, T]:
    """Of two that are fast enough the one that expects less loss, where both say what they expect, else the slower one;
    the faster one where not both are fast enough."""
    a, b = one[0], other[0]
    slow = max(a.measured, b.measured) > keep * (1 + _NEAR)
    if not slow and a.loss is not None and b.loss is not None:
        return one if (a.loss, a.measured) <= (b.loss, b.measured) else other
    return one if (a.measured <= b.measured) == slow else other
