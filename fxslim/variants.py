"""Variants of a slim file: the same model in a narrow type or in 8 bits, each checked, scored and timed against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxslim.data import Batches
from fxslim.evaluate import Score, evaluate
from fxslim.export import LatencyReport, OnnxFile, check_onnx, create_session, export_onnx, measure_latency
from fxslim.export.interface import cache_names, tensor_outputs
from fxslim.export.providers import resolve_provider
from fxslim.export.quantize import Quantization, check_quantized, quantize_onnx
from fxslim.export.running import run_session
from fxslim.export.samples import default_shapes, draw_inputs
from fxslim.graph.caches import refitted_caches
from fxslim.graph.errors import CheckError, ExportError, InputError
from fxslim.graph.program import Program
from fxslim.sources import Source

__all__ = ["FILES", "Serving", "Variant", "make_variant", "refuse_static"]

FILES = {
    "float16": "model_fp16.onnx", "bfloat16": "model_bf16.onnx",
    "dynamic": "model_quantized.onnx", "static": "model_quantized.onnx",
}  # fmt: skip
"""What a variant is called beside model.onnx: the names that optimum and transformers.js look for."""

_COMPARED = 4  # batches of data on which outputs are compared
_CALIBRATED = 32  # batches that ranges are taken from


@dataclass(frozen=True)
class Serving:
    """How a file will be served, and on what it is judged."""

    program: Program  # the slim one
    source: Source
    calibration: Batches | None
    evaluation: Batches | None
    inputs: Sequence[Tensor]  # for timing
    opset: int
    provider: str
    threads: int
    seconds: float
    seed: int


@dataclass(frozen=True)
class Variant:
    """One further file. `check` holds what its check found as JSON values; None where there is no file to check."""

    kind: str  # float16, bfloat16, dynamic, static
    file: OnnxFile | None
    check: dict[str, Any] | None
    score: Score | None
    latency: LatencyReport | None  # of model.onnx against this file
    failures: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        score = self.score
        return {
            "kind": self.kind,
            "ok": not self.failures,
            "failures": list(self.failures),
            "onnx": None if self.file is None else self.file.to_dict(),
            "check": self.check,
            "quality": None if score is None else {"name": score.name, "value": score.value, "count": score.count},
            "latency": None if self.latency is None else self.latency.to_dict(),
        }


def refuse_narrow(program: Program, wanted: Sequence[str]) -> None:
    """Returns if further files in narrower types can be made, or none are wanted; asked before the work.

    Raises:
        InputError: the weights are in half precision already.
    """
    narrow = {str(w.dtype).removeprefix("torch.") for w in program.info.values()} & {"float16", "bfloat16"}
    if wanted and narrow:
        raise InputError(
            f"{wanted[0]} starts from float32, and the weights are loaded as {', '.join(sorted(narrow))}",
            remedy="--dtype float32",
        )


def refuse_uncheckable(program: Program, provider: str) -> None:
    """Returns if a provider computes in the types that a program has; asked before the work.

    Raises:
        InputError: it does not, so that the exported file could not be checked.
    """
    types = {w.dtype for w in program.info.values()}
    if torch.bfloat16 in types and resolve_provider(provider) == "CPUExecutionProvider":
        raise InputError(
            "the weights are bfloat16, in which ONNX Runtime computes nothing on a CPU: the file could not be checked",
            remedy="--dtype float32, or a --provider that computes in bfloat16; `fxslim plan` and `fxslim apply` "
            "keep the type, and export nothing",
        )


def refuse_static(program: Program, calibration: object | None) -> None:
    """Returns if ranges of activations can be found on the calibration data; asked before the work.

    Raises:
        InputError: there is no data, or the program has caches, which calibration data leaves empty.
    """
    if calibration is None:
        raise InputError(
            "static quantisation needs calibration data", remedy="give --calibration, or --quantize dynamic"
        )
    if cache_names(program):
        raise InputError(
            "static quantisation would take the ranges of caches from data in which they are empty",
            remedy="--quantize dynamic, or without --task",
        )


def make_variant(kind: str, folder: Path, serving: Serving) -> Variant:
    """The variant `kind` of `folder`/model.onnx, written beside it. What goes wrong is in its `failures`.

    A quantised file must run at all shapes that model.onnx is checked at, with the same interface; how far its outputs
    are from model.onnx is measured on data where there is any.
    """
    base, path = folder / "model.onnx", folder / FILES[kind]
    try:
        file = _write(kind, base, path, serving)
    except ExportError as error:
        return Variant(kind, None, None, None, None, (error.what,))
    try:
        check = _check(kind, base, path, serving)
    except CheckError as error:
        return Variant(kind, file, None, None, None, (_text(error),))
    if check["failures"]:
        return Variant(kind, file, check, None, None, tuple(check["failures"]))
    try:
        score, latency = _score(path, serving), _latency(kind, base, path, serving)
    except CheckError as error:
        return Variant(kind, file, check, None, None, (_text(error),))
    return Variant(kind, file, check, score, latency, ())


def _text(error: CheckError) -> str:
    return f"{error.what}; {error.remedy}" if error.remedy else error.what


def _write(kind: str, base: Path, path: Path, serving: Serving) -> OnnxFile:
    if kind in ("float16", "bfloat16"):
        return export_onnx(serving.program, path, opset=serving.opset, dtype=kind)  # type: ignore[arg-type]
    how: Quantization = "static" if kind == "static" else "dynamic"
    data = None if serving.calibration is None else list(serving.calibration.inputs[:_CALIBRATED])
    return quantize_onnx(base, path, how, data if how == "static" else None)


def _check(kind: str, base: Path, path: Path, serving: Serving) -> dict[str, Any]:
    program, options = serving.program, {"provider": serving.provider, "threads": serving.threads}
    if kind in ("float16", "bfloat16"):
        return check_onnx(program, path, dtype=kind, seed=serving.seed, **options).to_dict()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(serving.seed)
    drawn = [draw_inputs(program, sizes, generator) for sizes in default_shapes(program)]
    shapes = check_quantized(base, path, drawn, judged=False, **options)  # type: ignore[arg-type]
    data = serving.evaluation or serving.calibration
    real = [list(refitted_caches(program, batch)) for batch in data.inputs[:_COMPARED]] if data is not None else drawn
    on_data = check_quantized(base, path, real, **options)  # type: ignore[arg-type]
    failures = [*shapes.failures, *(f for f in on_data.failures if f not in shapes.failures)]
    about = "data" if data is not None else "inputs that were drawn"
    return {**on_data.to_dict(), "shapes": shapes.runs, "on": about, "failures": failures, "ok": not failures}


def _score(path: Path, serving: Serving) -> Score | None:
    if serving.evaluation is None:
        return None
    session = create_session(path.resolve(), resolve_provider(serving.provider), threads=serving.threads)
    run: Callable[[tuple[Tensor, ...]], list[Tensor]] = lambda x: run_session(  # noqa: E731
        session, refitted_caches(serving.program, x)
    )
    names = tuple(tensor_outputs(serving.program))
    return evaluate(run, serving.evaluation, serving.source.task, output_names=names)


def _latency(kind: str, base: Path, path: Path, serving: Serving) -> LatencyReport:
    return measure_latency(
        {"slim": base, kind: path}, serving.inputs, provider=serving.provider, threads=serving.threads,
        seconds_budget=serving.seconds, seed=serving.seed,
    )  # fmt: skip
