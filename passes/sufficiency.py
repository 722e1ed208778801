"""Whether calibration data suffices: tokens for each column that a refit solves for, and what held-out data says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.select import Selection
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.consumers import find_consumers
from fxslim.passes.restore import FEW_TOKENS, Restoration, RestoredConsumer
from fxslim.passes.statistics import CalibrationWalk
from fxslim.passes.team import ALONE

__all__ = ["Need", "RefitSummary", "expected_needs", "refit_needs", "scarcest", "summarize"]


@dataclass(frozen=True)
class Need:
    """What the refit of one weight has: `tokens` rows of its input for `columns` unknowns of each output."""

    weight: str
    tokens: int
    columns: int

    @property
    def ratio(self) -> float:
        """Tokens for each column."""
        return self.tokens / max(self.columns, 1)

    @property
    def short(self) -> bool:
        """Whether these are fewer than a refit needs to carry over to other data."""
        return self.tokens < FEW_TOKENS * self.columns


@dataclass(frozen=True)
class RefitSummary:
    """All refits in a few numbers. Errors are relative residuals on held-out data: (sliced, as returned)."""

    refits: int
    rejected: int
    tokens_per_column: tuple[float, float]  # smallest, median
    scarcest: str  # the weight with the smallest
    median_error: tuple[float, float]  # of each by itself
    worst_error: tuple[float, float]  # of the weight that is worst as returned
    worst: str  # that weight


def refit_needs(restoration: Restoration) -> tuple[Need, ...]:
    """What every refit had."""
    return tuple(Need(row.weight, row.tokens, row.fitted) for row in restoration.rows)


def expected_needs(analysis: Analysis, selection: Selection, batches: Sequence[Sequence[Tensor]]) -> tuple[Need, ...]:
    """What every refit of a selection will have. One batch is run to count the rows that it gives to each weight;
    the others are taken to give as many for each of their values."""
    walk = CalibrationWalk(Evaluator(analysis.program), batches[:1], team=ALONE)
    share = sum(batch[0].numel() for batch in batches) / max(batches[0][0].numel(), 1)
    needs = []
    for consumer in find_consumers(analysis.axes, selection)[0]:
        walk.advance_to(consumer.node)
        (value,) = walk.values(consumer.source)
        kept = int(consumer.kept_columns(selection).sum(1).max()) + consumer.shifted
        needs.append(Need(consumer.weight, round(consumer.columns(value).shape[1] * share), kept))
    return tuple(needs)


def scarcest(needs: Sequence[Need]) -> Need | None:
    """The one with the fewest tokens for each column, or None where nothing is refitted."""
    return min(needs, key=lambda need: need.ratio, default=None)


def summarize(restoration: Restoration) -> RefitSummary | None:
    """The summary of a restoration, or None where nothing was refitted."""
    least = scarcest(needs := refit_needs(restoration))
    if least is None:
        return None
    rows = restoration.rows
    worst = max(rows, key=lambda row: row.after)
    return RefitSummary(
        len(rows),
        sum(not row.accepted for row in rows),
        (least.ratio, median(need.ratio for need in needs)),
        least.weight,
        (median(row.before for row in rows), median(row.after for row in rows)),
        _errors(worst),
        worst.weight,
    )


def _errors(row: RestoredConsumer) -> tuple[float, float]:
    return row.before, row.after
