"""Budget: how many positions each group keeps, so that the whole meets a target, at one ratio for all groups
(`allocation` divides it by what each costs)."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError, PlanError

__all__ = [
    "BUDGETS", "TOLERANCE", "Budget", "Widths", "choose_groups", "counts_for_keep", "counts_for_width", "step_of",
]  # fmt: skip

Budget = Literal["uniform", "global", "outliers", "standardised", "influence", "linear"]
BUDGETS: tuple[Budget, ...] = ("uniform", "global", "outliers", "standardised", "influence", "linear")
Widths = Callable[[float], Mapping[Axis, float]]
"""What single groups keep where all others keep a given share: everything at 1, nothing at 0, never less at more."""
TOLERANCE = 0.01  # a target share is met within this
_WHOLE_UNITS = ("heads", "key-value heads")  # units of their own: rounding to a multiple is for widths


def choose_groups(
    analysis: Analysis, *, groups: Sequence[str] | None, keep_fixed: Sequence[str], inexact: bool,
    keep_caches: bool = False,
) -> tuple[list[Group], list[str]]:  # fmt: skip
    """The groups that a plan may cut, and notes on those left out.

    `groups` are kinds (`neurons`) or patterns of group names; `keep_fixed` are patterns of group or weight names
    that stay whole. Inexact groups are left out unless `inexact`, and with `keep_caches` those on which the shape of a
    cache depends.

    Raises:
        InputError: a pattern matches nothing.
    """
    chosen = [g for g in analysis.prunable if g.size > 1]
    if groups is not None:
        for pattern in groups:
            if not any(_matches(g, pattern) for g in analysis.groups):
                raise InputError(f"{pattern!r} matches no kind and no group", remedy="`fxslim groups MODEL` lists both")
        chosen = [g for g in chosen if any(_matches(g, p) for p in groups)]
    for pattern in keep_fixed:
        if not any(_mentions(g, pattern) for g in analysis.groups):
            raise InputError(
                f"keep_fixed: {pattern!r} matches no group and no weight", remedy="`fxslim groups MODEL` lists them"
            )
    chosen = [g for g in chosen if not any(_mentions(g, p) for p in keep_fixed)]
    notes = []
    if keep_caches and (cached := [g for g in chosen if g.caches]):
        notes.append(f"the caches keep their shapes: {len(cached)} groups stay whole, among them {cached[0].name}")
        chosen = [g for g in chosen if not g.caches]
    if not inexact:
        left = [g for g in chosen if not g.exact]
        chosen = [g for g in chosen if g.exact]
        notes += [f"{g.name} ({g.kind}) stays whole: not exact, {g.inexact[0]}" for g in left]
    return chosen, notes


def _matches(group: Group, pattern: str) -> bool:
    return group.kind == pattern or fnmatch.fnmatchcase(group.name, _escape(pattern))


def _mentions(group: Group, pattern: str) -> bool:
    names = (group.name, *(s.weight for s in group.sites), *(f"{s.weight}[{s.dim}]" for s in group.sites))
    return group.kind == pattern or any(fnmatch.fnmatchcase(n, _escape(pattern)) for n in names)


def _escape(pattern: str) -> str:
    """Group names hold `[0]`, which a pattern must not read as a set of characters."""
    return pattern.replace("[", "[[]")


def step_of(group: Group, round_to: int) -> int:
    """The multiple to which a group's count is rounded: 1 for whole units (heads); narrow groups stay whole."""
    if group.kind in _WHOLE_UNITS:
        return 1
    return group.size if group.size < round_to else round_to


def _count(group: Group, width: float, round_to: int) -> int:
    if width >= 1:
        return group.size
    step = step_of(group, round_to)
    rounded = math.floor(group.size * width / step + 0.5) * step
    return min(group.size, max(step, rounded))


def counts_for_width(groups: Sequence[Group], width: float, round_to: int = 1) -> dict[Axis, int]:
    """Counts when every group keeps the share `width` of its positions, rounded to a multiple, never to zero.

    Raises:
        InputError: the width is not in (0, 1].
    """
    check_share(width, "width")
    return {g.axis: _count(g, width, round_to) for g in groups}


def check_share(value: float, name: str) -> None:
    """Raises InputError unless `value` lies in (0, 1]."""
    if not isinstance(value, int | float) or not 0.0 < value <= 1.0:
        raise InputError(f"{name} must lie above 0 and at most 1, got {value}", remedy=f"{name}=0.7 keeps 70 %")


def counts_for_keep(
    groups: Sequence[Group], keep: float, of: Target, costs: CostModel, round_to: int = 1,
    widths: Widths | None = None,
) -> dict[Axis, int]:  # fmt: skip
    """Counts at which the share `keep` of all parameters (or MACs) remains, within 1 %, at one ratio for all groups
    but for those of which `widths` says otherwise.

    Raises:
        InputError: `keep` is not in (0, 1].
        PlanError: the target cannot be met; the message names the smallest share that can.
    """
    check_share(keep, "keep")
    total = costs.whole(of)
    smallest = {g.axis: _count(g, 1e-12, round_to) for g in groups}
    floor = costs.of(of, smallest) / total
    if floor >= 1:
        raise PlanError(f"no cut of these groups saves any of the {of}", remedy="allow more groups (inexact ones)")
    if keep < floor - TOLERANCE:
        raise PlanError(
            f"keep={keep:g} of the {of} cannot be met: with all cuttable groups at their smallest {floor:.4f} remains",
            remedy=f"ask for keep >= {math.ceil(floor * 1000) / 1000:g}, allow more groups (inexact ones), "
            "or use a smaller round_to",
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        counts = _counts(groups, _own(groups, middle, widths), round_to)
        low, high = (middle, high) if costs.of(of, counts) <= keep * total else (low, middle)
    own = _own(groups, low, widths)
    counts = _fill(groups, _counts(groups, own, round_to), own, keep * total, of, costs, round_to)
    share = costs.of(of, counts) / total
    if abs(share - keep) > TOLERANCE and of != "latency":  # there the whole model is measured, and decides
        raise PlanError(
            f"keep={keep:g} of the {of} cannot be met within {TOLERANCE:.0%}: "
            f"the nearest share at one ratio is {share:.4f}",
            remedy=f"ask for keep={share:.4f}" + (", or use a smaller round_to" if round_to > 1 else ""),
        )
    return counts


def _own(groups: Sequence[Group], width: float, widths: Widths | None) -> dict[Axis, float]:
    """The share that each group keeps where the common one is `width`."""
    special = widths(width) if widths is not None else {}
    return {g.axis: special.get(g.axis, width) for g in groups}


def _counts(groups: Sequence[Group], own: Mapping[Axis, float], round_to: int) -> dict[Axis, int]:
    return {g.axis: _count(g, max(own[g.axis], 1e-12), round_to) for g in groups}


def _fill(
    groups: Sequence[Group],
    counts: Mapping[Axis, int],
    own: Mapping[Axis, float],
    budget: float,
    of: Target,
    costs: CostModel,
    round_to: int,
) -> dict[Axis, int]:
    """Rounding moves many groups at once; single steps, the most rounded-down first, use what is left of the budget."""
    result = dict(counts)
    slack = TOLERANCE * costs.of(of) / 2
    for group in sorted(groups, key=lambda g: result[g.axis] - g.size * own[g.axis]):
        if budget - costs.of(of, result) <= slack / 2:
            break
        more = min(group.size, result[group.axis] + step_of(group, round_to))
        if costs.of(of, {**result, group.axis: more}) <= budget + slack / 2:
            result[group.axis] = more
    return result
