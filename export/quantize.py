"""INT8: an exported file quantised by ONNX Runtime's own tools, and whether what comes out still says the same."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import torch

from fxslim.export.files import data_name, replace_model
from fxslim.export.model_file import OnnxFile, describe, load_model, read_interface
from fxslim.export.providers import create_session, provider_name, resolve_provider
from fxslim.export.running import run_session
from fxslim.export.weights import tensor_to_numpy
from fxslim.graph.errors import CheckError, ExportError, InputError

__all__ = ["Drift", "Quantization", "QuantizedCheck", "check_quantized", "quantize_onnx"]

Quantization = Literal["dynamic", "static"]
Batch = Sequence[torch.Tensor]

# What holds weights. ONNX Runtime's default for `dynamic` also takes the standard's Attention for its own operator of
# that name; its default for `static` quantises residual streams and softmax too, which costs transformers accuracy.
_WEIGHTED = ["Conv", "Gather", "Gemm", "LSTM", "MatMul"]
_WIDE_RANGED = {"Attention", "LayerNormalization", "RMSNormalization", "Softmax"}
_INTEGER_OPS = ("MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "DequantizeLinear")

MEANINGLESS = 1.0
"""An output whose rms error reaches its own spread says no more than its mean would."""


def quantize_onnx(
    source: str | Path, path: str | Path, how: Quantization, calibration: Sequence[Batch] | None = None
) -> OnnxFile:
    """What was written to `path`: the float32 file `source` with weights in 8 bits.

    `dynamic` finds the range of activations at each run; `static` takes it from `calibration`, batches of flat inputs.

    Raises:
        InputError: `static` without data, or a file that cannot be read or is not in float32.
        ExportError: ONNX Runtime cannot quantise the file.
        CheckError: ONNX Runtime is not installed.
    """
    source, path = Path(source), Path(path)
    if how not in ("dynamic", "static"):
        raise InputError(f"{how!r} is no way to quantise", remedy="choose dynamic or static")
    if how == "static" and not calibration:
        raise InputError("static quantisation needs calibration data", remedy="give data, or quantise dynamically")
    described = describe(source)
    if described.dtype != "float32":
        raise InputError(f"{source} is in {described.dtype}; quantisation starts from float32")
    names = [i.name for i in described.inputs]
    replace_model(path, lambda staged: _write(source, staged, how, names, calibration or (), described.external))
    return describe(path)


def _write(
    source: Path, staged: Path, how: str, names: Sequence[str], batches: Sequence[Batch], external: str | None
) -> None:
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="fxslim-") as scratch:
            prepared, result = Path(scratch) / "prepared.onnx", Path(scratch) / "result" / staged.name
            result.parent.mkdir()
            _preprocess(source.resolve(), prepared, external is not None)
            _quantize(prepared, result, how, names, batches, external is not None)
            for file in result.parent.iterdir():
                if file.name not in (staged.name, f"{staged.name}.data"):
                    raise ExportError(f"ONNX Runtime's quantiser wrote a file of an unexpected name: {file.name}")
            _move(result, staged)
    except (ExportError, CheckError):
        raise
    except Exception as error:  # the quantisers raise anything, AssertionError among them
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"ONNX Runtime cannot quantise the model ({how}): {type(error).__name__}: {reason}",
            remedy="try the other way to quantise, or another opset",
        ) from error


def _move(result: Path, staged: Path) -> None:
    """The result as one file, or with its data under the name that all files of this project use."""

    model = ir.load(result)
    has_data = result.with_name(f"{result.name}.data").exists()
    if has_data:
        ir.save(model, staged, external_data=data_name(staged))
    else:
        shutil.copyfile(result, staged)


def _preprocess(source: Path, target: Path, external: bool) -> None:
    """ONNX Runtime's preparation; without its symbolic shapes where those cannot be inferred."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    options = {"save_as_external_data": external, "all_tensors_to_one_file": external}
    try:
        quant_pre_process(str(source), str(target), **options)
    except Exception:  # AssertionError, or "Incomplete symbolic shape inference"
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True, **options)


