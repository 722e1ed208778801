"""The Python API: capture, analyze, make_plan, apply, prove, save, load; export and checks come from
`fxslim.export`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack, get_args

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import CheckError, InputError, PlanError
from fxslim.graph.program import Program
from fxslim.graph.serialize import load, save
from fxslim.passes.bases import in_bases, rebase_for
from fxslim.passes.journal import Journal
from fxslim.passes.methods import Restore
from fxslim.passes.plan import Plan
from fxslim.passes.planner import Planned, PlanOptions, plan_and_restore
from fxslim.passes.planner import make_plan as _make_plan
from fxslim.passes.prepare import ALWAYS, PREPARATIONS, left_to_repeat
from fxslim.passes.prepare import prepare as _prepare
from fxslim.passes.prove import TOLERANCE, Proof
from fxslim.passes.prove import prove as _prove
from fxslim.passes.prune import Prune
from fxslim.passes.restore import Progress, Restoration, restore_weights
from fxslim.passes.restore_shared import restore_shared
from fxslim.passes.share_branches import before_sharing, shared_weights, sharing_steps
from fxslim.passes.spec import spec_name
from fxslim.passes.statistics import digest
from fxslim.passes.team import current_team

__all__ = [
    "Applied",
    "analyze",
    "apply",
    "apply_plan",
    "capture",
    "compress",
    "finish",
    "load",
    "make_plan",
    "prepare",
    "prove",
    "save",
]

Calibration = Iterable[Sequence[Tensor]]
"""Batches of flat inputs, in the order of `program.input_names` (a `fxslim.data.Batches` is one)."""


@dataclass(frozen=True)
class Applied:
    """A slim program, how its weights were restored (None where they were only sliced), and the analysis of the program
    that the plan was applied to: subspaces are in their bases there."""

    program: Program
    restoration: Restoration | None
    analysis: Analysis


def make_plan(
    program: Program | Analysis,
    keep: float | None = None,
    *,
    calibration: Calibration | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """A plan: what remains of each group of `program`. See `fxslim.passes.planner.PlanOptions` for the options.

    Raises:
        InputError: an option is out of range, or a pattern matches nothing.
        PlanError: the target cannot be met.
    """
    return _make_plan(_analysis(program), keep, calibration=_listed(calibration), **options)


def prepare(program: Program | Analysis, passes: Sequence[str] = ALWAYS) -> Program:
    """The program after passes that open it to more cuts. All preserve its numerics but for `drop-branches` and
    `share-branches`.

    `fold-constants` computes once what depends on weights alone (weight normalisation); `split-fused` splits
    projections that compute q, k and v in one product, so that V alone can be cut;
    `factorise{weights=a.weight+b.weight}` makes each weight [n, k] a pair [r, k], [n, r] with r = min(n, k), whose
    inner axis (kind `rank`) can be cut; `fold-norms` leaves norms nothing but their statistic, so that residual streams
    can be rotated; `drop-branches{adds=add_1+add_5}` leaves residual branches out whole;
    `share-branches{adds=add_1+add_5}` lets branches use the matrices of the first one named. A plan for the result
    repeats them.

    Raises:
        InputError: there is no such pass, its text is malformed, or a weight cannot be factorised.
    """
    return _prepare(_analysis(program), passes).program


def apply(
    program: Program | Analysis,
    plan: Plan,
    restore: Restore | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
) -> Program:
    """The slim program. `restore` is "least-squares", "bias" (biases alone take over the mean of what was removed) or
    "none"; where calibration data is given it defaults to what the plan says, or least squares, else to plain slicing.

    Raises:
        PlanError: the plan was made for another program.
        InputError: restoration was asked for without calibration data, or the data cannot be used.
        VerifyError: the result does not hold what the pass promises (a defect).
    """
    return apply_plan(program, plan, restore, calibration, progress).program


def apply_plan(
    program: Program | Analysis,
    plan: Plan,
    restore: Restore | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Applied:
    """Like `apply`, with a row for every refitted weight. What a `journal` has kept of the restoration is not computed
    again; it keeps the rest."""
    given, batches = _analysis(program), _listed(calibration)
    analysis = for_plan(given, plan)
    by: Restore = restore or plan.options.get("restore") or "least-squares"  # as the plan's method says
    if by not in get_args(Restore):
        raise InputError(f"unknown restoration {by!r}", remedy=f"choose one of {', '.join(get_args(Restore))}")
    if by == "none" or (restore is None and batches is None):
        analysis = in_bases(analysis, plan, batches)
        return Applied(Prune(plan)(analysis).program, None, analysis)
    if batches is None:
        raise InputError("restoration needs calibration data", remedy="give `calibration=`, or restore='none'")
    changed = rebase_for(analysis, plan, batches)
    analysis, data = changed.analysis, changed.inputs(batches)
    if plan.options.get("share"):
        if by == "bias":
            raise _shared_biases()
        restoration = restore_shared(*_unshared(given, plan), batches, progress)
    else:
        restoration = restore_weights(
            analysis, plan.selection(analysis), data, progress=progress, by=by, journal=journal
        )
    return Applied(Prune(plan, restored=restoration.weights)(analysis).program, restoration, analysis)


def compress(
    program: Program | Analysis,
    keep: float | None = None,
    *,
    calibration: Calibration | None = None,
    **options: Unpack[PlanOptions],
) -> tuple[Plan, Applied]:
    """A plan and what it makes of the program: `make_plan` and `apply_plan` in one, with one walk over the calibration
    data where column scores choose and least squares restore.

    Raises:
        InputError, PlanError, VerifyError: as `make_plan` and `apply` do.
    """
    analysis, batches = _analysis(program), _listed(calibration)
    restore = options.get("restore")
    if options.get("share") and restore == "bias":
        raise _shared_biases()
    made = plan_and_restore(analysis, keep, calibration=batches, **options)
    return finish(analysis, made, restore, batches, options)


def finish(
    analysis: Analysis, made: Planned, restore: Restore | None, batches: Sequence[Sequence[Tensor]] | None,
    options: PlanOptions,
) -> tuple[Plan, Applied]:  # fmt: skip
    """A plan as it was made for the program of `analysis`, and what it makes of it: the second half of `compress`.

    Raises:
        InputError, VerifyError: as `apply` does.
        CheckError: the processes that share the data have made different plans.
    """
    _require_one_plan(made.plan, made.analysis.program.weights)
    if restore is not None:  # so that applying the plan again does the same
        made = replace(made, plan=replace(made.plan, options={**made.plan.options, "restore": restore}))
    if made.restoration is not None and made.restoration.by == (restore or "least-squares"):
        program = Prune(made.plan, restored=made.restoration.weights)(made.analysis).program
        return made.plan, Applied(program, made.restoration, made.analysis)
    given = analysis if options.get("share") else made.analysis  # shared weights are refitted from the original ones
    data = made.calibration or batches
    return made.plan, apply_plan(given, made.plan, restore, data, options.get("progress"), options.get("journal"))


def _require_one_plan(plan: Plan, weights: Mapping[str, Tensor]) -> None:
    """Returns if all processes that share the data have made the same plan for the same weights: bases are in them.

    Raises:
        CheckError: else: they run other versions, or on processors that round differently.
    """
    team = current_team()
    if team.size == 1:
        return
    mine = plan.to_json() + digest([weights[name]] for name in sorted(weights))
    if team.handed(mine) != mine:
        raise CheckError(
            "the processes have made different plans of the same statistics",
            rule="what is decided from sums that are shared has to be the same everywhere",
            remedy="run all processes with the same versions and on the same kind of machine",
        )


def prove(
    program: Program | Analysis,
    plan: Plan,
    inputs: Iterable[Sequence[Tensor]] | None = None,
    tolerance: float = TOLERANCE,
    calibration: Calibration | None = None,
) -> Proof:
    """The comparison of the masked original with the slim program in float64, before any restoration.

    A plan that keeps subspaces needs the `calibration` data that their bases come from, unless the program is in them.

    Raises:
        CheckError: an output is not finite, so that nothing can be compared.
        PlanError: the plan was made for another program.
    """
    changed = rebase_for(for_plan(program, plan), plan, _listed(calibration))
    given = _listed(inputs)
    return _prove(changed.analysis, plan, None if given is None else changed.inputs(given), tolerance)


def for_plan(program: Program | Analysis, plan: Plan) -> Analysis:
    """The analysis of the program that a plan is for: its preparations are repeated where they are missing."""
    analysis = _analysis(program)
    if missing := [name for step in plan.prepare if (name := spec_name(step)) not in PREPARATIONS]:
        raise PlanError(
            f"the plan needs the pass {missing[0]!r}, which is not registered here",
            remedy="install the plug-in that has it (report.json names it under `plugins`), or register it",
        )
    repeated = not left_to_repeat(analysis.program, plan.prepare)
    if not plan.prepare or (repeated and analysis.program.fingerprint() == plan.fingerprint):
        return analysis
    try:
        prepared = _prepare(analysis, plan.prepare)
    except InputError as error:
        raise PlanError(
            f"the plan was made for another model: {error.what}",
            at=error.at,
            remedy="make a plan for this model with `fxslim plan`",
        ) from error
    return prepared if prepared.program.fingerprint() == plan.fingerprint else analysis


def _unshared(given: Analysis, plan: Plan) -> tuple[Analysis, list[dict[str, str]]]:
    """The analysis of the program before the plan lets branches share their weights, and for each set of branches the
    weights that go -> those that are used instead.

    Raises:
        InputError: the program has been prepared: the weights that went are not in it any more.
    """
    if given.program.fingerprint() == plan.fingerprint:
        raise InputError(
            "shared weights are refitted from those of all branches, and the program has one set of them already",
            remedy="give the program as it was captured, or restore='none'",
        )
    before = _prepare(given, before_sharing(plan.prepare))
    steps = [step for step in sharing_steps(plan.prepare) if step.spec() not in before.program.history]
    return before, [shared_weights(before.program, step.adds) for step in steps]


def _shared_biases() -> InputError:
    return InputError("shared weights are refitted by least squares", remedy="give restore='none' for copies")


def _analysis(program: Program | Analysis) -> Analysis:
    if isinstance(program, Analysis):
        return program
    if not isinstance(program, Program):
        raise InputError(
            f"expected a Program or an Analysis, got {type(program).__name__}",
            remedy="capture the module first: fxslim.capture",
        )
    return analyze(program)


def _listed(batches: Any) -> list[Sequence[Tensor]] | None:
    if batches is None:
        return None
    listed = [] if isinstance(batches, Tensor | str) else list(batches)
    if isinstance(batches, Tensor | str) or not all(
        isinstance(batch, tuple | list) and all(isinstance(value, Tensor) for value in batch) for batch in listed
    ):
        raise InputError(
            "calibration data must be batches of flat inputs: a list of tuples of tensors",
            remedy="[(x,) for x in batches], or fxslim.data.load_batches for files",
        )
    if not listed:
        raise InputError("the calibration data is empty", remedy="give at least one batch")
    return listed
