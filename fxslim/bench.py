"""Bench: a result of `fxslim slim` against the model that it was made from, at chosen sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fxslim.export import LatencyReport, describe, export_onnx, measure_latency, resolve_provider
from fxslim.export.peak import peak_bytes
from fxslim.export.samples import cache_dims, example_sizes
from fxslim.graph.axes.groups import analyze
from fxslim.graph.costs import CostModel
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.graph.serialize import load
from fxslim.opening import SLIM, open_model
from fxslim.report_file import NAME, read_report
from fxslim.sources import is_factory
from fxslim.timing import sized_inputs

__all__ = ["Case", "bench", "default_cases"]

REBUILDS = 5
_LENGTH = 256  # tokens of a prompt, and in the cache of a step


@dataclass(frozen=True)
class Case:
    """One measurement: what it is called, and a size for every dynamic dimension."""

    name: str
    sizes: Mapping[str, int]


def default_cases(program: Program, shapes: Mapping[str, Sequence[int]], limit: int | None = None) -> list[Case]:
    """Prefill and a step of decoding for a program with caches that takes at most `limit` positions; else the sizes of
    inputs with these shapes by name."""
    known = example_sizes(program)
    past, new = cache_dims(program)
    if past and new:
        rows, length = dict.fromkeys(known, 1), min(_LENGTH, (limit or _LENGTH + 1) - 1)
        return [
            Case("prefill", {**rows, **dict.fromkeys(past, 0), **dict.fromkeys(new, length)}),
            Case("decode", {**rows, **dict.fromkeys(past, length), **dict.fromkeys(new, 1)}),
        ]
    found = dict(known)
    for key in program.input_names:
        for dim, name in program.dynamic.get(key, {}).items():
            if name in found and key in shapes:
                found[name] = int(shapes[key][dim])
    return [Case("sizes of the report", found)]


def bench(
    result: Path, cases: Sequence[Mapping[str, int]] = (), *, original: str | None = None, provider: str = "auto",
    threads: int = 1, seconds: float = 20.0, seed: int = 0, trust_pt2: bool = False, trust_remote_code: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The measurements as JSON values: bytes of files, and for each case times in ms, the speed-up with its interval,
    a control, the spread over rebuilt sessions, the speed-up that the arithmetic lets expect, and peak memory in
    bytes (of the CPU: None elsewhere).

    `original` is the model before slimming, by default the one that the result's report names.

    Raises:
        InputError: the result or the original cannot be read, or a case names a dimension that is not there.
        CheckError: a model does not run on the provider.
    """
    if threads < 1:
        raise InputError(f"--threads is {threads}", remedy="give at least 1")
    if not 0 < seconds < float("inf"):
        raise InputError(f"--seconds is {seconds:g}", remedy="give a positive number")
    report = _read(result)
    ort_provider = resolve_provider(provider)
    slim = load(result / SLIM)
    model = report["model"]
    name = original or model.get("asked", model["name"])
    if original is None and is_factory(name):
        raise InputError(
            f"the report says that the original is made by {name!r}: that is code, and a report is no reason to run it",
            at=str(result / NAME), remedy=f"--original {name}, if you trust it",
        )  # fmt: skip
    source = open_model(
        name, task=model.get("form"), dtype=model.get("dtype"), trust_pt2=trust_pt2, trust_remote_code=trust_remote_code
    )
    program = source.program
    if program.outside_names != slim.outside_names:
        raise InputError(
            f"the original takes {', '.join(program.outside_names)}, the slim model {', '.join(slim.outside_names)}",
            at=name, remedy="give the model that the result was made from as --original",
        )  # fmt: skip
    chosen = [Case(_text(sizes), {**example_sizes(program), **sizes}) for sizes in cases]
    chosen = chosen or default_cases(program, report["latency"]["shapes"], source.max_positions)
    with tempfile.TemporaryDirectory(prefix="fxslim-") as scratch:
        files = {"original": Path(scratch) / "original.onnx", "slim": result / "model.onnx"}
        export_onnx(program, files["original"], opset=report["onnx"]["slim"]["opset"])
        rows = [
            _measured(case, {"original": program, "slim": slim}, files, ort_provider, threads, seconds, seed)
            for case in chosen
        ]
        sizes = {name: describe(path) for name, path in files.items()}
    return {
        "format": 1, "model": model["name"], "provider": rows[0]["latency"]["provider"], "threads": threads,
        "file_bytes": {n: f.file_bytes for n, f in sizes.items()},
        "initializer_bytes": {n: f.initializer_bytes for n, f in sizes.items()}, "cases": rows,
    }  # fmt: skip


def _measured(
    case: Case, programs: Mapping[str, Program], files: Mapping[str, Path], provider: str, threads: int, seconds: float,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    inputs = {name: sized_inputs(program, case.sizes, seed) for name, program in programs.items()}
    latency = measure_latency(
        files, inputs, provider=provider, threads=threads, seconds_budget=seconds, seed=seed, rebuilds=REBUILDS
    )
    macs = {name: _macs(programs[name], inputs[name]) for name in programs}
    return {
        "name": case.name, "sizes": dict(case.sizes), "latency": latency.to_dict(), "macs": macs,
        "ideal_ratio": macs["original"] / macs["slim"] if macs["slim"] else None,
        "share_of_ideal": share_of_ideal(latency, macs),
        "peak_bytes": {name: peak_bytes(files[name], inputs[name], provider, threads) for name in programs},
    }  # fmt: skip


def share_of_ideal(latency: LatencyReport, macs: Mapping[str, int]) -> float | None:
    """The reduction of the time as a share of the reduction of the multiply-accumulates; None where these stayed."""
    less = 1 - macs["slim"] / macs["original"] if macs["original"] else 0.0
    return (1 - 1 / latency.ratio.value) / less if less > 0 else None


def _macs(program: Program, inputs: Sequence[Tensor]) -> int:
    return CostModel(analyze(program).axes, inputs=inputs).macs()


def _text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _read(result: Path) -> dict[str, Any]:
    """The report, with what a bench takes from it."""
    report = read_report(result)
    try:
        report["model"]["name"], report["latency"]["shapes"], report["onnx"]["slim"]["opset"]
    except (KeyError, TypeError) as error:
        raise InputError("report.json is no report of `fxslim slim`", at=str(result / NAME)) from error
    return report
