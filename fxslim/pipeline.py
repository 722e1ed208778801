"""The pipeline behind `fxslim slim`: from a model to a directory with the slim one, its proof and its report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxslim.api import for_plan, prove
from fxslim.export import LatencyReport, check_onnx, export_onnx, measure_latency
from fxslim.export.peak import own_peak_bytes
from fxslim.gates import Measured, judge, refuse_unmeasured
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError
from fxslim.graph.serialize import save
from fxslim.identity import drift
from fxslim.loader_check import LoaderCheck, check_loader, loader_of
from fxslim.loaders import require_optimum
from fxslim.made import Made, asked_of, help_make, make_slim
from fxslim.memory_plan import predicted_bytes
from fxslim.opening import SLIM
from fxslim.outputs import OutputDirectory, refuse_nameless, write_json_atomic, write_text_atomic
from fxslim.page import render_page
from fxslim.passes.team import current_team, others_at_work
from fxslim.recipe import Pinned, recipe_text
from fxslim.report import Findings, make_report
from fxslim.report_text import render
from fxslim.run_steps import Run, Unwatched, Watcher
from fxslim.slim_options import SlimOptions
from fxslim.stages import Stages
from fxslim.streaming import device_of, refuse_unstreamable, scratch_beside
from fxslim.subject import Subject, open_subject, require_provider
from fxslim.variants import Serving, Variant, make_variant, refuse_narrow, refuse_static, refuse_uncheckable

__all__ = ["SlimOptions", "refuse_early", "refuse_unusable", "slim", "slim_subject", "work_folder"]


def slim(
    options: SlimOptions, out: str | Path, *, overwrite: bool = False, watcher: Watcher | None = None,
    pinned: Pinned | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The report, as it was written to `out` with everything else: ONNX file, slim program, plan, recipe and manifest.

    A failed proof, check or gate does not raise: the directory is complete, and the report's verdict is `FAILED`.
    `pinned` is what the model and the data have to be. A run that ends early, or is killed, leaves what it has found in
    `work_folder(out)`; the next one with the same options goes on from there and removes it. Where several processes
    share the calibration, those that do not lead help with the plan and return an empty report.

    Raises:
        InputError: an option, the model or the data cannot be used. Nothing was written to `out`.
        FxslimError: a step could not be done. Nothing was written to `out`.
    """
    refuse_early(options)
    if not current_team().leads:
        return assist(options, Path(out).expanduser(), pinned or Pinned())
    run, stages = Run(watcher or Unwatched()), Stages(work_folder(out))
    facts = {"command": options.command(Path(out))}
    with OutputDirectory(out, overwrite=overwrite, facts=facts, after=stages.close) as directory:
        try:
            with stages.scratch() as scratch:
                subject = open_subject(options, scratch, run, pinned)
                return slim_subject(subject, options, directory, facts["command"], stages, run)
        finally:
            stages.tidy()


@contextmanager
def helper_scratch(out: Path, options: SlimOptions) -> Iterator[Path]:
    """A folder for a process that does not lead: beside the result where weights are spilled, which a system's
    temporary folder may hold in memory."""
    with scratch_beside(out, wanted=options.stream) as beside:
        if beside is not None:
            yield beside
            return
        with tempfile.TemporaryDirectory(prefix="fxslim-") as made:
            yield Path(made)


def assist(options: SlimOptions, out: Path, pinned: Pinned) -> dict[str, Any]:
    """Helps the process that leads with the plan: the same calls in the same order, and nothing is written."""
    run = Run(Unwatched())
    with helper_scratch(out, options) as scratch:
        subject = open_subject(options, scratch, run, pinned)
        analysis, _ = refuse_unusable(subject, options, run)
        help_make(options, subject, analysis, run)
    return {}


def work_folder(out: str | Path) -> Path:
    """Where a run that writes to `out` keeps what it has found so far."""
    path = Path(out).expanduser()
    refuse_nameless(path)
    return path.with_name(f".{path.name}.work")


def refuse_early(options: SlimOptions) -> None:
    """Returns if nothing is wrong that can be told before the model is opened.

    Raises:
        InputError: something is.
    """
    options.refuse_contradictions()
    options.refuse_bad_planning()
    refuse_unstreamable(options)
    device_of(options.device)
    require_provider(options.provider)
    if options.of == "latency" and (size := current_team().size) > 1:
        raise InputError(
            f"latency is measured by one process, and there are {size}",
            remedy="start it without a launcher, or give --of macs",
        )
    if options.loader_compatible:
        require_optimum()


def slim_subject(
    subject: Subject, options: SlimOptions, directory: Path, command: str, stages: Stages, run: Run
) -> dict[str, Any]:
    """The report of one slim model of a subject; all its files are in `directory` then.

    Raises:
        FxslimError: a step could not be done.
    """
    found = _work(subject, options, directory, command, stages, run)
    report = make_report(found)
    _write(directory, subject, options, found, report)
    return report


