"""What a run will need of memory, said before any weight is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxslim.data import Batches
from fxslim.export.peak import own_bytes
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError
from fxslim.passes.consumers import find_consumers
from fxslim.passes.memory import Peak, proof_memory, slice_memory, walk_memory
from fxslim.passes.methods import Settings
from fxslim.passes.upstream import choose_upstream
from fxslim.passes.work import cut_by
from fxslim.slim_options import SlimOptions

__all__ = ["SLACK", "MemoryPlan", "plan_memory", "predicted_bytes"]

SLACK = 64 << 20
"""Bytes that the interpreter, libraries and small values need besides what is counted."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes: what the process has now, what each step adds at its peak, and the most of all together."""

    now: int
    steps: dict[str, Peak]

    @property
    def bytes(self) -> int:
        """The peak of the process."""
        return self.now + max((peak.bytes for peak in self.steps.values()), default=0) + SLACK

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        steps = {name: {"at": p.at, "bytes": p.bytes, "parts": dict(p.parts)} for name, p in self.steps.items()}
        return {"now": self.now, "slack": SLACK, "steps": steps, "peak_bytes": self.bytes}


def plan_memory(
    analysis: Analysis, batches: Sequence[Sequence[Tensor]] | None, chosen: Settings, *,
    groups: Sequence[str] | None = None, inexact: bool = False,
) -> MemoryPlan:  # fmt: skip
    """The peak of choosing, restoring, slicing and proving by a method, counted from the graph: of an export and its
    check nothing is said.

    Raises:
        InputError: nothing of the model may be cut, or the system does not say what a process has.
    """
    if importlib.util.find_spec("resource") is None:
        raise InputError("this system does not say how much memory a process has")
    program = analysis.program
    steps = {
        "slice": slice_memory(program),
        "prove": proof_memory(program, program.example_inputs),
    }
    if batches:
        own = cut_by(analysis, chosen, groups, inexact=inexact)[1] or find_consumers(analysis.axes)[0]
        second = chosen.importance == "obs" or chosen.metric is not None
        steps["calibrate"] = walk_memory(
            analysis, batches, consumers=own, eliminates=second,
            upstream=choose_upstream(analysis, own, batches) if chosen.refits else "compressed",
        )  # fmt: skip
    return MemoryPlan(own_bytes(), steps)


def predicted_bytes(options: SlimOptions, analysis: Analysis, calibration: Batches | None) -> int | None:
    """The peak of the process up to the proof of what the options ask for; None where the system does not tell what a
    process has."""
    if importlib.util.find_spec("resource") is None:
        return None
    chosen = options.settings(data=calibration is not None)
    batches = None if calibration is None else calibration.inputs
    return plan_memory(analysis, batches, chosen, groups=options.groups, inexact=options.inexact).bytes
