"""The standardised budget: one ranking of all positions of all groups, by scores that are made comparable group by
group (An 2024, FLAP, section 3.2).

A score becomes (score - mean) / deviation, over the positions of its group; then the lowest go, wherever they lie,
until the budget is met. What a position costs (a value dimension of every head, a neuron) counts in the budget, not in
the ranking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Group
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import PlanError
from fxslim.passes.budget import TOLERANCE, check_share, step_of

__all__ = ["standardised_counts", "standardised_levels"]


def standardised_levels(scores: Tensor) -> Tensor:
    """What the positions that go 1st, 2nd, ... score after standardisation: [size], ascending, for scores
    [*batch, size]. All rows of the batch axes lose their lowest together; of these the mean counts."""
    scores = scores.double()
    deviation = scores.std(correction=0)
    scaled = (scores - scores.mean()) / deviation if float(deviation) > 0 else torch.zeros_like(scores)
    return scaled.sort(dim=-1).values.reshape(-1, scores.shape[-1]).mean(0)


def standardised_counts(
    groups: Sequence[Group], scores: Mapping[str, Tensor], keep: float, of: Target, costs: CostModel, round_to: int = 1
) -> dict[Axis, int]:
    """Counts at which at most the share `keep` of all parameters (or MACs) remains, by `scores` [*batch, size] of the
    groups by name. Each group keeps one multiple of `round_to` at least.

    Raises:
        InputError: `keep` is not in (0, 1].
        PlanError: the target cannot be met; the message names the smallest share that can.
    """
    check_share(keep, "keep")
    counts, total = {g.axis: g.size for g in groups}, costs.whole(of)
    for _, axis, count in sorted(_steps(groups, scores, round_to), key=lambda step: step[0]):
        if costs.of(of, counts) <= keep * total:
            return counts
        counts[axis] = count
    share = costs.of(of, counts) / total
    if share > keep + TOLERANCE:
        raise PlanError(
            f"keep={keep:g} of the {of} cannot be met: with all cuttable groups at their smallest {share:.4f} remains",
            remedy="ask for more, allow more groups (inexact ones), or use a smaller round_to",
        )
    return counts


def _steps(groups: Sequence[Group], scores: Mapping[str, Tensor], round_to: int) -> list[tuple[float, Axis, int]]:
    """Every portion of positions that may go: its mean score, its axis, and how many stay then. Within a group scores
    ascend, so that sorting keeps the order."""
    steps = []
    for group in groups:
        unit, levels = step_of(group, round_to), standardised_levels(scores[group.name])
        sizes = range((group.size - 1) // unit * unit, 0, -unit)
        before = group.size
        for size in sizes:
            gone = levels[group.size - before : group.size - size]
            steps.append((float(gone.mean()), group.axis, size))
            before = size
    return steps