def _work(
    subject: Subject, options: SlimOptions, directory: Path, command: str, stages: Stages, run: Run
) -> Findings:  # fmt: skip
    source, original = subject.source, subject.original
    analysis, loader = refuse_unusable(subject, options, run)
    if not options.stream:  # else later: until the proof is done memory is that of calibration alone
        with run.step("export"):
            subject.onnx(options.opset)
    predicted = predicted_bytes(options, analysis, subject.calibration) if options.stream else None
    made = make_slim(options, subject, analysis, stages, run)
    given = for_plan(analysis, made.plan)
    with run.step("prove"):
        proof = prove(made.analysis, made.plan)
    calibrated = own_peak_bytes() if predicted is not None else 0
    with run.step("evaluate"):
        subject.score = subject.score or subject.score_of(original)
        after = subject.score_of(made.program)
        scores = None if subject.score is None or after is None else (subject.score, after)
    path = directory / "model.onnx"
    if options.stream:
        with run.step("export"):
            subject.onnx(options.opset)
    before = subject.onnx(options.opset)
    with run.step("export slim"):
        files = before, export_onnx(made.program, path, opset=options.opset)
    with run.step("check"):
        check = check_onnx(
            made.program, path, original=original, provider=options.provider, seed=options.seed,
            threads=options.threads,
        )  # fmt: skip
    loaded = None if loader is None else _load_again(loader, subject, made, directory, options.opset, run)
    with run.step("latency"):
        latency, shapes = _latency(options, subject, made, before.path, path)
    variants = _variants(options, subject, made, directory, run)
    memory = None
    if predicted is not None:
        memory = {
            "predicted_bytes": predicted, "calibrated_bytes": calibrated, "peak_bytes": own_peak_bytes()
        }  # fmt: skip
    gates = judge(options, Measured(scores, latency, files[1], check, variants))
    opened = {"asked": options.model, "form": options.task, "dtype": options.dtype}
    return Findings(
        source.name, source.task, command, original, given, made.plan, proof, made, subject.calibration,
        subject.evaluation, scores, files, check, latency, shapes, run.seconds, _notes(subject, memory),
        options.provider, opened, variants, loaded, gates, recipe_text(options, subject.pinned),
        tuple(run.resumed), memory, dict(run.estimated),
    )  # fmt: skip


def refuse_unusable(subject: Subject, options: SlimOptions, run: Run) -> tuple[Analysis, str | None]:
    """What the plan is for, and the loader that has to take it; what cannot be done is said before it costs time.

    Raises:
        InputError: the options cannot be met with this model and this data.
    """
    analysis = subject.analysis(options)
    loader = loader_of(subject.source) if options.loader_compatible else None
    if options.quantize == "static":
        refuse_static(subject.original, subject.calibration)
    asked_of(options, subject, run)
    refuse_uncheckable(subject.original, options.provider)
    refuse_narrow(subject.original, [flag for flag in (options.onnx_dtype, options.quantize) if flag is not None])
    refuse_unmeasured(options, scored=subject.evaluation is not None)
    subject.timed(options, subject.original)
    return analysis, loader


def _load_again(
    loader: str, subject: Subject, made: Made, directory: Path, opset: int, run: Run
) -> LoaderCheck:  # fmt: skip
    """Whether optimum takes what was exported, with a config.json that may be changed for it."""
    with run.step("loader"):
        for file in subject.source.companions:
            shutil.copyfile(file, directory / file.name)
        return check_loader(loader, made.program, made.plan, directory, opset)


def _latency(
    options: SlimOptions, subject: Subject, made: Made, before: Path, after: Path
) -> tuple[LatencyReport, dict[str, list[int]]]:
    if options.stream:
        return LatencyReport.unmeasured(options.provider, options.threads), {}
    inputs = subject.timed(options, made.program)
    report = measure_latency(
        {"original": before, "slim": after}, inputs, provider=options.provider, threads=options.threads,
        seconds_budget=options.latency_seconds, seed=options.seed,
    )  # fmt: skip
    names = subject.original.input_names
    return report, {n: list(t.shape) for n, t in zip(names, inputs["original"], strict=True)}


def _variants(
    options: SlimOptions, subject: Subject, made: Made, directory: Path, run: Run
) -> tuple[Variant, ...]:  # fmt: skip
    serving = Serving(
        made.program, subject.source, subject.calibration, subject.evaluation,
        subject.timed(options, made.program)["slim"], options.opset, options.provider, options.threads,
        options.latency_seconds, options.seed,
    )  # fmt: skip
    variants = []
    for kind in filter(None, (options.onnx_dtype, options.quantize)):
        with run.step(kind):
            variants.append(make_variant(kind, directory, serving))
    return tuple(variants)


def _notes(subject: Subject, memory: Mapping[str, int] | None) -> tuple[str, ...]:
    """What the user should know of the model, of a recipe that was made with other versions, and of how it was run."""
    others = others_at_work()
    beside = [f"timed while {others} other processes made other targets: `fxslim bench` times again"] if others else []
    if memory is not None:
        predicted, calibrated, peak = (f"{size / 2**20:,.0f} MiB" for size in memory.values())
        beside.append(
            f"the weights stayed on disk: until the proof the process had at most {calibrated} of memory, "
            f"{predicted} were predicted; with export and check at most {peak}"
        )
    return (*subject.source.notes, *beside, *(f"the recipe was {line}" for line in drift(subject.wanted.versions)))


def _write_page(directory: Path, report: dict[str, Any]) -> None:
    """The page for people. What cannot be drawn is noted, and does not cost the result."""
    try:
        page = render_page(report)
    except Exception as error:  # templates and a plotting library raise anything
        report["notes"].append(f"report.html could not be drawn: {type(error).__name__}: {error}"[:300])
    else:
        write_text_atomic(directory / "report.html", page)


def _write(
    directory: Path, subject: Subject, options: SlimOptions, found: Findings, report: dict[str, Any]
) -> None:  # fmt: skip
    save(found.made.program, directory / SLIM)
    write_text_atomic(directory / "plan.json", found.plan.to_json())
    write_text_atomic(directory / "recipe.yaml", report["recipe"])
    _write_page(directory, report)
    write_json_atomic(directory / "report.json", report)
    write_text_atomic(directory / "report.md", render(report))
    for file in subject.source.companions:
        if not (directory / file.name).exists():  # config.json may have been changed for a loader
            shutil.copyfile(file, directory / file.name)
