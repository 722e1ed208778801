"""Gates: what a result has to reach besides being right. Each decides the exit code, and says why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fxslim.evaluate import Score
from fxslim.export import LatencyReport, OnnxCheck, OnnxFile
from fxslim.graph.errors import InputError
from fxslim.slim_options import SlimOptions
from fxslim.variants import Variant

__all__ = ["Gate", "Measured", "judge", "quality_loss", "refuse_unmeasured"]


@dataclass(frozen=True)
class Gate:
    """One gate of one file. `found` is None where there was nothing to compare: such a gate is not passed."""

    name: str  # of the option
    file: str
    limit: float
    found: float | None
    ok: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """What gates look at."""

    scores: tuple[Score, Score] | None  # original, slim
    latency: LatencyReport
    file: OnnxFile  # model.onnx
    check: OnnxCheck
    variants: tuple[Variant, ...]


def refuse_unmeasured(options: SlimOptions, *, scored: bool) -> None:
    """Returns if every gate will have something to look at; asked before the work.

    Raises:
        InputError: quality has a gate, and nothing will measure it.
    """
    if options.max_quality_loss is not None and not scored:
        raise InputError(
            "--max-quality-loss needs evaluation data, and there is none",
            remedy="give --evaluation with labels or text",
        )


def judge(options: SlimOptions, found: Measured) -> tuple[Gate, ...]:
    """The gates that were asked for. They hold for the file that is to be served: model.onnx, or, where further files
    were asked for (`--onnx-dtype`, `--quantize`), for each of these. Speed is that of the interval's lower end."""
    return tuple(_gates(options, found))


def quality_loss(before: Score, after: Score) -> float:
    """By how much a score is worse than the original's, as a share of that one's; negative where it is better.

    Raises:
        ZeroDivisionError: the original's is 0, and no share of it says anything.
    """
    change = before.value - after.value if before.higher_is_better else after.value - before.value
    return change / abs(before.value)


def _gates(options: SlimOptions, found: Measured) -> Iterator[Gate]:
    served = found.variants or (None,)
    for variant in served:
        name = found.file.path.name if variant is None else variant.kind
        if options.max_quality_loss is not None:
            yield _quality(name, options.max_quality_loss, found.scores, variant)
        if options.min_speedup is not None:
            yield _speed(name, options.min_speedup, found.latency, variant)
        if options.max_bytes is not None:
            yield _bytes(name, options.max_bytes, found.file if variant is None else variant.file)
    if options.max_parity_error is not None:
        yield _parity(found.file.path.name, options.max_parity_error, found.check)


def _quality(name: str, limit: float, scores: tuple[Score, Score] | None, variant: Variant | None) -> Gate:
    before, after = scores or (None, None)
    after = after if variant is None else variant.score
    if before is None or after is None or not before.value:
        return _unmeasured("max_quality_loss", name, limit)
    loss = quality_loss(before, after)
    how = "worse" if loss > 0 else "better"
    change = f"{before.name} {before.value:.5g} -> {after.value:.5g}, {abs(loss):.2%} {how}"
    return Gate("max_quality_loss", name, limit, loss, loss <= limit, f"{name}: {change}; {limit:.2%} is allowed")


def _speed(name: str, limit: float, latency: LatencyReport, variant: Variant | None) -> Gate:
    low, noise = latency.ratio.low, latency.control.high
    if variant is not None:  # original / slim * slim / this
        if variant.latency is None:
            return _unmeasured("min_speedup", name, limit)
        low *= variant.latency.ratio.low
        noise *= variant.latency.control.high
    sure = low > noise or limit < 1  # a model that may be slower need not be told from noise
    text = f"{name}: at least {low:.2f} times as fast as the original; {limit:.2f} is wanted"
    if not sure:
        text += f", and the original differs from itself by up to {noise:.2f}"
    return Gate("min_speedup", name, limit, low, low >= limit and sure, text)


def _bytes(name: str, limit: int, file: OnnxFile | None) -> Gate:
    if file is None:
        return _unmeasured("max_bytes", name, limit)
    text = f"{name}: {file.file_bytes:,} bytes; {limit:,} are allowed"
    return Gate("max_bytes", name, limit, file.file_bytes, file.file_bytes <= limit, text)


def _parity(name: str, limit: float, check: OnnxCheck) -> Gate:
    errors = [o.max_abs for run in check.shapes for o in run.outputs]
    finite = errors and all(map(math.isfinite, errors))
    worst = max(errors) if finite else math.inf
    text = f"{name}: outputs differ from the slim program's by up to {worst:.2g}; {limit:.2g} is allowed"
    return Gate("max_parity_error", name, limit, worst, worst <= limit, text)


def _unmeasured(gate: str, name: str, limit: float) -> Gate:
    return Gate(gate, name, limit, None, False, f"{name}: there is no measurement to hold against {limit:g}")
