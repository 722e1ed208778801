"""Rounds: positions are chosen step by step, each step by what the model computes that the one before it left.

Between two rounds the plan so far is applied to the original and restored, so that every round judges by fresh
statistics of a model that is already compressed (TransAct, Shen 2024). How many positions stay is decided once, on the
original: rounds change which ones. The positions of a round count those that were left; composed with the rounds
before they are positions of the original, and the result is one plan for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.axes.select import Selection
from fxslim.graph.errors import VerifyError
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prune import Prune
from fxslim.passes.restore import Progress, restore_weights

__all__ = ["SCHEDULES", "Schedule", "composed", "counts_by_round", "cuts_in_rounds"]

Schedule = Literal["geometric", "linear"]
SCHEDULES: tuple[Schedule, ...] = ("geometric", "linear")

Choose = Callable[[Analysis, Mapping[str, int]], Sequence[Cut]]
"""The cuts of a program that leave so many positions of each of the named groups."""


def counts_by_round(size: int, count: int, rounds: int, schedule: Schedule = "geometric") -> list[int]:
    """How many of `size` positions are left after each round, `count` after the last.

    A geometric schedule removes the same share of what is left in every round, a linear one the same number. Only the
    last round leaves a single position: an axis of one is none, and the next round would not find its group.
    """
    counts = []
    for number in range(1, rounds):
        done = number / rounds
        left = size * (count / size) ** done if schedule == "geometric" else size + (count - size) * done
        counts.append(max(count, round(left), 2))
    return [*counts, count]


def cuts_in_rounds(
    analysis: Analysis, counts: Mapping[str, int], rounds: int, schedule: Schedule, choose: Choose,
    batches: Sequence[Sequence[Tensor]] | None, progress: Progress | None = None,
) -> tuple[Cut, ...]:  # fmt: skip
    """Cuts of the original that leave `counts` positions, by group name, chosen in `rounds` rounds.

    The models between rounds are the original with the plan so far, restored where there is data. Refits that start
    from refits are no better where measured (docs/methods.md), and the plan alone could not repeat them.

    Raises:
        VerifyError: `choose` did not leave as many positions as it was asked for.
    """
    if not counts:
        return ()
    sizes = {name: counts_by_round(analysis.group(name).size, n, rounds, schedule) for name, n in counts.items()}
    plan, slim = Plan(analysis.program.fingerprint(), ()), analysis
    for number in range(rounds):
        if progress is not None:
            progress(f"round {number + 1}", number, rounds)
        if number:
            slim = _applied(analysis, plan, batches, progress)
        step = choose(slim, {name: own[number] for name, own in sizes.items()})
        plan = replace(plan, cuts=composed(analysis, plan, step))
    left = {cut.group: cut.count for cut in plan.cuts}
    if missed := [name for name, count in counts.items() if left.get(name, analysis.group(name).size) != count]:
        raise VerifyError(f"{missed[0]}: the rounds did not leave {counts[missed[0]]} positions")
    return plan.cuts


def _applied(
    analysis: Analysis, plan: Plan, batches: Sequence[Sequence[Tensor]] | None, progress: Progress | None
) -> Analysis:
    weights = None
    if batches:
        weights = restore_weights(analysis, plan.selection(analysis), batches, progress=progress).weights
    return analyze(Prune(plan, restored=weights)(analysis).program)


def composed(analysis: Analysis, plan: Plan, step: Sequence[Cut]) -> tuple[Cut, ...]:
    """The cuts of a program that come to `plan`, and `step` of what the plan left.

    Raises:
        VerifyError: `step` does not fit what the plan leaves.
    """
    selection, own = plan.selection(analysis), {cut.group: cut for cut in step}
    earlier = {cut.group: cut for cut in plan.cuts}
    groups = [g for g in analysis.groups if g.name in earlier or g.name in own]
    return tuple(
        Cut.from_mask(group, _mask(group, selection, own[group.name])) if group.name in own else earlier[group.name]
        for group in groups
    )


def _mask(group: Group, selection: Selection, cut: Cut) -> Tensor:
    """The positions of the original that a cut of what the selection left keeps: [*batch, size] bool."""
    dims = [(axis,) for axis in (*group.batch, group.axis)]
    left, mask = tuple(selection.size(expr) for expr in dims), cut.mask()
    if tuple(mask.shape) != left:
        raise VerifyError(f"{group.name}: a round saw the sizes {tuple(mask.shape)} where {left} were left")
    result = selection.put(mask, torch.zeros(group.shape, dtype=torch.bool), dims)
    gone = result.sum(-1) == 0  # rows of batch positions that were cut: whatever they keep, they need as many
    result[gone] = torch.arange(group.size) < cut.count
    return result
