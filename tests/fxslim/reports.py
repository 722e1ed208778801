"""Reports without a run: small ones that hold everything a report can hold, to be changed by tests."""

from __future__ import annotations

import copy
from typing import Any

HOSTILE = '<script>alert("x")</script>&"\'${{7*7}}$'
"""A name that no page may take for anything else."""

RATIO = {"value": 1.4, "low": 1.3, "high": 1.5}
CONTROL = {"value": 1.0, "low": 0.97, "high": 1.03}
LEVELS = 21


def sites(produces: list[str], consumes: list[str]) -> dict[str, Any]:
    return {"produces": produces, "consumes": consumes, "carries": [], "left_out": 0}


def latency(candidate: str = "slim") -> dict[str, Any]:
    return {
        "baseline": "original", "candidate": candidate, "median_ms": {"original": 2.8, candidate: 2.0},
        "ratio": dict(RATIO), "control": dict(CONTROL), "provider": "cpu", "threads": 1, "rounds": 60, "seconds": 10.0,
        "denormals_as_zero": True, "rebuild_ratios": [1.4, 1.41, 1.39],
        "quantiles_ms": {r: [base + 0.02 * i for i in range(LEVELS)] for r, base in (
            ("original", 2.6), (candidate, 1.8), ("control", 2.6))},
        "faster": True, "verdict": "1.40x faster (95 % CI 1.30-1.50)",
    }  # fmt: skip


def file(name: str, size: int) -> dict[str, Any]:
    side = [{"name": "x", "dtype": "FLOAT", "dims": ["batch", 8]}]
    return {
        "path": name, "opset": 20, "ir_version": 10, "initializer_bytes": size, "file_bytes": size + 500,
        "external": None, "inputs": side, "outputs": side, "ops": {"Gemm": 2}, "constants": {}, "dtype": "float32",
        "float32_ops": {},
    }  # fmt: skip


def parity() -> dict[str, Any]:
    output = {
        "name": "logits", "max_abs": 1e-6, "max_rel": 1e-7, "rmse": 2e-7, "noise_floor": 1e-7, "allowed": 1e-6,
        "ok": True, "problem": None, "constant": False,
    }  # fmt: skip
    shape = {"sizes": {"batch": 2}, "ok": True, "not_applicable": None, "failure": None, "outputs": [output]}
    return {
        "ok": True, "notes": [], "dtype": "float32", "provider": "cpu", "nodes_by_provider": {"cpu": 4},
        "off_provider": [],
        "tolerance": {"name": "float32", "factor": 3.0, "small_factor": 10.0, "epsilon": 1e-6, "outlier": 8.0,
                      "reason": "rounding"},
        "shapes": [shape, {**shape, "sizes": {"batch": 5}, "outputs": [dict(output)]}], "constants": {}, "failures": [],
        "quality": [{"name": "logits", "rmse": 0.1, "relative": 0.05, "not_comparable": None}],
    }  # fmt: skip


def data(name: str) -> dict[str, Any]:
    part = {"source": name, "share": 1.0, "rows": 64, "tokens": 0, "available": 64}
    return {"description": f"64 rows of {name}", "rows": 64, "tokens": 0, "sha256": "ab" * 32, "parts": [part]}