def _quantize(
    prepared: Path, result: Path, how: str, names: Sequence[str], batches: Sequence[Batch], external: bool
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

    common: dict[str, Any] = {"per_channel": True, "use_external_data_format": external}
    ops = {node.op_type for graph in load_model(prepared).graphs() for node in graph}
    if how == "dynamic" or ops & _WIDE_RANGED or "Conv" not in ops:
        common["op_types_to_quantize"] = (
            _WEIGHTED  # else all that can be: what lies between convolutions stays in 8 bits
        )
    if how == "dynamic":
        # Unsigned weights here, and weights of 7 bits below: sums in 16 bits saturate on processors without VNNI.
        quantize_dynamic(str(prepared), str(result), weight_type=QuantType.QUInt8, **common)
    else:
        quantize_static(
            str(prepared), str(result), _reader(names, batches), activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, reduce_range=True, **common,
        )  # fmt: skip


def _reader(names: Sequence[str], batches: Sequence[Batch]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands out one batch after the other."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """The next batch by input name, None after the last one."""
            batch = next(self.left, None)
            return None if batch is None else {n: tensor_to_numpy(t) for n, t in zip(names, batch, strict=True)}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers log advice through the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)


@dataclass(frozen=True)
class Drift:
    """One output over all runs. `relative` is the rms error over the output's own spread (standard deviation); `kl` is
    the mean divergence (nats) of the distributions that logits stand for, None for other outputs."""

    name: str
    max_abs: float
    relative: float
    kl: float | None


@dataclass(frozen=True)
class QuantizedCheck:
    """The result of `check_quantized`. How far the outputs moved is a measurement, up to `MEANINGLESS`."""

    provider: str
    runs: int
    drift: tuple[Drift, ...]
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {**asdict(self), "ok": self.ok}


def check_quantized(
    source: str | Path,
    path: str | Path,
    batches: Sequence[Batch],
    *,
    provider: str = "auto",
    threads: int | None = None,
    judged: bool = True,
) -> QuantizedCheck:
    """Whether the quantised file `path` has weights in 8 bits, the interface of `source`, and runs on `batches` with
    outputs that still depend on the inputs as those of `source` do; without `judged`, whether they have the same shapes
    and are finite in the same places (inputs that were drawn may be unlike all data).

    Raises:
        InputError: a file cannot be read, or there are no batches.
        CheckError: a file does not load on the provider.
    """
    if not batches:
        raise InputError("there are no inputs to compare with", remedy="give at least one batch")
    before, after = load_model(Path(source)), load_model(Path(path))
    ort_provider = resolve_provider(provider)
    failures = _structure_failures(before, after)
    sessions = [create_session(Path(p).resolve(), ort_provider, threads=threads) for p in (source, path)]
    names = [value.name for value in sessions[0].get_outputs()]
    runs: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    if not failures:
        try:
            runs = [(run_session(sessions[0], b), run_session(sessions[1], b)) for b in batches]
        except Exception as error:  # the errors of ONNX Runtime share no base class of their own
            failures.append(f"ONNX Runtime cannot run the quantised file: {' '.join(str(error).split())[:300]}")
    drift = [_drift(name, [(a[i], b[i]) for a, b in runs]) for i, name in enumerate(names)] if runs else []
    wrong = [d for d in drift if judged or math.isinf(d.max_abs)]
    failures += [text for d in wrong if (text := _drift_failure(d)) is not None]
    return QuantizedCheck(provider_name(ort_provider), len(runs), tuple(drift), tuple(failures))


def _structure_failures(before: Any, after: Any) -> list[str]:
    failures = []
    if read_interface(before) != read_interface(after):
        failures.append("the quantised file has other inputs or outputs than the float32 one")
    eight = {ir.DataType.INT8, ir.DataType.UINT8}
    held = (v.const_value for g in after.graphs() for v in g.initializers.values())
    wide = any(t is not None and t.dtype in eight and t.size > 1 for t in held)
    if not wide or not any(node.op_type in _INTEGER_OPS for graph in after.graphs() for node in graph):
        failures.append("nothing was quantised: no operator of the file computes with 8-bit weights")
    return failures


def _drift(name: str, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Drift:
    if any(a.shape != b.shape for a, b in pairs):
        return Drift(name, math.inf, math.inf, None)
    floating = pairs[0][0].is_floating_point()
    truth, found = (torch.cat([p[i].double().flatten() for p in pairs]) for i in (0, 1))
    finite = torch.isfinite(truth)
    if bool((torch.isfinite(found) != finite).any()):
        return Drift(name, math.inf, math.inf, None)
    truth, found = truth[finite], found[finite]
    if not truth.numel():
        return Drift(name, 0.0, 0.0, None)
    error, spread = truth - found, float(truth.std(correction=0))
    rms = float(error.square().mean().sqrt())
    relative = rms / spread if spread else (0.0 if rms == 0 else math.inf)
    kl = _divergence(pairs) if floating and name == "logits" else None
    return Drift(name, float(error.abs().max()), relative, kl)


def _divergence(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    total, count = 0.0, 0
    for a, b in pairs:
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        each = (p.exp() * (p - q)).sum(-1)
        total, count = total + float(each.sum()), count + each.numel()
    return total / count if count else 0.0


def _drift_failure(drift: Drift) -> str | None:
    if drift.relative < MEANINGLESS:
        return None
    if math.isinf(drift.relative):
        return f"the output {drift.name!r} has other shapes, or is not finite where the float32 one is"
    return f"the output {drift.name!r} has an rms error of {drift.relative:.2g} of its spread: it says nothing any more"
