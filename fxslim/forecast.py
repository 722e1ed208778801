"""What a run would do and take: the plan is made, the rest is estimated from short measurements."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fxslim.export.peak import own_peak_bytes
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.made import Made, make_slim
from fxslim.memory_plan import predicted_bytes
from fxslim.pipeline import helper_scratch, refuse_early, refuse_unusable
from fxslim.recipe import Pinned
from fxslim.report import predicted_macs
from fxslim.run_steps import Run, Watcher
from fxslim.slim_options import SlimOptions
from fxslim.stages import Stages
from fxslim.subject import Subject, open_subject

__all__ = ["Forecast", "forecast"]

_RUNS_OF_CHECK = 8  # shapes at which a file is checked, and once in float64 costs about as much as several in float32
_FLOAT64 = 2.5  # times as long, and twice the bytes


@dataclass(frozen=True)
class Forecast:
    """A plan and what the run will take. Pairs are before and after; `seconds` by step, of which some were `measured`
    just now; `peak_bytes` of the process."""

    made: Made
    groups: tuple[dict[str, Any], ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    weight_bytes: tuple[int, int]
    expected_loss: float | None  # of a budget by effect: the sum of the divergences that its groups are expected to add
    seconds: dict[str, float]
    measured: tuple[str, ...]
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values, without the program."""
        return {
            "groups": list(self.groups), "params": list(self.params), "macs": list(self.macs),
            "weight_bytes": list(self.weight_bytes), "expected_loss": self.expected_loss,
            "seconds": self.seconds, "measured": list(self.measured), "peak_bytes": self.peak_bytes,
            "notes": list(self.made.plan.notes), "plan": dict(self.made.plan.options),
        }  # fmt: skip


def forecast(options: SlimOptions, pinned: Pinned, watcher: Watcher, out: Path | None = None) -> Forecast:
    """What `slim` with these options would do. Nothing stays on disk; what is spilled meanwhile is beside `out`.

    Raises:
        FxslimError: what `slim` raises up to the plan.
    """
    refuse_early(options)
    run = Run(watcher)
    with helper_scratch(out or Path("out"), options) as scratch:
        subject = open_subject(options, scratch, run, pinned)
        analysis, _ = refuse_unusable(subject, options, run)
        predicted = predicted_bytes(options, analysis, subject.calibration) if options.stream else None
        if not options.stream:  # as in the run: until the proof is done memory is that of calibration alone
            _export(subject, options, run)
        made = make_slim(options, subject, analysis, Stages(scratch / "stages"), run)
        if options.stream:
            _export(subject, options, run)
        measured = tuple(run.seconds)
        run.watcher.step("estimate")
        seconds = {**run.seconds, **_rest(options, subject, made, run.seconds["export"])}
        peak = _peak(subject, made, predicted)
    return Forecast(
        made, _groups(made), (subject.original.parameters(), made.program.parameters()),
        predicted_macs(made.plan, made.analysis),
        (_bytes(subject.original), _bytes(made.program)), made.plan.predicted.get("loss"), seconds, measured,
        peak,
    )  # fmt: skip


def _export(subject: Subject, options: SlimOptions, run: Run) -> None:
    with run.step("export"):
        subject.onnx(options.opset)


def _groups(made: Made) -> tuple[dict[str, Any], ...]:
    return tuple({"group": c.group, "kind": c.kind, "size": c.size, "kept": c.count} for c in made.plan.cuts)


def _bytes(program: Program) -> int:
    return sum(w.numel * w.dtype.itemsize for w in program.info.values())


def _rest(options: SlimOptions, subject: Subject, made: Made, export: float) -> dict[str, float]:
    """Seconds of the steps after the plan."""
    example = _seconds(subject.original, subject.original.example_inputs)
    ratio = _bytes(made.program) / max(1, _bytes(subject.original))
    found = {"prove": 2 * _FLOAT64 * example}
    data = subject.evaluation
    scored = 0.0 if data is None else _seconds(subject.original, data.inputs[0]) * len(data) * (1 + ratio)
    check = export / 2 + _RUNS_OF_CHECK * (_FLOAT64 + 1) * example
    found |= {"evaluate": scored, "export slim": export, "check": check}
    found |= {} if options.stream else {"latency": options.latency_seconds}
    if options.loader_compatible:  # opened again, and a few tokens generated
        found["loader"] = check
    for kind in filter(None, (options.onnx_dtype, options.quantize)):
        found[kind] = export + check + scored / 2 + options.latency_seconds
    return found


def _seconds(program: Program, inputs: Sequence[Tensor]) -> float:
    evaluator = Evaluator(program)
    evaluator.run(inputs)
    start = time.perf_counter()
    evaluator.run(inputs)
    return time.perf_counter() - start


def _peak(subject: Subject, made: Made, predicted: int | None) -> int:
    """What the process has needed so far, or what the later steps will, whichever is more: the proof holds both
    programs in float64, the check the slim one in float64 and in a session. With weights on disk it is what was
    `predicted`."""
    if predicted is not None:
        return max(predicted, own_peak_bytes())
    used = own_peak_bytes() if importlib.util.find_spec("resource") is not None else 0
    before, after = _bytes(subject.original), _bytes(made.program)
    return used + max(0, 2 * (before + after) - before)
