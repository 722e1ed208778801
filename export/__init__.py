"""From a Program to an ONNX file, and the proof that the file computes the same, where, and how fast."""

from fxslim.export.check import OnnxCheck, Reference, ShapeCheck, check_onnx
from fxslim.export.clean import refuse_dim_names
from fxslim.export.latency import LatencyReport, Ratio, measure_latency
from fxslim.export.model_file import Interface, OnnxFile, describe
from fxslim.export.providers import available_providers, create_session, node_assignments, resolve_provider
from fxslim.export.quality import Quality
from fxslim.export.reference import run_float64
from fxslim.export.to_onnx import DEFAULT_OPSET, OPSETS, export_onnx
from fxslim.export.tolerance import FLOAT32, HALF, TF32, TOLERANCES, Comparison, Tolerance

__all__ = [
    "DEFAULT_OPSET",
    "FLOAT32",
    "HALF",
    "OPSETS",
    "TF32",
    "TOLERANCES",
    "Comparison",
    "Interface",
    "LatencyReport",
    "OnnxCheck",
    "OnnxFile",
    "Quality",
    "Ratio",
    "Reference",
    "ShapeCheck",
    "Tolerance",
    "available_providers",
    "check_onnx",
    "create_session",
    "describe",
    "export_onnx",
    "measure_latency",
    "node_assignments",
    "refuse_dim_names",
    "resolve_provider",
    "run_float64",
]
