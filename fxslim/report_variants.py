"""What the report says of further files: the slim model in a narrow type or in 8 bits."""

from __future__ import annotations

from typing import Any

from fxslim.wording import number

__all__ = ["NAMES", "variant_line", "variant_rows"]

NAMES = {"float16": "float16", "bfloat16": "bfloat16", "dynamic": "int8, dynamic", "static": "int8, static"}


def variant_line(variant: dict[str, Any], costs: dict[str, list[int]], quality: dict[str, Any] | None) -> str:
    """One line: size, speed and quality against model.onnx, or that it failed."""
    name = NAMES[variant["kind"]]
    if not variant["ok"]:
        return f"{name}: FAILED: {variant['failures'][0]}"
    file = variant["onnx"]
    size = f"{file['file_bytes'] / costs['file_bytes'][1]:.0%} of the bytes of model.onnx"
    parts = [size, variant["latency"]["verdict"], _quality(variant, quality)]
    return f"{name} ({file['path']}): " + ", ".join(p for p in parts if p)


def _quality(variant: dict[str, Any], quality: dict[str, Any] | None) -> str:
    score = variant["quality"]
    if score is None or quality is None:
        drift = variant["check"].get("drift") or []
        return ", ".join(f"{d['name']} off by {_share(d['relative'])} of its spread" for d in drift[:1])
    return f"{score['name']} {number(quality['after'])} -> {number(score['value'])}"


def _share(value: float | None) -> str:
    return "what is not finite" if value is None else f"{value:.1%}"


def variant_rows(variant: dict[str, Any]) -> list[str]:
    """What else is to be said of one: failures, what stayed in float32, how far each output moved."""
    lines = [f"FAILED: {text}" for text in variant["failures"]]
    kept = (variant["onnx"] or {}).get("float32_ops") or {}
    if kept:
        lines.append("in float32: " + ", ".join(f"{op} x{n}" for op, n in kept.items()))
    check = variant["check"] or {}
    for d in check.get("drift", ()):
        kl = "" if d["kl"] is None else f", KL divergence {d['kl']:.2g} nats"
        relative, largest = ("not finite" if d[k] is None else f"{d[k]:.3g}" for k in ("relative", "max_abs"))
        lines.append(f"output {d['name']}, on {check['on']}: rms error {relative} of its spread, largest {largest}{kl}")
    runs = check["shapes"] if isinstance(check.get("shapes"), list) else []
    errors = [(o["rmse"], o["allowed"]) for run in runs for o in run["outputs"] if o["allowed"]]
    worst = max((rmse / allowed for rmse, allowed in errors if rmse is not None), default=None)
    if worst is not None:
        lines.append(f"rms errors up to {worst:.0%} of what rounding every result allows")
    return [f"{NAMES[variant['kind']]}: {text}" for text in lines]
