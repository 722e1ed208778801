"""The report: one JSON document with everything that a run found out; `report_text` prints it for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fxslim import plugins
from fxslim.calibration import data_facts
from fxslim.data import Batches
from fxslim.evaluate import Score
from fxslim.export import LatencyReport, OnnxCheck, OnnxFile, available_providers
from fxslim.gates import Gate
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.costs import CostModel
from fxslim.graph.program import Program
from fxslim.loader_check import LoaderCheck
from fxslim.made import Made
from fxslim.passes.plan import Plan
from fxslim.passes.prove import Proof
from fxslim.report_facts import curve_facts, group_facts, identity, uncut_facts, weight_facts
from fxslim.report_file import FORMAT
from fxslim.variants import Variant
from fxslim.versions import versions

__all__ = ["FORMAT", "Findings", "finite", "make_report", "predicted_macs", "proof_facts"]

IDLE_MASKS = "masking the removed units changed no output on these inputs, so that agreement says nothing"
DEAD_UNITS = "what is cut was dead: the comparison was repeated with random weights"


@dataclass(frozen=True)
class Findings:
    """What a run of the pipeline made and measured. Sizes of files are bytes."""

    source: str
    task: str | None
    command: str
    original: Program  # as it came
    analysis: Analysis  # of what the plan is for: prepared
    plan: Plan
    proof: Proof
    made: Made
    calibration: Batches | None
    evaluation: Batches | None
    scores: tuple[Score, Score] | None  # original, slim
    files: tuple[OnnxFile, OnnxFile]  # original, slim
    check: OnnxCheck
    latency: LatencyReport
    latency_shapes: dict[str, list[int]]
    seconds: dict[str, float]  # by step
    notes: tuple[str, ...] = ()
    provider: str = "auto"  # as it was asked for
    opened: dict[str, str | None] = field(default_factory=dict)  # its name, form (a task) and type as asked for
    variants: tuple[Variant, ...] = ()  # further files, in other types
    loader: LoaderCheck | None = None
    gates: tuple[Gate, ...] = ()
    recipe: str = ""  # as YAML
    resumed: tuple[str, ...] = ()  # steps whose results an earlier run had left
    memory: dict[str, int] | None = None  # of a run whose weights stayed on disk
    estimated: Mapping[str, float] = field(default_factory=dict)  # seconds of steps that were said before


def make_report(found: Findings) -> dict[str, Any]:
    """The report as JSON values. `verdict` is `ok` only if the proof and the checks of all ONNX files passed,
    optimum's loader took it where that was asked for, and a plan by latency made the model faster."""
    failures = _failures(found)
    report = {
        "format": FORMAT,
        "verdict": "FAILED" if failures else "ok",
        "failures": failures,
        "model": {"name": found.source, "task": found.task, **found.opened, **identity(found.original)},
        "command": found.command,
        "recipe": found.recipe,
        "resumed": list(found.resumed),
        "memory": found.memory,
        "gates": [gate.to_dict() for gate in found.gates],
        "costs": _costs(found),
        "quality": _quality(found),
        "weights": weight_facts(found.original, found.made.program),
        "groups": group_facts(found.analysis, found.plan),
        "uncut": uncut_facts(found.analysis, found.plan),
        "curves": curve_facts(found.made.curves, found.analysis, found.plan, found.original, found.made.program),
        "restoration": found.made.restoration,
        "proof": proof_facts(found.proof),
        "provider": _provider(found),
        "parity": found.check.to_dict(),
        "loader": None if found.loader is None else found.loader.to_dict(),
        "latency": {**found.latency.to_dict(), "shapes": found.latency_shapes, "plan": _paced(found)},
        "fixed": _fixed(found.analysis),
        "unknown_operators": found.analysis.unknown_ops,
        "plan": {"options": dict(found.plan.options), "notes": list(found.plan.notes)},
        "data": {
            "calibration": None if found.calibration is None else data_facts(found.calibration),
            "evaluation": None if found.evaluation is None else data_facts(found.evaluation),
        },
        "onnx": {"original": found.files[0].to_dict(), "slim": found.files[1].to_dict()},
        "variants": [v.to_dict() for v in found.variants],
        "notes": [*found.notes, *map(str, plugins.active())],
        "seconds": {name: round(value, 2) for name, value in found.seconds.items()},
        "estimated_seconds": {name: round(value, 2) for name, value in found.estimated.items()},
        "versions": versions(),
        "plugins": plugins.facts(),
    }
    cleaned: dict[str, Any] = finite(report)
    return cleaned


