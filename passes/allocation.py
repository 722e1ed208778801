"""Allocation: one global division of a budget over all groups, from what each costs at each size.

Every group offers its sizes with their losses; the least total loss within the budget is a knapsack. On the lower
convex hulls of the curves the greedy order (least loss for each unit saved) is optimal up to the last step (Fox 1966).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from torch import Tensor

from fxslim.graph.axes.groups import Group
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import PlanError
from fxslim.passes.budget import TOLERANCE, check_share, step_of

__all__ = ["allocate"]

_STEPS = 64  # sizes that a group offers at most


def allocate(
    groups: Sequence[Group], curves: Mapping[str, Tensor], keep: float, of: Target, costs: CostModel, round_to: int = 1
) -> dict[Axis, int]:
    """Counts at which at most the share `keep` of all parameters (or MACs) remains, at the least sum of losses.

    `curves` are losses by group name: [size + 1].

    Raises:
        InputError: `keep` is not in (0, 1].
        PlanError: the target cannot be met; the message names the smallest share that can.
    """
    check_share(keep, "keep")
    total = costs.of(of)
    counts: dict[Axis, int] = {g.axis: g.size for g in groups}
    hulls = {g.name: _hull(_offers(g, curves[g.name], round_to), curves[g.name]) for g in groups}
    now = total
    queue: list[tuple[float, int, int]] = []
    for index, group in enumerate(groups):
        _offer(queue, index, group, 0, hulls, curves, counts, costs, of, now)
    while now > keep * total and queue:
        _, index, step = heapq.heappop(queue)
        group = groups[index]
        again = _price(group, hulls[group.name], step, curves[group.name], counts, costs, of, now)
        if queue and again > queue[0][0] * (1 + 1e-9):  # others were cut since: it saves less than it did
            heapq.heappush(queue, (again, index, step))
            continue
        counts[group.axis] = hulls[group.name][step + 1]
        now = costs.of(of, counts)
        _offer(queue, index, group, step + 1, hulls, curves, counts, costs, of, now)
    _give_back([g for g in groups if counts[g.axis] < g.size], curves, keep * total, counts, costs, of, round_to)
    if now > (keep + TOLERANCE) * total:
        raise PlanError(
            f"keep={keep:g} of the {of} cannot be met: with all cuttable groups at their smallest "
            f"{now / total:.4f} remains",
            remedy="ask for more, allow more groups (inexact ones), or use a smaller round_to",
        )
    return counts


def _give_back(
    groups: Sequence[Group], curves: Mapping[str, Tensor], budget: float, counts: dict[Axis, int], costs: CostModel,
    of: Target, round_to: int,
) -> None:  # fmt: skip
    """Steps are coarse: what they saved too much goes back, always where one unit more regains most."""
    units = {g.name: step_of(g, round_to) for g in groups}
    while True:
        fitting = []
        for group in groups:
            count = counts[group.axis]
            more = min(group.size, count + units[group.name])
            if count < more and costs.of(of, {**counts, group.axis: more}) <= budget:
                fitting.append((float(curves[group.name][count] - curves[group.name][more]), more, group.axis))
        if not fitting:
            return
        _, more, axis = max(fitting, key=lambda f: f[0])
        counts[axis] = more


def _offer(
    queue: list[tuple[float, int, int]], index: int, group: Group, step: int, hulls: Mapping[str, list[int]],
    curves: Mapping[str, Tensor], counts: Mapping[Axis, int], costs: CostModel, of: Target, now: int,
) -> None:  # fmt: skip
    if step + 1 < len(hulls[group.name]):
        price = _price(group, hulls[group.name], step, curves[group.name], counts, costs, of, now)
        heapq.heappush(queue, (price, index, step))


def _price(
    group: Group, sizes: list[int], step: int, curve: Tensor, counts: Mapping[Axis, int], costs: CostModel,
    of: Target, now: int,
) -> float:  # fmt: skip
    """What the next smaller size loses for each unit that it saves."""
    saved = now - costs.of(of, {**counts, group.axis: sizes[step + 1]})
    return float(curve[sizes[step + 1]] - curve[sizes[step]]) / saved if saved > 0 else float("inf")


def _offers(group: Group, curve: Tensor, round_to: int) -> list[int]:
    """Sizes in descending order, the whole first: multiples of the rounding with known losses."""
    unit = step_of(group, round_to)
    stride = max(1, group.size // unit // _STEPS) * unit
    sizes = [n for n in range(unit, group.size, unit) if n % stride == 0 or n == unit]
    return [group.size, *(n for n in reversed(sizes) if float(curve[n]) < float("inf"))]


def _hull(sizes: list[int], curve: Tensor) -> list[int]:
    """The sizes on the lower convex hull of loss against size."""
    hull: list[int] = []
    for size in sizes:
        while len(hull) > 1 and _above(hull[-2], hull[-1], size, curve):
            hull.pop()
        hull.append(size)
    return hull


def _above(a: int, b: int, c: int, curve: Tensor) -> bool:
    """Whether b lies on or above the line from a to c."""
    line = float(curve[a]) + (float(curve[c]) - float(curve[a])) * (a - b) / (a - c)
    return float(curve[b]) >= line
