"""From which share of a weight's size on a pair of a low rank is the slower one: where a plan may choose pairs.

    python -m benchmarks.break_even [--out FILE.md] [--threads 1] [--seconds 4]

Each weight and its pair are exported and timed by turns in ONNX Runtime, at ranks where the pair costs the given share
of the weight's parameters (and multiply-accumulate operations).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from fxslim.api import capture
from fxslim.export import export_onnx, measure_latency

SHARES = (1.0, 0.9, 0.8, 0.7, 0.5)
TOKENS, PICTURE = 256, 14


def linear(n: int, k: int) -> tuple[nn.Module, Tensor]:
    return nn.Linear(k, n), torch.randn(1, TOKENS, k)


def convolution(n: int, k: int, kernel: int) -> tuple[nn.Module, Tensor]:
    return nn.Conv2d(k, n, kernel, padding=kernel // 2), torch.randn(1, k, PICTURE, PICTURE)


def pair(whole: nn.Module, share: float) -> nn.Module:
    """Two maps in place of one, with `share` of its parameters."""
    weight = whole.get_parameter("weight")
    n, k = len(weight), weight[0].numel()
    rank = round(share * n * k / (n + k))
    if isinstance(whole, nn.Conv2d):
        inner: nn.Module = nn.Conv2d(weight.shape[1], rank, weight.shape[2:], padding=whole.padding, bias=False)
        return nn.Sequential(inner, nn.Conv2d(rank, n, 1))
    return nn.Sequential(nn.Linear(k, rank, bias=False), nn.Linear(rank, n))


def ratio(whole: nn.Module, small: nn.Module, x: Tensor, threads: int, seconds: float) -> str:
    """How many times as fast the pair is, with its interval."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("whole", "pair")}
        for path, module in zip(paths.values(), (whole, small), strict=True):
            export_onnx(capture(module.eval(), (x,)), path)
        found = measure_latency(
            paths, dict.fromkeys(paths, (x,)), provider="cpu", threads=threads, seconds_budget=seconds
        ).ratio
    return f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    cases = {
        f"linear 384 <- 384, {TOKENS} tokens": linear(384, 384),
        f"linear 1536 <- 384, {TOKENS} tokens": linear(1536, 384),
        f"linear 768 <- 3072, {TOKENS} tokens": linear(768, 3072),
        f"1x1 convolution 256 <- 256, {PICTURE} x {PICTURE}": convolution(256, 256, 1),
        f"3x3 convolution 128 <- 128, {PICTURE} x {PICTURE}": convolution(128, 128, 3),
    }
    lines = [
        "How many times as fast a pair is as its weight, at shares of its parameters (95 % interval):", "",
        f"| weight | {' | '.join(f'{s:.0%}' for s in SHARES)} |", "|---" * (len(SHARES) + 1) + "|",
    ]  # fmt: skip
    for name, (whole, x) in cases.items():
        row = [ratio(whole, pair(whole, share), x, options.threads, options.seconds) for share in SHARES]
        lines.append(f"| {name} | {' | '.join(row)} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
