"""A clock of the operators: what matrix products, convolutions, attention and the rest take on an execution provider,
at the sizes that a plan may leave, measured on small models of one operator."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fxslim.export.latency import Inputs, run_times
from fxslim.export.operators import operator_model
from fxslim.export.providers import as_check_errors, create_session, resolve_provider
from fxslim.export.running import bound
from fxslim.graph.axes.analysis import Axes
from fxslim.graph.errors import CheckError
from fxslim.graph.jobs import Job
from fxslim.graph.latency import TimeModel

__all__ = ["OperatorClock", "measure_clock"]

_LEVELS = 8  # sizes along a dimension that are measured, in equal steps; between them times are interpolated
_LEAST_RUNS, _MOST_RUNS, _SECONDS = 4, 40, 0.006
_SPREAD = 3.0  # how much longer than alone pointwise operators may take inside a model
_LEAST_SHARE = 0.01  # of a run is the operator's: nothing takes no time
_SLOWER = 1.5  # and how much longer all others: a machine has slow moments; what is beyond is fixed


class OperatorClock:
    """Times of single operators in ns, measured when they are first asked for. `table` holds those that are known, by a
    description of the operator; new ones are added to it."""

    def __init__(self, inputs: Inputs, provider: str, threads: int, table: dict[str, float] | None = None) -> None:
        self.inputs: Sequence[Tensor] = inputs
        self.provider, self.threads = resolve_provider(provider), threads
        self.table = {} if table is None else table
        self.unit = 1  # sizes that are measured are multiples of it
        self.fixed = 0.0
        self.scales = {"pointwise": 1.0, "heavy": 1.0}
        self._overhead: float | None = None
        self._known: dict[str, float] = {}

    def nanoseconds(self, job: Job, whole: tuple[int, ...], sizes: tuple[int, ...]) -> float:
        """The time of a job at these sizes, in ns: between the sizes that are measured, interpolated along each."""
        if 0 in sizes:
            return 0.0  # an empty cache, a group of which nothing is left: there is nothing to do
        levels = [_levels(n, self.unit) for n in whole]
        corners = [_bracket(own, size) for own, size in zip(levels, sizes, strict=True)]
        total = 0.0
        for corner in itertools.product(*corners):
            weight = math.prod(share for _, share in corner)
            if weight:
                total += weight * self._least(job, levels, tuple(place for place, _ in corner))
        return total * self.scales["pointwise" if job.kind == "pointwise" else "heavy"]

    def _least(self, job: Job, levels: Sequence[Sequence[int]], places: tuple[int, ...]) -> float:
        """The time at one of the measured sizes, or at the next larger one along a dimension where that was less: what
        is smaller could be done as what is larger, and what a measurement adds to it is noise."""
        key = f"{job.kind} {job.about} {levels} {places}"
        if key not in self._known:
            sizes = tuple(own[i] for own, i in zip(levels, places, strict=True))
            known = [self.measured(job, sizes)]
            for dim, place in enumerate(places):
                if place + 1 < len(levels[dim]):
                    known.append(self.measured(job, (*sizes[:dim], levels[dim][place + 1], *sizes[dim + 1 :])))
            self._known[key] = min(known)
        return self._known[key]

    def measured(self, job: Job, sizes: tuple[int, ...]) -> float:
        """The time of one operator in ns, alone in a session, without what any session takes."""
        key = f"{job.kind} {job.about} {sizes}"
        if key not in self.table:
            with as_check_errors(self.provider):
                alone = self._run(job, sizes)
                self.table[key] = max(_LEAST_SHARE * alone, alone - self.overhead)
        return self.table[key]

    @property
    def overhead(self) -> float:
        """What a run takes that does next to nothing, in ns."""
        if self._overhead is None:
            self._overhead = self._run(Job("", "pointwise", ("Add",), ()), (1,))
        return self._overhead

    def calibrate(self, model: TimeModel, nanoseconds: float) -> None:
        """Makes the sum over the jobs of a model what the whole model was measured to take: within reason by what
        pointwise operators take inside it, the rest as a part that is fixed."""
        self.scales, self.fixed = {"pointwise": 1.0, "heavy": 1.0}, 0.0
        light = sum(self.nanoseconds(j, n, n) for j, n in model.whole() if j.kind == "pointwise")
        heavy = model.nanoseconds(None, None) - light
        if heavy + light <= 0:
            raise CheckError("no operator of the model takes any time", remedy="give larger inputs")
        if heavy + light >= nanoseconds:
            share = nanoseconds / (heavy + light)
            self.scales = {"pointwise": share, "heavy": share}
        else:
            self.scales["pointwise"] = min(_SPREAD, (nanoseconds - heavy) / light) if light else 1.0
            rest = nanoseconds - light * self.scales["pointwise"]
            self.scales["heavy"] = min(_SLOWER, rest / heavy) if heavy else 1.0
        self.fixed = max(0.0, nanoseconds - heavy * self.scales["heavy"] - light * self.scales["pointwise"])

    def _run(self, job: Job, sizes: tuple[int, ...]) -> float:
        """The shortest of several runs, in ns: whatever else happens on the machine only adds."""
        model, feeds = operator_model(job, sizes)
        session = create_session(
            model, self.provider, threads=self.threads, strict_float32=False, denormals_as_zero=True, spinning=False
        )
        binding = bound(session, feeds, self.provider)
        session.run_with_iobinding(binding)
        times: list[float] = []
        start = time.perf_counter()
        while len(times) < _LEAST_RUNS or (time.perf_counter() - start < _SECONDS and len(times) < _MOST_RUNS):
            before = time.perf_counter()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            times.append(time.perf_counter() - before)
        return 1e9 * min(times)


def measure_clock(
    axes: Axes, path: str | Path, inputs: Inputs, *, provider: str = "auto", threads: int = 1,
    table: dict[str, float] | None = None,
) -> OperatorClock:  # fmt: skip
    """The clock of a machine for the program that `axes` are of: the sum of its operators' times is what the ONNX file
    `path` takes with these flat inputs.

    Raises:
        CheckError: the file or an operator does not run on the provider.
    """
    clock = OperatorClock(inputs, provider, threads, table)
    clock.calibrate(TimeModel(axes, clock), 1e9 * min(run_times(path, inputs, clock.provider, threads)))
    return clock


def _levels(whole: int, unit: int) -> tuple[int, ...]:
    """The sizes along a dimension that are measured, in ascending order."""
    unit = unit if whole >= _LEVELS * unit else 1
    return tuple(sorted({1, whole, *(max(1, round(whole * i / _LEVELS / unit) * unit) for i in range(1, _LEVELS))}))


def _bracket(levels: Sequence[int], size: int) -> tuple[tuple[int, float], tuple[int, float]]:
    """The places of the measured sizes around one, each with its share in the interpolation."""
    last = len(levels) - 1
    upper = next((i for i, level in enumerate(levels) if level >= size), last)
    lower = max((i for i, level in enumerate(levels) if level <= size), default=upper)
    share = 1.0 if upper == lower else (size - levels[lower]) / (levels[upper] - levels[lower])
    return (upper, share), (lower, 1.0 - share)
