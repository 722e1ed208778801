"""The time of a program, whole or under given counts of its axes: the sum of what a clock says of its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from fxslim.graph.axes.analysis import Axes
from fxslim.graph.axes.terms import Axis
from fxslim.graph.jobs import Job, find_jobs
from fxslim.graph.program import bind_symbols
from fxslim.graph.sizes import Counter

if TYPE_CHECKING:
    from fxslim.graph.costs import LowRank

__all__ = ["Clock", "TimeModel"]


class Clock(Protocol):
    """Knows how long jobs take where the model is to run."""

    inputs: Sequence[Tensor]
    """The flat inputs at whose sizes it measures."""

    fixed: float
    """What every run takes beside its jobs, in ns."""

    def nanoseconds(self, job: Job, whole: tuple[int, ...], sizes: tuple[int, ...]) -> float:
        """The time of a job at these sizes, of at most `whole`, in ns."""


class TimeModel:
    """Times of a program from those of its jobs."""

    def __init__(self, axes: Axes, clock: Clock) -> None:
        self.clock = clock
        self.jobs = find_jobs(axes)
        self._counter = Counter(bind_symbols(axes.program, clock.inputs))
        self._whole = [self._sizes(job, {}) for job in self.jobs]
        self._atoms = [frozenset(a for e in job.sizes for a in axes.terms.atoms(e)) for job in self.jobs]
        self._known: dict[tuple[int, tuple[int, ...], int], float] = {}
        self._unchanged: dict[tuple[frozenset[Axis], frozenset[str]], tuple[float, list[int]]] = {}

    def nanoseconds(self, counts: Mapping[Axis, int] | None, ranks: Mapping[str, LowRank] | None) -> float:
        """The time in ns under given counts, and with the weights in `ranks` as pairs."""
        counts, ranks = counts or {}, ranks or {}
        constant, changed = self._partition(frozenset(counts), frozenset(ranks))
        return self.clock.fixed + constant + sum(self._time(i, counts, ranks) for i in changed)

    def whole(self) -> list[tuple[Job, tuple[int, ...]]]:
        """Every job with its sizes in the program as it is."""
        return list(zip(self.jobs, self._whole, strict=True))

    def _partition(self, counted: frozenset[Axis], paired: frozenset[str]) -> tuple[float, list[int]]:
        """The time of all jobs that no count touches, and the others."""
        key = counted, paired
        if key not in self._unchanged:
            changed = [
                i for i, job in enumerate(self.jobs) if self._atoms[i] & counted or (job.weight or "") in paired
            ]  # fmt: skip
            rest = set(range(len(self.jobs))) - set(changed)
            self._unchanged[key] = sum(self._time(i, {}, {}) for i in sorted(rest)), changed
        return self._unchanged[key]

    def _time(self, index: int, counts: Mapping[Axis, int], ranks: Mapping[str, LowRank]) -> float:
        job = self.jobs[index]
        pair = ranks.get(job.weight) if job.weight else None
        key = index, tuple(counts.get(a, -1) for a in self._atoms[index]), pair.rank if pair else -1
        if key not in self._known:
            sizes, whole = self._sizes(job, counts), self._whole[index]
            if pair is None:
                self._known[key] = self.clock.nanoseconds(job, whole, sizes)
            else:
                self._known[key] = sum(self.clock.nanoseconds(*part) for part in _pair(job, whole, sizes, pair.rank))
        return self._known[key]

    def _sizes(self, job: Job, counts: Mapping[Axis, int]) -> tuple[int, ...]:
        return tuple(self._counter.number(expr, counts) for expr in job.sizes)


def _pair(
    job: Job, whole: tuple[int, ...], sizes: tuple[int, ...], rank: int
) -> list[tuple[Job, tuple[int, ...], tuple[int, ...]]]:
    """The two jobs that stand for one whose weight is a pair."""
    if job.kind == "matmul":
        b, m, k, n = sizes
        return [(job, whole, (b, m, k, min(rank, whole[3]))), (job, whole, (b, m, min(rank, whole[2]), n))]
    if job.kind == "conv":
        return _pair_of_convs(job, whole, sizes, rank)
    return [(job, whole, tuple(2 * s for s in sizes))]  # unknown work: nothing is to be gained


def _pair_of_convs(
    job: Job, whole: tuple[int, ...], sizes: tuple[int, ...], rank: int
) -> list[tuple[Job, tuple[int, ...], tuple[int, ...]]]:
    """The first has the kernel and the strides, the second is 1 x 1."""
    dims = int(job.about[0])
    stride, padding, dilation = job.about[2:5]
    rows, inputs, outputs, groups, *rest = sizes
    places = rest[:dims] if isinstance(padding, str) else [
        max(1, (p + 2 * q - d * (y - 1) - 1) // s + 1)
        for p, y, q, d, s in zip(rest[:dims], rest[dims:], padding, dilation, stride, strict=True)
    ]  # fmt: skip
    one, zero = (1,) * dims, (0,) * dims
    second = replace(job, about=(dims, False, one, zero, one))
    end = (whole[0], min(whole[1:3]), whole[2], 1, *places, *one)
    first_size = (rows, inputs, min(rank, whole[2]), groups, *rest)
    return [(job, whole, first_size), (second, end, (rows, min(rank, end[1]), outputs, 1, *places, *one))]
