"""Plans of depth: residual branches with the least influence are left out until the budget is met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.latency import Clock
from fxslim.passes.budget import TOLERANCE, check_share
from fxslim.passes.drop_branches import DropBranches, find_branches, influences
from fxslim.passes.plan import Plan
from fxslim.passes.prepare import preparations_of

__all__ = ["plan_depth"]


def plan_depth(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, *, of: Target = "params",
    uncounted: frozenset[str] = frozenset(), clock: Clock | None = None,
) -> tuple[Plan, Analysis]:  # fmt: skip
    """A plan that keeps at most the share `keep` by leaving residual branches out, and the analysis of what remains.

    A branch is the smallest step, so less may remain than was asked for: a note says how much.

    Raises:
        InputError: there is no data, no share, or no residual branch.
        PlanError: leaving all of them out is not enough.
    """
    if keep is None:
        raise InputError("branches are left out for a share of the whole", remedy="give keep instead of width")
    check_share(keep, "keep")
    branches = find_branches(analysis.program)
    if not batches or not branches:
        missing = "calibration data" if not batches else "residual branches, and the model has none"
        raise InputError(f"depth needs {missing}", remedy="give `calibration=`" if not batches else "try --method best")
    found = influences(analysis.program, branches, batches)
    ranked = sorted(found, key=lambda name: found[name])
    costs = CostModel(analysis.axes, uncounted, clock=clock)
    count = _fewest(analysis, ranked, keep * costs.of(of), of, costs)
    if count is None:
        raise PlanError(f"keep={keep:g} of the {of} cannot be met by leaving branches out", remedy="ask for more")
    slim = _without(analysis, ranked[:count])
    after = CostModel(slim.axes, uncounted, clock=clock)
    notes = [f"{name} is left out: influence {found[name]:.4f}" for name in ranked[:count]]
    if count == len(ranked):
        notes.append("no residual branch is left: the stream passes unchanged from what feeds it to what reads it")
    share = after.of(of) / costs.of(of)
    if share < keep - TOLERANCE:
        notes.append(f"{share:.1%} of the {of} remain: a whole branch is the smallest step")
    options: dict[str, Any] = {"keep": keep, "of": of, "depth": True, "uncounted": sorted(uncounted)}
    program = slim.program
    return Plan(program.fingerprint(), (), options, costs.change(after), tuple(notes), preparations_of(program)), slim


def _fewest(analysis: Analysis, ranked: Sequence[str], budget: float, of: Target, costs: CostModel) -> int | None:
    """How many of the branches have to go, None where all are not enough."""
    low, high = 0, len(ranked) + 1
    while low < high:
        middle = (low + high) // 2
        if middle > len(ranked):
            return None
        slim = _without(analysis, ranked[:middle])
        fits = CostModel(slim.axes, costs.uncounted, clock=costs.clock).of(of) <= budget
        low, high = (low, middle) if fits else (middle + 1, high)
    return low if low <= len(ranked) else None


def _without(analysis: Analysis, adds: Sequence[str]) -> Analysis:
    return analyze(DropBranches(tuple(adds))(analysis).program) if adds else analysis
