"""How far the slim program is from the original: a measurement of quality, never a test of equality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxslim.export.interface import tensor_outputs
from fxslim.export.together import Answer, run_together
from fxslim.graph.caches import refitted_caches
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program

__all__ = ["Quality", "measure_quality"]


@dataclass(frozen=True)
class Quality:
    """One output over all runs. `rmse` is in the output's unit, `relative` is rmse / rms(original)."""

    name: str
    rmse: float
    relative: float
    not_comparable: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values; a number that is not finite becomes None."""
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in vars(self).items()}


def measure_quality(
    original: Program | None, slim: Program, batches: Sequence[Sequence[torch.Tensor]]
) -> list[Quality]:
    """The distance between the outputs of both programs in PyTorch. Empty without an original or without runs."""
    if original is None or not batches:
        return []
    pairs = _for_both(original, batches)
    runs = list(zip(_runs(original, [b for _, b in pairs]), _runs(slim, [b for b, _ in pairs]), strict=True))
    return [_quality(name, runs) for name in tensor_outputs(slim)]


def _for_both(
    original: Program, batches: Sequence[Sequence[torch.Tensor]]
) -> list[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]:
    """The batches of the slim program with those for the original: of other widths only caches that are empty say the
    same to both. All batches as they are where none does."""
    found: list[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]] = []
    for batch in batches:
        with suppress(InputError):
            found.append((batch, refitted_caches(original, batch)))
    return found or [(batch, batch) for batch in batches]


def _runs(program: Program, batches: Sequence[Sequence[torch.Tensor]]) -> list[dict[str, torch.Tensor] | str]:
    """The outputs by name for each batch, or the reason why there are none."""
    if program.weights.on_disk:
        (answers,) = run_together([Evaluator(program)], batches)
    else:
        module = program.flat_module().eval()
        answers = [_run(module, batch) for batch in batches]
    return [_by_name(program, answer) for answer in answers]


def _run(module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Answer:
    try:
        with torch.no_grad():
            return list(module(*inputs))
    except Exception as error:  # an input that changed its size with the pruning does not fit the original
        return error


def _by_name(program: Program, answer: Answer) -> dict[str, torch.Tensor] | str:
    if isinstance(answer, Exception):
        return f"{type(answer).__name__}: {' '.join(str(answer).split())[:200]}"
    named = zip(program.output_names, answer, strict=True)
    return {name: value for name, value in named if isinstance(value, torch.Tensor)}


def _quality(name: str, runs: Sequence[tuple[Any, Any]]) -> Quality:
    errors, scale, count = 0.0, 0.0, 0
    for before, after in runs:
        problem = _incomparable(name, before, after)
        if problem:
            return Quality(name, math.nan, math.nan, problem)
        a, b = before[name].double(), after[name].double()
        finite = torch.isfinite(a) & torch.isfinite(b)
        errors += float((a - b)[finite].square().sum())
        scale += float(a[finite].square().sum())
        count += int(finite.sum())
    rmse = math.sqrt(errors / count) if count else math.nan
    return Quality(name, rmse, math.sqrt(errors / scale) if scale else math.nan)


def _incomparable(name: str, before: Any, after: Any) -> str | None:
    for run in (before, after):
        if isinstance(run, str):
            return run
    if name not in before:
        return "the original has no output of this name"
    if before[name].shape != after[name].shape:
        return f"the shape changed from {list(before[name].shape)} to {list(after[name].shape)}"
    return None