def report(name: str = "small", layers: int = 2, width: int = 32) -> dict[str, Any]:
    """A report of a chain of `layers` blocks, each with neurons that were halved and a bias that stays."""
    half, weights, groups, curves = width // 2, [], [], []
    for n in range(layers):
        up, down = f"layers.{n}.up.weight", f"layers.{n}.down.weight"
        weights += [
            {"name": up, "shape": [[width, 8], [half, 8]], "params": [8 * width, 8 * half]},
            {"name": down, "shape": [[8, width], [8, half]], "params": [8 * width, 8 * half]},
        ]
        groups.append(
            {"group": f"{up}[0]", "kind": "neurons", "size": width, "kept": half, "batch": [], "exact": True,
             "symmetry": "signed", "subspace": False, "sites": sites([f"{up}[0]"], [f"{down}[1]"])}
        )  # fmt: skip
        curves.append(
            {"name": f"{up}[0]", "kind": "neurons", "size": width, "kept": half, "sizes": [1, half, width],
             "losses": [0.5, 0.01, 0.0]}
        )  # fmt: skip
    stream = sites([f"layers.{n}.down.weight[0]" for n in range(layers)], [w["name"] + "[1]" for w in weights[::2]])
    before, after = (sum(w["params"][i] for w in weights) for i in (0, 1))
    return copy.deepcopy({
        "format": 1, "verdict": "ok", "failures": [],
        "model": {"name": name, "task": None, "asked": name, "form": None, "dtype": None, "fingerprint": "f" * 64,
                  "weights_sha256": "0" * 64},
        "command": f"fxslim slim {name} --keep 0.5 -o out",
        "costs": {"params": [before, after], "macs": [before, after], "initializer_bytes": [4 * before, 4 * after],
                  "file_bytes": [4 * before + 500, 4 * after + 500]},
        "quality": {"name": "accuracy", "higher_is_better": True, "count": 64, "before": 0.99, "after": 0.97},
        "weights": {"rows": weights, "rest": {"weights": 0, "params": [0, 0]}},
        "groups": groups,
        "uncut": {
            "rows": [{"group": "layers.0.down.weight[0]", "kind": "residual stream", "size": 8,
                      "fixed": "an input of the model has it", "notes": [], "sites": stream}],
            "left_out": 0,
        },
        "curves": {"rows": curves, "left_out": 0},
        "restoration": {
            "by": "least-squares",
            "rows": [{"node": "linear_1", "weight": "layers.0.down.weight", "columns": width, "kept": half,
                      "tokens": 64, "accepted": True, "ridge": 1e-4, "before": 0.02, "after": 0.01, "reason": "",
                      "fitted": half}],
            "norms": [], "warnings": [],
            "summary": {"refits": 1, "rejected": 0, "tokens_per_column": [4.0, 4.0], "scarcest": "layers.0.down.weight",
                        "median_error": [0.02, 0.01], "worst_error": [0.02, 0.01], "worst": "layers.0.down.weight"},
            "too_little": None,
        },
        "proof": {"ok": True, "conclusive": True, "exact": True, "cuts": layers, "error": 1e-15, "tolerance": 1e-9,
                  "effect": 0.4, "outputs": [{"name": "logits", "error": 1e-15, "effect": 0.4, "inputs": 0}],
                  "inexact": [], "notes": []},
        "provider": {"asked": "auto", "used": "cpu", "available": ["cpu"], "tf32": None},
        "parity": parity(), "loader": None,
        "latency": {**latency(), "shapes": {"x": [1, 8]}, "plan": None},
        "fixed": [{"reason": "an input of the model has it", "groups": 1, "example": "layers.0.down.weight[0]"}],
        "unknown_operators": {}, "plan": {"options": {"importance": "obs", "budget": "global"}, "notes": []},
        "data": {"calibration": data("calib.npz"), "evaluation": data("valid.npz")},
        "onnx": {"original": file("original.onnx", 4 * before), "slim": file("model.onnx", 4 * after)},
        "variants": [], "notes": [], "seconds": {"load": 0.5}, "estimated_seconds": {"plan": 0.4},
        "versions": {"fxslim": "0.1.0", "python": "3.12.0", "machine": "x86_64", "onnxruntime": "1.30.0"},
    })  # fmt: skip


def variant(kind: str = "float16") -> dict[str, Any]:
    return {
        "kind": kind, "ok": True, "failures": [], "onnx": file("model_fp16.onnx", 900), "check": parity(),
        "quality": {"name": "accuracy", "value": 0.96, "count": 64}, "latency": latency("float16"),
    }  # fmt: skip


def failed(name: str = "small") -> dict[str, Any]:
    """A report whose proof and ONNX check failed, and whose numbers are not finite."""
    found = report(name)
    found["verdict"], found["failures"] = "FAILED", ["proof: the slim program differs", "ONNX: at batch 2 it differs"]
    found["proof"].update(ok=False, error=None)
    found["parity"].update(ok=False, failures=["at batch 2 it differs"])
    found["parity"]["shapes"][0]["outputs"][0].update(ok=False, rmse=None, max_abs=None, problem="not finite")
    found["parity"]["shapes"][1].update(outputs=[], ok=False, failure="ONNX Runtime could not run it")
    found["quality"].update(after=None)
    found["latency"].update(faster=False, verdict="not faster: 1.30x slower (95 % CI 1.20-1.40)")
    found["latency"]["ratio"] = {"value": 0.77, "low": 0.71, "high": 0.83}
    return found
