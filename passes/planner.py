"""Making plans: which groups, how many positions of each, and which ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.select import Selection
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError
from fxslim.passes.budget import choose_groups, counts_for_keep, counts_for_width
from fxslim.passes.consumers import find_consumers
from fxslim.passes.importance import Chooser, Importance, scores_for, top
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prepare import preparations_of
from fxslim.passes.restore import Progress, Restoration, restore_weights

__all__ = ["PlanOptions", "make_plan", "plan_and_restore"]


class PlanOptions(TypedDict, total=False):
    """What a plan may be asked for, besides the share that remains and the data."""

    width: float | None  # instead of `keep`: the share of positions that every chosen group keeps
    of: Target  # what `keep` is a share of: "params" (default) or "macs"
    importance: Importance  # how positions are chosen: "magnitude" by default
    round_to: int  # counts are multiples of this: 1 by default
    groups: Sequence[str] | None  # kinds or patterns of names: only these are cut
    keep_fixed: Sequence[str]  # patterns of groups or weights that stay whole
    inexact: bool  # also groups that a normalisation or softmax runs over: False by default
    seed: int
    progress: Progress | None


def make_plan(
    analysis: Analysis,
    keep: float | None = None,
    *,
    calibration: Sequence[Sequence[Tensor]] | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """A plan for a program.

    `keep` is the share of all parameters (or MACs, `of`) that remains, `width` instead the share of positions that
    every chosen group keeps. `importance='fasp'` cuts what the paper cuts (neurons, channels, the value dimensions
    inside heads) unless `groups` says otherwise; it chooses by `calibration`, batches of flat inputs. See
    `PlanOptions` for the rest.

    Raises:
        InputError: an option is out of range or a pattern matches nothing.
        PlanError: the target cannot be met.
    """
    return plan_and_restore(analysis, keep, calibration=calibration, **options)[0]


def plan_and_restore(
    analysis: Analysis,
    keep: float | None = None,
    *,
    width: float | None = None,
    of: Target = "params",
    importance: Importance = "magnitude",
    calibration: Sequence[Sequence[Tensor]] | None = None,
    round_to: int = 1,
    groups: Sequence[str] | None = None,
    keep_fixed: Sequence[str] = (),
    inexact: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Plan, Restoration | None]:
    """A plan as `make_plan` makes it, with the restoration that choosing by column scores brings about on the way.

    It is the one that restoring the finished plan on the same data would give; None for other strategies, and where an
    inexact group is cut.
    """
    if (keep is None) == (width is None):
        raise InputError("give either keep or width")
    if of not in ("params", "macs"):
        raise InputError(f"unknown target {of!r}", remedy="choose params or macs")
    if not isinstance(round_to, int) or round_to < 1:
        raise InputError(f"round_to must be a whole number of at least 1, got {round_to}")
    groups = [groups] if isinstance(groups, str) else groups
    keep_fixed = [keep_fixed] if isinstance(keep_fixed, str) else keep_fixed
    chosen, notes = choose_groups(analysis, groups=groups, keep_fixed=keep_fixed, inexact=inexact)
    if importance == "fasp":
        chosen, more = _scored_by_consumers(analysis, chosen, explicit=groups is not None)
        notes += more
    costs = CostModel(analysis.axes)
    if keep is not None:
        counts = counts_for_keep(chosen, keep, of, costs, round_to)
    else:
        assert width is not None
        counts = counts_for_width(chosen, width, round_to)
    cut = [g for g in chosen if counts[g.axis] < g.size]
    restoration: Restoration | None = None
    if importance == "fasp":
        restoration = _by_columns(analysis, cut, counts, calibration, progress)
        masks = {g.name: restoration.selection.kept[g.axis].mask for g in cut}
    else:
        masks = {
            n: top(score, counts[analysis.group(n).axis])
            for n, score in scores_for(importance, analysis, cut, seed).items()
        }
    cuts = tuple(Cut.from_mask(g, masks[g.name]) for g in cut)
    options = {
        "keep": keep, "width": width, "of": of, "importance": importance, "round_to": round_to, "inexact": inexact,
        "seed": seed, "groups": list(groups) if groups is not None else None, "keep_fixed": list(keep_fixed),
    }  # fmt: skip
    plan = Plan(analysis.program.fingerprint(), cuts, options, _predicted(costs, counts), tuple(notes),
                preparations_of(analysis.program))  # fmt: skip
    if any(not g.exact for g in cut):
        restoration = None  # decided behind norms that ran uncut: the finished plan has to be restored by itself
    return plan, restoration


def _scored_by_consumers(analysis: Analysis, groups: list[Group], *, explicit: bool) -> tuple[list[Group], list[str]]:
    """Groups that column scores apply to. Unless asked for by name, an axis whose inner axis is also cut stays whole:
    FASP removes single dimensions inside heads, not heads."""
    nodes = {c.node.name for c in find_consumers(analysis.axes)[0]}
    weighted = [g for g in groups if nodes & set(g.consumers)]
    left = [g for g in groups if g not in weighted]
    notes = [f"{g.name} ({g.kind}) stays whole: no weight sums over it, column scores do not apply" for g in left]
    if explicit:
        return weighted, notes
    outer = {axis for g in weighted for axis in g.batch}
    heads = [g for g in weighted if g.axis in outer or g.kind in ("heads", "key-value heads")]
    notes += [f"{g.name} ({g.kind}) stays whole: what lies inside it is cut" for g in heads]
    return [g for g in weighted if g not in heads], notes


def _by_columns(
    analysis: Analysis, groups: Sequence[Group], counts: dict[Axis, int], calibration: Sequence[Sequence[Tensor]] |
    None, progress: Progress | None,
) -> Restoration:  # fmt: skip
    """Kept positions by column score, each group decided on an upstream that is cut and restored already."""
    if not calibration:
        raise InputError(
            "the importance 'fasp' needs calibration data", remedy="give `calibration=` (--calibration FILE)"
        )
    chooser = Chooser(analysis, groups, counts, calibration)
    return restore_weights(analysis, Selection(), calibration, chooser=chooser, progress=progress)


def _predicted(costs: CostModel, counts: dict[Axis, int]) -> dict[str, Any]:
    return {
        "params": [costs.params(), costs.params(counts)],
        "macs": [costs.macs(), costs.macs(counts)],
        "bytes": [costs.bytes(), costs.bytes(counts)],
    }
