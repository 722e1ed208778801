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
    division = _Division(groups, curves, of, costs, round_to)
    division.shrink(keep)
    if division.now > (keep + TOLERANCE) * division.total:
        raise PlanError(
            f"keep={keep:g} of the {of} cannot be met: with all cuttable groups at their smallest "
            f"{division.now / division.total:.4f} remains",
            remedy="ask for more, allow more groups (inexact ones), or use a smaller round_to",
        )
    return division.counts


class _Division:
    """The counts on their way from whole groups down to a budget."""

    def __init__(
        self, groups: Sequence[Group], curves: Mapping[str, Tensor], of: Target, costs: CostModel, round_to: int
    ) -> None:
        self.groups, self.curves, self.of, self.costs = groups, [curves[g.name] for g in groups], of, costs
        self.counts: dict[Axis, int] = {g.axis: g.size for g in groups}
        self.total, self.now = costs.whole(of), costs.of(of)
        self._units = [step_of(g, round_to) for g in groups]
        self._hulls = [_hull(_offers(g, c, round_to), c) for g, c in zip(groups, self.curves, strict=True)]
        self._queue: list[tuple[float, int, int]] = []  # price, number of the group, step on its hull

    def shrink(self, keep: float) -> None:
        """Takes the cheapest steps of all groups until the share `keep` is met, or none is left."""
        for index in range(len(self.groups)):
            self._offer(index, 0)
        while self.now > keep * self.total and self._queue:
            _, index, step = heapq.heappop(self._queue)
            price = self._price(index, step)
            if self._queue and price > self._queue[0][0] * (1 + 1e-9):  # others were cut since: it saves less now
                heapq.heappush(self._queue, (price, index, step))
                continue
            self.counts[self.groups[index].axis] = self._hulls[index][step + 1]
            self.now = self.costs.of(self.of, self.counts)
            self._offer(index, step + 1)
        self._give_back(keep * self.total)

    def _offer(self, index: int, step: int) -> None:
        if step + 1 < len(self._hulls[index]):
            heapq.heappush(self._queue, (self._price(index, step), index, step))

    def _price(self, index: int, step: int) -> float:
        """What the next smaller size loses for each unit that it saves."""
        size, smaller = self._hulls[index][step : step + 2]
        saved = self.now - self._cost_with(index, smaller)
        lost = float(self.curves[index][smaller] - self.curves[index][size])
        return lost / saved if saved > 0 else float("inf")

    def _cost_with(self, index: int, count: int) -> int:
        return self.costs.of(self.of, {**self.counts, self.groups[index].axis: count})

    def _give_back(self, budget: float) -> None:
        """Steps are coarse: what they saved too much goes back, always where one unit more regains most."""
        while fitting := [f for i in range(len(self.groups)) if (f := self._regained(i, budget)) is not None]:
            _, more, axis = max(fitting, key=lambda f: f[0])
            self.counts[axis] = more

    def _regained(self, index: int, budget: float) -> tuple[float, int, Axis] | None:
        """What one unit more of a group regains, and its count then: None where it does not fit."""
        group, curve = self.groups[index], self.curves[index]
        count = self.counts[group.axis]
        more = min(group.size, count + self._units[index])
        if count == more or self._cost_with(index, more) > budget:
            return None
        return float(curve[count] - curve[more]), more, group.axis


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
