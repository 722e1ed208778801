"""How long compressing OPT-125M's shape takes, against what it has to compute at the least."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.scale_models import SCRATCH, text_batches, write_opt
from fxslim.api import compress
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.evaluate import Evaluator
from fxslim.opening import open_model, prepared
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.methods import settings

__all__ = ["add_arguments", "main"]

_SIDE = 2048  # of the matrices whose product tells the machine's rate
_REPEATS = 3


@dataclass(frozen=True)
class Floor:
    """Seconds of what has to be computed: one forward over the data, second moments, one solve for each call."""

    forward: float  # measured, up to the last call that is restored
    whole_forward: float  # measured, to the logits
    moments: float  # counted, at the measured rate of float32 products
    solves: float  # counted, at the measured rate of float64 products

    @property
    def full(self) -> float:
        """With second moments as products of two matrices."""
        return self.forward + self.moments + self.solves

    @property
    def half(self) -> float:
        """With what a symmetric product needs at the least."""
        return self.forward + self.moments / 2 + self.solves


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m benchmarks.scale speed` is asked."""
    parser.add_argument("--method", nargs="+", default=["fasp", "best"])
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=8, help="windows in a batch")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stream", action="store_true")


def main(options: argparse.Namespace) -> list[str]:
    """The table, as lines of Markdown."""
    torch.set_num_threads(options.threads)
    lines = [
        f"OPT-125M's shape, {options.windows} windows of {options.tokens} tokens, {options.threads} threads"
        + (", weights on disk" if options.stream else ""),
        "",
        "| method | seconds | floor | ratio | floor, half of each moment | ratio | forward | moments | solves |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        source = open_model(str(write_opt(Path(folder) / "opt", options.layers)), **_streamed(options))
        analysis = prepared(source.program)
        vocabulary = source.program.info["model.decoder.embed_tokens.weight"].shape[0]
        batches = text_batches(
            source.program.input_names, vocabulary, options.windows, options.tokens, options.rows
        )  # fmt: skip
        for method in options.method:
            chosen = settings(method, data=True)
            asked: dict[str, Any] = {**chosen.options(), "restore": chosen.restore}
            seconds, (_, applied) = _timed(lambda: compress(analysis, options.keep, calibration=batches, **asked))  # noqa: B023
            assert applied.restoration is not None
            weights = {row.weight for row in applied.restoration.rows}
            own = [c for c in find_consumers(analysis.axes)[0] if c.weight in weights] or find_consumers(analysis.axes)[
                0
            ]
            floor = measure_floor(analysis, own, batches)
            lines.append(
                f"| {method} | {seconds:.1f} | {floor.full:.1f} | {seconds / floor.full:.2f} | {floor.half:.1f} "
                f"| {seconds / floor.half:.2f} | {floor.forward:.1f} (whole {floor.whole_forward:.1f}) "
                f"| {floor.moments:.1f} | {floor.solves:.1f} |"
            )
    return lines


def _streamed(options: argparse.Namespace) -> dict[str, Any]:
    return {"stream": True} if options.stream else {}


def measure_floor(analysis: Analysis, consumers: Sequence[Consumer], batches: Sequence[Sequence[Tensor]]) -> Floor:
    """The floor for restoring `consumers` on `batches`."""
    nodes = list(analysis.program.graph.nodes)
    last = max(nodes.index(c.node) for c in consumers)
    forward, _ = _timed(lambda: [_forward(analysis, batch, last) for batch in batches])
    whole, _ = _timed(lambda: [_forward(analysis, batch, len(nodes)) for batch in batches])
    tokens = sum(batch[0].numel() for batch in batches)
    moments, solves = 0, 0
    for consumer in consumers:
        blocks, outputs, columns = consumer.shape(analysis.program)
        moments += 2 * blocks * tokens * columns**2
        solves += blocks * (columns**3 // 3 + 4 * outputs * columns**2)  # Cholesky, right sides, two triangular solves
    return Floor(forward, whole, moments / _rate(torch.float32), solves / _rate(torch.float64))


def _forward(analysis: Analysis, batch: Sequence[Tensor], end: int) -> None:
    evaluator = Evaluator(analysis.program)
    evaluator.advance(evaluator.bind(batch), list(analysis.program.graph.nodes)[:end])


def _rate(dtype: torch.dtype) -> float:
    """Floating point operations a second of a large product, the best of a few."""
    a = torch.randn(_SIDE, _SIDE, dtype=dtype)
    return 2 * _SIDE**3 / min(_timed(lambda: a @ a)[0] for _ in range(_REPEATS))


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result
