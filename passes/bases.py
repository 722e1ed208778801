"""Programs in the bases that a plan means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.errors import InputError, PlanError
from fxslim.passes.caches import CacheMoves, in_new_coordinates
from fxslim.passes.change_basis import ChangeBasis, bases_of
from fxslim.passes.enough import drawn
from fxslim.passes.pairs import find_pairs, pair_bases
from fxslim.passes.plan import Plan
from fxslim.passes.statistics import digest
from fxslim.passes.subspaces import find_subspaces
from fxslim.passes.survey import Survey, fitted, survey

__all__ = ["Rebased", "change_bases", "in_bases", "rebase", "rebase_for"]


@dataclass(frozen=True)
class Rebased:
    """The analysis of a program in other bases, and how its inputs change with them (None where none does)."""

    analysis: Analysis
    moves: CacheMoves | None = None

    def inputs(self, batches: Sequence[Sequence[Tensor]]) -> Sequence[Sequence[Tensor]]:
        """Batches of flat inputs in the coordinates of the program, from those of the original."""
        return in_new_coordinates(self.moves, batches)


def change_bases(analysis: Analysis, found: Survey, names: Sequence[str]) -> Analysis:
    """The analysis of the program in which the named groups are in the bases that the survey found."""
    return rebase(analysis, found, names).analysis


def rebase(analysis: Analysis, found: Survey, names: Sequence[str]) -> Rebased:
    """The program in which the named groups are in the bases that the survey found."""
    chosen = [s for s in found.subspaces if s.group.name in names]
    if not chosen:
        return Rebased(analysis)
    program = ChangeBasis.of(chosen, found.bases)(analysis).program
    return Rebased(analyze(program), CacheMoves.of(analysis.program, chosen, found.bases))


def in_bases(analysis: Analysis, plan: Plan, batches: Sequence[Sequence[Tensor]] | None) -> Analysis:
    """The analysis of the program in the bases of the plan's subspaces: see `rebase_for`."""
    return rebase_for(analysis, plan, batches).analysis


def rebase_for(analysis: Analysis, plan: Plan, batches: Sequence[Sequence[Tensor]] | None) -> Rebased:
    """The program in the bases of the plan's subspaces, estimated from the calibration data; the same where it keeps
    none, or the program is in them already (its inputs are then in its own coordinates).

    Raises:
        InputError: there is no calibration data, or it is not what the plan was made with.
        PlanError: a basis of a group cannot be changed.
    """
    plan.selection(analysis)  # refuses a plan of another model before anything costs time
    missing = [name for name in plan.subspaces if name not in bases_of(analysis.program)]
    metric = plan.options.get("metric")
    if not missing:
        return Rebased(analysis)
    if not batches and metric != "plain":
        raise InputError(
            f"the plan keeps a subspace of {missing[0]!r}, whose basis comes from calibration data",
            remedy="give `calibration=` (--calibration FILE): the data that the plan was made with",
        )
    if plan.options.get("data") not in (None, digest(batches or ())):
        raise InputError(
            "the calibration data is not what the plan was made with: the bases of its subspaces would be others",
            remedy="give the same file, samples, window and seed, or make a new plan",
        )
    if metric is not None:
        pairs = [pair for pair in find_pairs(analysis).values() if pair.group.name in missing]
        return rebase(analysis, pair_bases(analysis, pairs, metric, batches), missing)
    assert batches
    groups = [analysis.group(name) for name in missing]
    found, refused = find_subspaces(analysis, groups)
    if len(found) < len(groups):
        why = refused[0] if refused else "another basis would change its function"
        raise PlanError(f"the plan keeps subspaces of groups that have none: {why}")
    learned, surveyed = fitted(batches), plan.options.get("surveyed")  # plans without it looked at all
    looked_at = learned if surveyed is None else drawn(learned, surveyed)
    return rebase(analysis, survey(analysis, [], found, looked_at), missing)
