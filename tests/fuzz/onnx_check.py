"""The exported file of a slim program in ONNX Runtime, with graph optimisations on and off."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxslim.export.check import check_onnx
from fxslim.export.providers import CPU, onnxruntime
from fxslim.export.reference import run_float64
from fxslim.export.to_onnx import export_onnx
from fxslim.export.tolerance import FLOAT32, compare
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program

__all__ = ["check_export"]


def check_export(program: Program, inputs: Sequence[Sequence[Tensor]]) -> tuple[str, str] | None:
    """What is wrong with the exported file (a short and a long form), None where nothing is."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(program, path)
        found = check_onnx(program, path, provider="cpu", threads=1)
        if not found.ok:
            return f"with optimisations: {found.failures[0]}", "; ".join(found.failures)
        return _unoptimised(program, path, inputs)


def _unoptimised(program: Program, path: Path, inputs: Sequence[Sequence[Tensor]]) -> tuple[str, str] | None:
    session = _plain_session(path)
    for args in inputs:
        found = session.run(None, {n: a.numpy() for n, a in zip(program.input_names, args, strict=True)})
        rows = zip(program.output_names, found, Evaluator(program).run(args), run_float64(program, args), strict=True)
        for name, got, reference, exact in rows:
            candidate = torch.from_numpy(got)
            if candidate.shape != reference.shape:
                return "without optimisations: other shapes", f"{name}: {candidate.shape}, {reference.shape}"
            result = compare(name, candidate, reference, exact, FLOAT32)
            if not result.ok:
                return f"without optimisations: {result.problem}", name
    return None


def _plain_session(path: Path) -> Any:
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=[CPU])