def finite(value: Any) -> Any:
    """The same JSON value with None for every number that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def proof_facts(proof: Proof) -> dict[str, Any]:
    """A proof as JSON values."""
    return {
        "ok": proof.ok,
        "conclusive": proof.conclusive,
        "exact": proof.exact,
        "cuts": proof.cuts,
        "error": proof.max_error,
        "tolerance": proof.tolerance,
        "effect": proof.effect,
        "outputs": [asdict(o) for o in proof.outputs],
        "inexact": list(proof.inexact),
        "notes": [*([] if proof.conclusive else [IDLE_MASKS]), *([DEAD_UNITS] if proof.shaken else [])],
    }


def _failures(found: Findings) -> list[str]:
    failures = [f"ONNX: {text}" for text in found.check.failures]
    failures += [f"{v.kind}: {text}" for v in found.variants for text in v.failures]
    failures += [f"loader: {text}" for text in (found.loader.failures if found.loader is not None else ())]
    failures += [f"{gate.name}: {gate.text}" for gate in found.gates if not gate.ok]
    if not found.proof.conclusive:
        failures.insert(0, f"proof: {IDLE_MASKS}")
    elif not found.proof.ok:
        first = f"proof: the slim program differs from the masked original by {found.proof.max_error:.1e} (relative)"
        failures.insert(0, f"{first}, {found.proof.tolerance:.0e} is allowed")
    if found.made.paced is not None and not found.latency.faster:
        failures.append(f"latency: no plan pays: the slim model is {found.latency.verdict}")
    elif found.made.paced is not None and found.made.paced.missed:
        took = f"{found.made.paced.chosen.measured:.0%} of the time is the least that was reached"
        failures.append(f"latency: {found.made.paced.keep:.0%} was asked for, {took}")
    return failures


def _provider(found: Findings) -> dict[str, Any]:
    """Where the model was checked and timed, what was asked for, and how float32 is computed there."""
    used = found.check.provider
    tf32 = {"check": "off", "latency": "on"} if used in ("cuda", "tensorrt") else None
    return {"asked": found.provider, "used": used, "available": list(available_providers()), "tf32": tf32}


def _paced(found: Findings) -> dict[str, Any] | None:
    """How a plan by latency was found: the share of the time that was asked for, and what each attempt took."""
    if found.made.paced is None:
        return None
    return {
        "keep": found.made.paced.keep,
        "multiple": found.made.paced.multiple,
        "measured": found.made.paced.chosen.measured,
        "of": found.made.paced.chosen.of,
        "attempts": [asdict(a) for a in found.made.paced.attempts],
    }


def _costs(found: Findings) -> dict[str, list[int]]:
    original, slim = found.files
    slim_program = found.made.program
    return {
        "params": [found.original.parameters(), slim_program.parameters()],
        "macs": list(predicted_macs(found.plan, found.analysis)),
        "initializer_bytes": [original.initializer_bytes, slim.initializer_bytes],
        "file_bytes": [original.file_bytes, slim.file_bytes],
    }


def predicted_macs(plan: Plan, analysis: Analysis) -> tuple[int, int]:
    """MACs of one run of the example inputs, before and after; those of a plan that a person wrote are counted again
    from what it keeps. `analysis` is that of the program that the plan is for."""
    if predicted := plan.predicted.get("macs"):
        return predicted[0], predicted[1]
    cut = {analysis.group(c.group).axis: c.count for c in plan.cuts}
    costs = CostModel(analysis.axes)
    return costs.macs(), costs.macs(cut)


def _quality(found: Findings) -> dict[str, Any] | None:
    if found.scores is None:
        return None
    before, after = found.scores
    return {
        "name": before.name, "higher_is_better": before.higher_is_better, "count": before.count,
        "before": before.value, "after": after.value,
    }  # fmt: skip


def _fixed(analysis: Analysis) -> list[dict[str, Any]]:
    """Reasons for which groups are fixed, the most frequent first, each with how many groups and one example."""
    reasons: Counter[str] = Counter()
    example: dict[str, str] = {}
    for group in analysis.groups:
        if group.fixed is not None:
            text = group.fixed.text
            reasons[text] += 1
            example.setdefault(text, group.name)
    return [{"reason": text, "groups": n, "example": example[text]} for text, n in reasons.most_common()]
