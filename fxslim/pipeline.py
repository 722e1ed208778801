"""The pipeline behind `fxslim slim`: from a model to a directory with the slim one, its proof and its report."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fxslim.api import Applied, apply_plan, compress, for_plan, prove
from fxslim.data import GENERATED, TEXT_SUFFIXES, Batches, Mixture, load_batches
from fxslim.evaluate import Score, evaluate
from fxslim.export import (
    LatencyReport,
    OnnxFile,
    check_onnx,
    export_onnx,
    measure_latency,
    resolve_provider,
)
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.caches import refitted_caches
from fxslim.graph.errors import CheckError, InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.graph.serialize import save
from fxslim.latency_plans import LatencyPlans, MeasuredPlan, refuse_untimed
from fxslim.loader_check import LoaderCheck, check_loader, loader_of
from fxslim.loaders import require_optimum
from fxslim.opening import SLIM, open_model, prepared
from fxslim.outputs import OutputDirectory, write_json_atomic, write_text_atomic
from fxslim.passes.methods import settings
from fxslim.passes.plan import Plan
from fxslim.passes.share_branches import before_sharing
from fxslim.report import Findings, make_report
from fxslim.report_text import render
from fxslim.slim_options import SlimOptions
from fxslim.sources import Source
from fxslim.timing import parse_sizes, timed_inputs
from fxslim.variants import Serving, make_variant, refuse_narrow, refuse_static

__all__ = [
    "SlimOptions",
    "Unwatched",
    "Watcher",
    "calibration_of",
    "read_data",
    "require_provider",
    "slim",
]

TEXT_ROWS, ARRAY_ROWS = 64, 512  # calibration rows unless told: windows of text hold many positions, images few


class Watcher(Protocol):
    """Is told what the pipeline does."""

    def step(self, name: str) -> None:
        """A step begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Within a step: `done` of `total` are finished, `what` comes next."""


class Unwatched:
    """A watcher that shows nothing."""

    def step(self, name: str) -> None:
        """A step begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Within a step."""


@dataclass
class _Run:
    """Steps as they happen, with their times in seconds."""

    watcher: Watcher
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.watcher.step(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def slim(
    options: SlimOptions, out: str | Path, *, overwrite: bool = False, watcher: Watcher | None = None
) -> dict[str, Any]:
    """The report, as it was written to `out` with everything else: ONNX file, slim program, plan, and manifest.

    A failed proof or check does not raise: the directory is complete, and the report's verdict is `FAILED`.

    Raises:
        InputError: an option, the model or the data cannot be used. Nothing was written.
        FxslimError: a step could not be done. Nothing was written.
    """
    options.refuse_contradictions()
    require_provider(options.provider)
    if options.loader_compatible:
        require_optimum()  # said before the work, not after it
    run, command = _Run(watcher or Unwatched()), options.command(Path(out))
    with OutputDirectory(out, overwrite=overwrite, facts={"command": command}) as directory:
        source, analysis = _load(options, run)
        found = _work(options, source, analysis, directory, command, run)
        report = make_report(found)
        _write(directory, source, found, report)
    return report


def _load(options: SlimOptions, run: _Run) -> tuple[Source, Analysis]:
    with run.step("load"):
        source = open_model(
            options.model, trust_pt2=options.trust_pt2, trust_remote_code=options.trust_remote_code,
            dtype=options.dtype, task=options.task,
        )  # fmt: skip
    with run.step("capture"):
        program = source.program
    with run.step("analyze"):
        names = before_sharing(Plan.load(options.plan).prepare) if options.plan is not None else None
        return source, prepared(program, names, split_fused=options.split_fused, further=options.prepare)


def _work(
    options: SlimOptions, source: Source, analysis: Analysis, directory: Path, command: str, run: _Run
) -> Findings:
    original = source.program  # as it came, not as it was prepared: that is what slim has to be better than
    loader = loader_of(source) if options.loader_compatible else None
    with run.step("data"):
        calibration = calibration_of(
            source, options.calibration, samples=options.samples, window=options.window, seed=options.seed,
            text_field=options.text_field,
        )  # fmt: skip
        evaluation = read_data(
            source, options.evaluation or source.evaluation, window=options.window, text_field=options.text_field
        )
        _refuse_unscorable(source, evaluation)
    if options.quantize == "static":
        refuse_static(original, calibration)

    def pair_of(program: Program) -> Mapping[str, Sequence[Tensor]]:
        return timed_inputs(original, program, evaluation or calibration, sizes)

    sizes = parse_sizes(options.sizes)
    asked = {} if options.plan is not None else _asked(options, calibration, run)
    refuse_narrow(original, [flag for flag in (options.onnx_dtype, options.quantize) if flag is not None])
    pair_of(original)  # refuses sizes of other dimensions before anything costs time
    with tempfile.TemporaryDirectory(prefix="fxslim-") as scratch:
        before, after = Path(scratch) / "original.onnx", directory / "model.onnx"
        with run.step("export"):
            file = export_onnx(original, before, opset=options.opset)
        with run.step("plan"):
            wanted = _Wanted(options, analysis, calibration, run, before, pair_of, asked)
            plan, applied, paced = _plan(wanted)
            given, analysis = analysis, for_plan(analysis, plan)
            plan.selection(analysis)  # refuses a plan of another model before anything costs time
        with run.step("apply"):
            if applied is None:
                applied = apply_plan(given, plan, options.restore, calibration, run.watcher.progress)
        with run.step("prove"):
            proof = prove(applied.analysis, plan)
        with run.step("evaluate"):
            scores = None if evaluation is None else _scores(original, applied.program, evaluation, source)
        with run.step("export slim"):
            files = file, _export(applied, after, options.opset)
        with run.step("check"):
            check = check_onnx(
                applied.program, after, original=original, provider=options.provider, seed=options.seed,
                threads=options.threads,
            )  # fmt: skip
        loaded = None if loader is None else _load_again(loader, source, applied, plan, directory, options.opset, run)
        with run.step("latency"):
            inputs = pair_of(applied.program)
            latency, shapes = _latency(options, original, inputs, before, after)
    serving = Serving(
        applied.program, source, calibration, evaluation, inputs["slim"], options.opset, options.provider,
        options.threads, options.latency_seconds, options.seed,
    )  # fmt: skip
    variants = []
    for kind in filter(None, (options.onnx_dtype, options.quantize)):
        with run.step(kind):
            variants.append(make_variant(kind, directory, serving))
    opened = {"asked": options.model, "form": options.task, "dtype": options.dtype}
    return Findings(
        source.name, source.task, command, original, analysis, plan, proof, applied, calibration, evaluation, scores,
        files, check, latency, shapes, run.seconds, source.notes, options.provider, opened, tuple(variants), paced,
        loaded,
    )  # fmt: skip


def _load_again(
    loader: str, source: Source, applied: Applied, plan: Plan, directory: Path, opset: int, run: _Run
) -> LoaderCheck:  # fmt: skip
    """Whether optimum takes what was exported, with a config.json that may be changed for it."""
    with run.step("loader"):
        for file in source.companions:
            shutil.copyfile(file, directory / file.name)
        return check_loader(loader, applied.program, plan, directory, opset)


def _export(applied: Applied, path: Path, opset: int) -> OnnxFile:
    return export_onnx(applied.program, path, opset=opset)


def require_provider(provider: str) -> None:
    """Returns if the execution provider can be used; asked before the work, not after it.

    Raises:
        InputError: there is no such provider here.
    """
    try:
        resolve_provider(provider)
    except CheckError as error:
        raise InputError(error.what, at=error.at, rule=error.rule, remedy=error.remedy) from error


def calibration_of(
    source: Source, data: str | Sequence[str] | None, *, samples: int | None, window: int | None, seed: int,
    text_field: str | None = None,
) -> Batches | None:  # fmt: skip
    """The calibration batches: of `data` (a file, or a mixture as `Mixture.parse` reads it), else those that came with
    the model, else None.

    Raises:
        InputError: the data cannot be used.
    """
    mixture = Mixture.parse([data] if isinstance(data, str) else data) if data else None
    default = [] if source.calibration is None else [source.calibration]
    paths: list[Any] = default if mixture is None else [path for path, _ in mixture.parts]
    if not paths:
        return None
    if samples is None:
        text = any(str(path) == GENERATED or Path(path).suffix in TEXT_SUFFIXES for path in paths)
        samples = TEXT_ROWS if text else ARRAY_ROWS
    chosen = paths[0] if mixture is None or len(paths) == 1 else mixture
    return load_batches(chosen, source, limit=samples, window=window, seed=seed, text_field=text_field)


def read_data(
    source: Source, data: str | Path | None, *, window: int | None, text_field: str | None = None
) -> Batches | None:
    """All batches of `data`, or None without any."""
    return None if data is None else load_batches(data, source, window=window, text_field=text_field)


def _refuse_unscorable(source: Source, evaluation: Batches | None) -> None:
    """Said before the work: data without labels cannot score a classifier."""
    if evaluation is not None and source.task != "causal-lm" and evaluation.labels is None:
        raise InputError(
            f"a model for {source.task or 'an unknown task'} is scored by labels, and the data has none",
            at=evaluation.source,
            remedy="give arrays (.npz or .safetensors) with `labels`, or leave --evaluation out",
        )


def _asked(options: SlimOptions, calibration: Batches | None, run: _Run) -> dict[str, Any]:
    """What a plan is asked for, but for its share.

    Raises:
        InputError: it is asked for by latency, and cannot be.
    """
    chosen = settings(
        options.method, importance=options.importance, budget=options.budget, restore=options.restore,
        rounds=options.rounds, data=calibration is not None, width=options.width is not None,
    )  # fmt: skip
    asked: dict[str, Any] = {
        **chosen.options(), "restore": chosen.restore, "calibration": calibration, "keep_fixed": options.keep_fixed,
        "uncounted": options.uncounted, "inexact": options.inexact, "keep_caches": options.loader_compatible,
        "seed": options.seed, "schedule": options.schedule, "slope": options.slope, "progress": run.watcher.progress,
    }  # fmt: skip
    if options.groups is not None:
        asked["groups"] = options.groups
    if options.of == "latency":
        refuse_untimed(asked)
    return asked


@dataclass(frozen=True)
class _Wanted:
    """What a plan is made of."""

    options: SlimOptions
    analysis: Analysis
    calibration: Batches | None
    run: _Run
    original: Path  # the ONNX file
    pair_of: Callable[[Program], Mapping[str, Sequence[Tensor]]]
    asked: Mapping[str, Any]  # what a plan is asked for, but for its share


def _plan(wanted: _Wanted) -> tuple[Plan, Applied | None, MeasuredPlan | None]:
    """A plan; one that is made here brings what it makes of the program along, and one by latency how it was found."""
    options, asked = wanted.options, wanted.asked
    if options.plan is not None:
        return Plan.load(options.plan), None, None
    if options.of != "latency":
        rounding = 1 if options.round_to is None else options.round_to
        plan, applied = compress(
            wanted.analysis, options.keep, width=options.width, of=options.of, round_to=rounding, **asked
        )
        return plan, applied, None
    assert options.keep is not None
    with tempfile.TemporaryDirectory(prefix="fxslim-") as scratch:
        work = LatencyPlans(
            wanted.analysis, wanted.original, wanted.pair_of, provider=options.provider, threads=options.threads,
            scratch=Path(scratch), opset=options.opset,
        )  # fmt: skip
        paced = work.compress(options.keep, round_to=options.round_to, **asked)
    return paced.plan, paced.applied, paced


def _scores(original: Program, small: Program, evaluation: Batches, source: Source) -> tuple[Score, Score]:
    def score(program: Program) -> Score:
        evaluator = Evaluator(program)
        return evaluate(
            lambda x: evaluator.run(refitted_caches(program, x)),
            evaluation,
            source.task,
            output_names=program.output_names,
        )

    return score(original), score(small)


def _latency(
    options: SlimOptions, original: Program, inputs: Mapping[str, Sequence[Tensor]], before: Path, after: Path
) -> tuple[LatencyReport, dict[str, list[int]]]:
    report = measure_latency(
        {"original": before, "slim": after}, inputs, provider=options.provider, threads=options.threads,
        seconds_budget=options.latency_seconds, seed=options.seed,
    )  # fmt: skip
    return report, {n: list(t.shape) for n, t in zip(original.input_names, inputs["original"], strict=True)}


def _write(directory: Path, source: Source, found: Findings, report: dict[str, Any]) -> None:
    save(found.applied.program, directory / SLIM)
    write_text_atomic(directory / "plan.json", found.plan.to_json())
    write_json_atomic(directory / "report.json", report)
    write_text_atomic(directory / "report.md", render(report))
    for file in source.companions:
        if not (directory / file.name).exists():  # config.json may have been changed for a loader
            shutil.copyfile(file, directory / file.name)
