"""Making plans: which groups, how many positions of each, and which ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.roles import STREAM
from fxslim.graph.errors import InputError, LocalError, PlanError, VerifyError
from fxslim.passes.depth import plan_depth
from fxslim.passes.fold_norms import FoldNorms
from fxslim.passes.options import PlanOptions, check_options, patterns, uncounted_names
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.planning import Planned, Planning
from fxslim.passes.prepare import preparations_of, prepare
from fxslim.passes.rank_schedule import SLOPE
from fxslim.passes.ranks import plan_ranks
from fxslim.passes.rounds import cuts_in_rounds
from fxslim.passes.sharing import plan_sharing
from fxslim.passes.subspaces import find_subspaces
from fxslim.passes.team import current_team

__all__ = ["PlanOptions", "Planned", "make_plan", "plan_and_restore"]


def make_plan(
    analysis: Analysis,
    keep: float | None = None,
    *,
    calibration: Sequence[Sequence[Tensor]] | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """A plan for a program.

    `keep` is the share of all parameters (or MACs, `of`) that remains, `width` instead the share of positions that
    every chosen group keeps. An importance that needs data chooses by `calibration`, batches of flat inputs, and cuts
    what FASP cuts (neurons, channels, the value dimensions inside heads) unless `groups` says otherwise. See
    `PlanOptions` for the rest.

    Raises:
        InputError: an option is out of range or a pattern matches nothing.
        PlanError: the target cannot be met.
    """
    return plan_and_restore(analysis, keep, calibration=calibration, **options).plan


def plan_and_restore(
    analysis: Analysis,
    keep: float | None = None,
    *,
    calibration: Sequence[Sequence[Tensor]] | None = None,
    **options: Unpack[PlanOptions],
) -> Planned:
    """A plan as `make_plan` makes it, with what was found out on the way.

    The restoration is the one that restoring the finished plan on the same data would give.
    """
    check_options(options)
    if options.get("metric") is not None:
        return _ranks(analysis, keep, calibration, options)
    if options.get("depth") or options.get("share"):
        of, left = options.get("of", "params"), uncounted_names(analysis, patterns(options.get("uncounted", ())) or [])
        if options.get("depth"):
            clock = options.get("clock") if of == "latency" else None
            return Planned(*plan_depth(analysis, keep, calibration, of=of, uncounted=left, clock=clock), None)
        progress = options.get("progress")
        return Planned(*plan_sharing(analysis, keep, calibration, of=of, uncounted=left, progress=progress), None)
    if options.get("streams"):
        return _with_streams(analysis, keep, calibration, options)
    work = Planning(analysis, keep, calibration, options)
    return _in_rounds(work, options) if options.get("rounds", 1) > 1 else work.planned(work.counts())


def _in_rounds(work: Planning, options: PlanOptions) -> Planned:
    """The plan whose positions are chosen in several rounds; how many there are is decided on the original."""
    counts = work.counts()
    number = {g.name: counts[g.axis] for g in work.chosen if counts[g.axis] < g.size}

    def choose(analysis: Analysis, left: Mapping[str, int]) -> tuple[Cut, ...]:
        own: PlanOptions = {**options, "groups": list(left), "keep_fixed": ()}
        step = Planning(analysis, work.keep, work.batches, own)
        return step.planned({g.axis: left[g.name] for g in step.chosen}).plan.cuts

    rounds, schedule = options.get("rounds", 1), options.get("schedule", "geometric")
    cuts = cuts_in_rounds(work.analysis, number, rounds, schedule, choose, work.batches, work.progress)
    program, made = work.analysis.program, {**work.options(), "rounds": rounds, "schedule": schedule}
    predicted, steps = work.costs.change(counts=counts), preparations_of(program)
    return Planned(Plan(program.fingerprint(), cuts, made, predicted, tuple(work.notes), steps), work.analysis, None)


def _ranks(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, options: PlanOptions
) -> Planned:
    metric = options.get("metric")
    assert metric is not None
    plan, opened = plan_ranks(
        analysis, keep, batches, metric, budget=options.get("budget", "uniform"), of=options.get("of", "params"),
        round_to=options.get("round_to", 1), groups=patterns(options.get("groups")),
        keep_fixed=patterns(options.get("keep_fixed", ())) or (),
        uncounted=uncounted_names(analysis, patterns(options.get("uncounted", ())) or []),
        progress=options.get("progress"), slope=options.get("slope", SLOPE),
    )  # fmt: skip
    return Planned(plan, opened, None)


def _with_streams(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, options: PlanOptions
) -> Planned:
    """The plan with open residual streams, or the one without where it is expected to lose less: plain norms cost time,
    and matrices between streams parameters."""
    wide, why = _wide(analysis, keep, batches, options)
    if wide is not None and wide.budget != "global":
        return wide.planned(wide.kept)
    if wide is None and patterns(options.get("groups")) == [STREAM]:
        said = why[0] if why else "something else than norms and linear maps touches each, or there is none"
        raise PlanError(f"no residual stream of the model can be cut: {said}", remedy="try --method best")
    narrow = Planning(analysis, keep, batches, options, known=None if wide is None else wide.found)
    narrow.notes += why
    if wide is None or not wide.cuts_streams():
        return narrow.planned(narrow.counts())
    try:
        counts = narrow.counts()
    except PlanError:
        return wide.planned(wide.kept)  # only streams bring the budget within reach
    return narrow.planned(counts) if narrow.expected <= wide.expected else wide.planned(wide.kept)


def _wide(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, options: PlanOptions
) -> tuple[Planning | None, list[str]]:
    """The planner of the program with plain norms, with its counts made; or why there is none."""
    try:
        opened = prepare(analysis, [FoldNorms.name])
    except VerifyError as error:
        return None, [f"residual streams stay closed: with plain norms {error.what}"]
    if not any(s.stream for s in find_subspaces(opened, opened.prunable)[0]):
        return None, []
    try:
        work = Planning(opened, keep, batches, options, original=analysis)
        work.counts()
    except (PlanError, InputError) as error:  # of a weight that is folded away; the closed program raises the others
        if isinstance(error, LocalError) and current_team().size > 1:
            raise  # the others would wait for this process
        return None, [f"residual streams stay closed: {error.what}"]
    return work, []
