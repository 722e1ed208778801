"""A model with its data, opened once: what any number of slim models are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fxslim.data import GENERATED, TEXT_SUFFIXES, Batches, Mixture, load_batches
from fxslim.evaluate import Score, evaluate
from fxslim.export import OnnxFile, export_onnx, resolve_provider
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.caches import refitted_caches
from fxslim.graph.errors import CheckError, InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.identity import pins_of, refuse_other_data, refuse_other_model
from fxslim.opening import open_model, prepared
from fxslim.passes.plan import Plan
from fxslim.passes.share_branches import before_sharing
from fxslim.passes.survey import Survey
from fxslim.recipe import Pinned
from fxslim.run_steps import Run
from fxslim.slim_options import SlimOptions
from fxslim.sources import Source, refuse_bad_weights
from fxslim.streaming import place
from fxslim.timing import parse_sizes, timed_inputs

__all__ = ["Subject", "calibration_of", "open_subject", "read_data", "require_provider"]

TEXT_ROWS, ARRAY_ROWS = 64, 512  # calibration rows unless told: windows of text hold many positions, images few


@dataclass(eq=False)
class Subject:
    """What all slim models of one run have in common; files that are made on the way lie in `scratch`."""

    source: Source
    calibration: Batches | None
    evaluation: Batches | None
    wanted: Pinned  # what a recipe says that they are
    pinned: Pinned  # what they are
    scratch: Path
    surveys: dict[str, Survey] = field(default_factory=dict)  # what global budgets found out, for other shares
    _analyses: dict[tuple[Any, ...], Analysis] = field(default_factory=dict)
    _files: dict[int, OnnxFile] = field(default_factory=dict)
    score: Score | None = None  # of the original, once it was measured

    @property
    def original(self) -> Program:
        """The program as it came, not as it was prepared: that is what a slim one has to be better than."""
        return self.source.program

    def analysis(self, options: SlimOptions) -> Analysis:
        """The analysis of the program prepared as the options say, made once.

        Raises:
            InputError: the plan that they name cannot be read, or there is no such preparation.
        """
        names = before_sharing(Plan.load(options.plan).prepare) if options.plan is not None else None
        key = (names and tuple(names), options.split_fused, options.prepare)
        if key not in self._analyses:
            self._analyses[key] = prepared(
                self.original, names, split_fused=options.split_fused, further=options.prepare
            )
        return self._analyses[key]

    def onnx(self, opset: int) -> OnnxFile:
        """The original as an ONNX file, written once for each opset."""
        if opset not in self._files:
            self._files[opset] = export_onnx(self.original, self.scratch / f"original-{opset}.onnx", opset=opset)
        return self._files[opset]

    def timed(self, options: SlimOptions, program: Program) -> Mapping[str, Sequence[Tensor]]:
        """Flat inputs for the original and a slim program, as `original` and `slim`.

        Raises:
            InputError: the options name sizes of other dimensions.
        """
        return timed_inputs(self.original, program, self.evaluation or self.calibration, parse_sizes(options.sizes))

    def score_of(self, program: Program) -> Score | None:
        """The score of a program on the evaluation data, None where there is none."""
        if self.evaluation is None:
            return None
        evaluator = Evaluator(program)
        return evaluate(
            lambda x: evaluator.run(refitted_caches(program, x)),
            self.evaluation,
            self.source.task,
            output_names=program.output_names,
        )


def open_subject(options: SlimOptions, scratch: Path, run: Run, pinned: Pinned | None = None) -> Subject:
    """The model and the data that the options name. `pinned` is what they have to be.

    Raises:
        InputError: the model or the data cannot be used, or are not what was pinned.
        CaptureError: the model cannot be captured.
    """
    wanted = pinned or Pinned()
    with run.step("load"):
        source = open_model(
            options.model, trust_pt2=options.trust_pt2, trust_remote_code=options.trust_remote_code,
            dtype=options.dtype, task=options.task, stream=options.stream,
        )  # fmt: skip
    with run.step("capture"):
        refuse_other_model(wanted, source.program)
        if options.stream:
            refuse_bad_weights(source)
        place(source.program, scratch / "weights", options)
    subject = Subject(source, None, None, wanted, wanted, scratch)
    with run.step("analyze"):
        subject.analysis(options)
    with run.step("data"):
        subject.calibration = calibration_of(
            source, options.calibration, samples=options.samples, window=options.window, seed=options.seed,
            text_field=options.text_field,
        )  # fmt: skip
        subject.evaluation = read_data(
            source, options.evaluation or source.evaluation, window=options.window, text_field=options.text_field
        )
        _refuse_unscorable(source, subject.evaluation)
        refuse_other_data(wanted, subject.calibration, subject.evaluation)
        subject.pinned = pins_of(source.program, subject.calibration, subject.evaluation)
    return subject


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
