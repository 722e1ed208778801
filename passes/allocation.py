"""Allocation: one global division of a budget over all groups and low ranks, from what each costs at each size.

Every group offers its sizes with their losses, and every weight that may become a pair its ranks below the break-even;
the least total loss within the budget is a knapsack. On the lower convex hulls of loss against cost the greedy order
(least loss for each unit saved) is optimal up to the last step (Fox 1966).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fxslim.graph.axes.groups import Group
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel, LowRank, Target
from fxslim.graph.errors import PlanError
from fxslim.passes.budget import TOLERANCE, check_share, step_of
from fxslim.passes.low_rank import Matrix

__all__ = ["Allocation", "allocate"]

_STEPS = 64  # sizes that a group offers at most


@dataclass(frozen=True)
class Allocation:
    """What remains: positions of every group, and ranks of the weights that become pairs, by name."""

    counts: dict[Axis, int]
    ranks: dict[str, LowRank]


def allocate(
    groups: Sequence[Group], curves: Mapping[str, Tensor], keep: float, of: Target, costs: CostModel,
    round_to: int = 1, matrices: Sequence[Matrix] = (),
) -> Allocation:  # fmt: skip
    """What remains so that at most the share `keep` of all parameters (or MACs) does, at the least sum of losses; up to
    a point of a hundred more where nothing smaller is left.

    `curves` are losses by name of the group [size + 1], or of the weight [full rank + 1].

    Raises:
        InputError: `keep` is not in (0, 1].
        PlanError: the target cannot be met; the message names the smallest share that can.
    """
    check_share(keep, "keep")
    items = [_Item.of_group(g, curves[g.name], round_to) for g in groups]
    items += [_Item.of_matrix(m, curves[m.weight], round_to) for m in matrices]
    division = _Division(items, of, costs)
    division.shrink(keep)
    if division.now > (keep + TOLERANCE) * division.total:
        raise PlanError(
            f"keep={keep:g} of the {of} cannot be met: with all cuttable groups at their smallest "
            f"{division.now / division.total:.4f} remains",
            remedy="ask for more, allow more groups (inexact ones), or use a smaller round_to",
        )
    return Allocation(*division.state())


@dataclass(frozen=True)
class _Item:
    """What may become smaller: a group, or the rank of a weight."""

    what: Axis | Matrix
    curve: Tensor  # losses at every size
    whole: int
    unit: int
    sizes: tuple[int, ...]  # that are offered, in descending order, the whole first

    @staticmethod
    def of_group(group: Group, curve: Tensor, round_to: int) -> _Item:
        unit = step_of(group, round_to)
        sizes = _thinned(range(unit, group.size, unit), curve)
        return _Item(group.axis, curve, group.size, unit, (group.size, *sizes))

    @staticmethod
    def of_matrix(matrix: Matrix, curve: Tensor, round_to: int) -> _Item:
        sizes = _thinned(range(round_to, matrix.largest + 1, round_to), curve)
        return _Item(matrix, curve, matrix.size, round_to, (matrix.size, *sizes))

    def above(self, size: int) -> int:
        """The next larger size: beyond the largest rank that is worth a pair, the whole weight."""
        more = size + self.unit
        limit = self.what.largest if isinstance(self.what, Matrix) else self.whole
        return more if more <= limit else self.whole


def _thinned(sizes: range, curve: Tensor) -> list[int]:
    """Some of many sizes, the smallest among them, with known losses: in descending order."""
    stride = math.ceil(len(sizes) / _STEPS) or 1
    some = [n for i, n in enumerate(sizes) if (i + 1) % stride == 0 or i == 0]
    return [n for n in reversed(some) if float(curve[n]) < float("inf")]


class _Division:
    """The sizes on their way from the whole down to a budget."""

    def __init__(self, items: Sequence[_Item], of: Target, costs: CostModel) -> None:
        self.items, self.of, self.costs = items, of, costs
        self.sizes = [item.whole for item in items]
        self.total, self.now = costs.whole(of), costs.of(of)
        self._hulls = [self._hull(i) for i in range(len(items))]
        self._queue: list[tuple[float, int, int]] = []  # price, number of the item, step on its hull

    def state(self, index: int | None = None, size: int = 0) -> tuple[dict[Axis, int], dict[str, LowRank]]:
        """Counts and ranks as they are, or with another size of one item."""
        counts: dict[Axis, int] = {}
        ranks: dict[str, LowRank] = {}
        for i, item in enumerate(self.items):
            own = size if i == index else self.sizes[i]
            if isinstance(item.what, Axis):
                counts[item.what] = own
            elif own < item.whole:
                ranks[item.what.weight] = LowRank(item.what.outputs, own)
        return counts, ranks

    def shrink(self, keep: float) -> None:
        """Takes the cheapest steps of all items until the share `keep` is met, or none is left."""
        for index in range(len(self.items)):
            self._offer(index, 0)
        while self.now > keep * self.total and self._queue:
            _, index, step = heapq.heappop(self._queue)
            price = self._price(index, step)
            if self._queue and price > self._queue[0][0] * (1 + 1e-9):  # others were cut since: it saves less now
                heapq.heappush(self._queue, (price, index, step))
                continue
            if price < float("inf"):
                self.sizes[index] = self._hulls[index][step + 1]
                self.now = self._cost()
            self._offer(index, step + 1)
        self._unpair()
        self._give_back(keep * self.total)

    def _cost(self, index: int | None = None, size: int = 0) -> int:
        return self.costs.of(self.of, *self.state(index, size))

    def _offer(self, index: int, step: int) -> None:
        if step + 1 < len(self._hulls[index]):
            heapq.heappush(self._queue, (self._price(index, step), index, step))

    def _price(self, index: int, step: int) -> float:
        """What the next smaller size loses for each unit that it saves."""
        smaller, curve = self._hulls[index][step + 1], self.items[index].curve
        saved = self.now - self._cost(index, smaller)
        lost = float(curve[smaller] - curve[self.sizes[index]])
        return lost / saved if saved > 0 else float("inf")

    def _unpair(self) -> None:
        """Pairs that cost no less than their weights do, now that these are smaller, are weights again."""
        for index, item in enumerate(self.items):
            if isinstance(item.what, Matrix) and self.sizes[index] < item.whole:
                cost = self._cost(index, item.whole)
                if cost <= self.now:
                    self.sizes[index], self.now = item.whole, cost

    def _give_back(self, budget: float) -> None:
        """Steps are coarse: what they saved too much goes back, always where one unit more regains most."""
        while fitting := [f for i in range(len(self.items)) if (f := self._regained(i, budget)) is not None]:
            _, more, index = max(fitting)
            self.sizes[index] = more
        self.now = self._cost()

    def _regained(self, index: int, budget: float) -> tuple[float, int, int] | None:
        """What one unit more of an item regains, and its size then: None where it does not fit."""
        item, size = self.items[index], self.sizes[index]
        more = item.above(size)
        if size == item.whole or self._cost(index, more) > budget:
            return None
        return float(item.curve[size] - item.curve[more]), more, index

    def _hull(self, index: int) -> list[int]:
        """The sizes on the lower convex hull of loss against cost, everything else being whole."""
        item = self.items[index]
        cost = {size: self._cost(index, size) for size in item.sizes}
        hull: list[int] = []
        for size in item.sizes:
            while len(hull) > 1 and _above(*((cost[s], float(item.curve[s])) for s in (hull[-2], hull[-1], size))):
                hull.pop()
            hull.append(size)
        return hull


def _above(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Whether the point b (cost, loss) lies on or above the line from a to c."""
    if a[0] == c[0]:
        return b[1] >= c[1]
    return b[1] >= a[1] + (c[1] - a[1]) * (a[0] - b[0]) / (a[0] - c[0])
