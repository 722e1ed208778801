"""The step that costs most, a plan and what it makes of the program, and how its result is kept for a later run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fxslim.api import Applied, apply_plan, compress, for_plan
from fxslim.calibration import restoration_facts
from fxslim.export import resolve_provider
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.errors import FxslimError
from fxslim.graph.program import Program, WeightStore
from fxslim.graph.serialize import load, save
from fxslim.identity import key_of
from fxslim.latency_plans import Attempt, LatencyPlans, MeasuredPlan, refuse_untimed
from fxslim.operator_times import machine_of
from fxslim.outputs import write_json_atomic, write_text_atomic
from fxslim.passes.journal import Journal
from fxslim.passes.plan import Plan
from fxslim.passes.statistics import digest
from fxslim.passes.team import current_team
from fxslim.run_steps import Run
from fxslim.slim_options import SlimOptions
from fxslim.stages import Stages
from fxslim.subject import Subject
from fxslim.time_plan import plan_seconds

__all__ = ["Made", "asked_of", "help_make", "make_slim", "plan_key"]

_SERVING = (
    "evaluation", "opset", "provider", "threads", "latency_seconds", "sizes", "onnx_dtype", "quantize",
    "max_quality_loss", "min_speedup", "max_bytes", "max_parity_error", "model", "calibration", "trust_pt2",
    "trust_remote_code", "stream", "offload_activations",
)  # fmt: skip
"""Options that no plan depends on; model and data are known by their hashes."""

_TIMED = ("opset", "threads", "sizes")  # on which a plan by latency does depend
_PLAN, _FACTS, _SLIM, _PREPARED, _CURVES = "plan.json", "facts.json", "slim", "prepared", "curves.safetensors"


@dataclass(frozen=True)
class Made:
    """A slim program and where it comes from. `restoration` is as `restoration_facts` gives it."""

    plan: Plan
    program: Program
    analysis: Analysis  # of the program that the plan was applied to: subspaces are in their bases there
    restoration: dict[str, Any] | None
    paced: MeasuredPlan | None  # where the plan was made by latency
    curves: Mapping[str, Tensor] = field(default_factory=dict)  # losses at every size that a global budget went by


def asked_of(options: SlimOptions, subject: Subject, run: Run) -> dict[str, Any]:
    """What a plan is asked for, but for its share.

    Raises:
        InputError: the options exclude each other, or it is asked for by latency and cannot be.
    """
    if options.plan is not None:
        return {}
    asked = {
        **options.planning(data=subject.calibration is not None), "calibration": subject.calibration,
        "keep_caches": options.loader_compatible, "progress": run.watcher.progress, "surveys": subject.surveys,
        "curves": {},
    }  # fmt: skip
    if options.of == "latency":
        refuse_untimed(asked)
    return asked


def _expect(options: SlimOptions, subject: Subject, analysis: Analysis, run: Run) -> None:
    """Says how long the plan will take, where that is counted."""
    if options.plan is not None or options.of == "latency" or subject.calibration is None:
        return
    parts: Mapping[str, float] = {}
    with suppress(FxslimError):  # what cannot be planned is refused by the plan, for all processes alike
        parts = plan_seconds(
            analysis, subject.calibration.inputs, options.settings(data=True), groups=options.groups,
            inexact=options.inexact,
        )  # fmt: skip
    if parts:
        run.expect("plan", sum(parts.values()))


def plan_key(options: SlimOptions, subject: Subject) -> str:
    """A name for all that the result of this step depends on."""
    said = {k: v for k, v in vars(options).items() if k not in _SERVING or (options.of == "latency" and k in _TIMED)}
    if options.plan is not None:
        said["plan"] = Path(options.plan).expanduser().read_text(encoding="utf-8")
    data = None if subject.calibration is None else subject.calibration.digest()
    timed = _timing(options, subject) if options.of == "latency" else None
    return "plan-" + key_of(options=said, model=subject.pinned.model, task=subject.source.task, data=data, timed=timed)


def _timing(options: SlimOptions, subject: Subject) -> list[Any]:
    """What a measured time depends on besides the model: the machine, the provider, and the inputs."""
    provider = resolve_provider(options.provider)
    return [provider, machine_of(provider), digest([subject.timed(options, subject.original)["original"]])]


def make_slim(options: SlimOptions, subject: Subject, analysis: Analysis, stages: Stages, run: Run) -> Made:
    """The plan and its slim program, from `stages` where an earlier run has made them.

    Raises:
        FxslimError: it cannot be made.
    """
    key = plan_key(options, subject)
    with run.step("plan"):
        earlier = _earlier(stages.find(key), analysis, stream=options.stream)
        current_team().handed(earlier is not None)  # to those that `help_make`
        if earlier is not None:
            run.resumed.append("plan")
            return earlier
        # Of several processes only one has a journal, and all must make the same calls.
        journal = Journal(stages.steps(key)) if current_team().size == 1 else None
        asked = {**asked_of(options, subject, run), "journal": journal}
        _expect(options, subject, analysis, run)
        plan, applied, paced = _planned(options, subject, analysis, asked)
    with run.step("apply"):
        if applied is None:
            applied = _apply(options, subject, analysis, plan, run, journal)
        restored = applied.restoration
        facts = None if restored is None else restoration_facts(restored, subject.calibration)
        run.resumed += ["restoration"] if journal is not None and journal.found else []
        made = Made(plan, applied.program, applied.analysis, facts, paced, asked.get("curves", {}))
        _keep(stages, key, made, analysis)
    return made


def help_make(options: SlimOptions, subject: Subject, analysis: Analysis, run: Run) -> None:
    """Makes with another process what that one needs for `make_slim`: the same calls in the same order."""
    if current_team().handed(False):
        return  # an earlier run has made it
    plan, applied, _ = _planned(options, subject, analysis, asked_of(options, subject, run))
    if applied is None:
        _apply(options, subject, analysis, plan, run)


def _apply(
    options: SlimOptions, subject: Subject, analysis: Analysis, plan: Plan, run: Run, journal: Journal | None = None
) -> Applied:
    return apply_plan(analysis, plan, options.restore, subject.calibration, run.watcher.progress, journal)


def _planned(
    options: SlimOptions, subject: Subject, analysis: Analysis, asked: Mapping[str, Any]
) -> tuple[Plan, Applied | None, MeasuredPlan | None]:
    """The plan with what it makes of the program, which is None where the plan was given."""
    if options.plan is not None:
        plan = Plan.load(options.plan)
        plan.selection(for_plan(analysis, plan))  # refuses a plan of another model before anything costs time
        return plan, None, None
    if options.of != "latency":
        rounding = 1 if options.round_to is None else options.round_to
        plan, applied = compress(analysis, options.keep, width=options.width, of=options.of, round_to=rounding, **asked)
        return plan, applied, None
    assert options.keep is not None
    with tempfile.TemporaryDirectory(dir=subject.scratch) as scratch:
        work = LatencyPlans(
            analysis, subject.onnx(options.opset).path, lambda p: subject.timed(options, p), provider=options.provider,
            threads=options.threads, scratch=Path(scratch), opset=options.opset,
        )  # fmt: skip
        found = work.compress(options.keep, round_to=options.round_to, **asked)
    return found.plan, found.applied, found


def _keep(stages: Stages, key: str, made: Made, given: Analysis) -> None:
    with stages.keep(key) as folder:
        write_text_atomic(folder / _PLAN, made.plan.to_json())
        write_json_atomic(folder / _FACTS, {"restoration": made.restoration, "paced": _pace(made.paced)})
        save_file({name: losses.contiguous().clone() for name, losses in made.curves.items()}, folder / _CURVES)
        save(made.program, folder / _SLIM)
        if made.analysis.program is not given.program:
            save(made.analysis.program, folder / _PREPARED)


def _earlier(folder: Path | None, given: Analysis, *, stream: bool) -> Made | None:
    """What an earlier run kept in a folder; None where there is none, or it cannot be read back."""
    if folder is None:
        return None
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        analysis, weights = given, given.program.weights
        if (folder / _PREPARED).is_dir():
            analysis = analyze(_placed(load(folder / _PREPARED, stream=stream), weights))
        program = _placed(load(folder / _SLIM, stream=stream), weights)
        plan, curves = Plan.load(folder / _PLAN), load_file(folder / _CURVES)
        plan.selection(analysis)
    except (FxslimError, SafetensorError, OSError, ValueError):
        return None  # whatever is wrong with it, making it again is right
    paced = None if facts["paced"] is None else _paced(facts["paced"], plan, Applied(program, None, analysis))
    return Made(plan, program, analysis, facts["restoration"], paced, curves)


def _placed(program: Program, like: WeightStore) -> Program:
    """The program, which spills and runs where another store's does."""
    program.weights.spill, program.weights.placement = like.spill, like.placement
    return program


def _pace(found: MeasuredPlan | None) -> dict[str, Any] | None:
    """How a plan by latency was found, as JSON values."""
    if found is None:
        return None
    attempts = [asdict(a) for a in found.attempts]
    return {"keep": found.keep, "multiple": found.multiple, "chosen": asdict(found.chosen), "attempts": attempts}


def _paced(facts: Mapping[str, Any], plan: Plan, applied: Applied) -> MeasuredPlan:
    """The same read back."""
    attempts = tuple(Attempt(**a) for a in facts["attempts"])
    return MeasuredPlan(plan, applied, facts["keep"], facts["multiple"], Attempt(**facts["chosen"]), attempts)
