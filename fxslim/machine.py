"""What this machine does in a second, from measurements of a fraction of one."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fxslim.passes.work import Rates

__all__ = ["measure_rates"]

_SIDE, _SMALL = 768, 256
_BYTES = 32 << 20
_RUNS = 3


def measure_rates() -> Rates:
    """The rates at which this process computes and moves data, with the threads that torch has now. The best of a few
    runs of each: what else happens on the machine only slows."""
    generator = torch.Generator().manual_seed(0)
    single = torch.randn(_SIDE, _SIDE, generator=generator)
    double = torch.randn(_SIDE, _SIDE, generator=generator, dtype=torch.float64)
    positive = double @ double.mT + _SIDE * torch.eye(_SIDE, dtype=torch.float64)
    small = positive[:_SMALL, :_SMALL].contiguous()
    block = torch.empty(_BYTES, dtype=torch.uint8)
    products, solved = 2.0 * _SIDE**3, _SIDE**3 / 3 + 2.0 * _SIDE**3
    return Rates(
        single=products / _best(lambda: single @ single), double=products / _best(lambda: double @ double),
        solving=solved / _best(lambda: torch.cholesky_solve(double, torch.linalg.cholesky(positive))),
        decomposing=10.0 * _SMALL**3 / _best(lambda: torch.linalg.eigh(small)),
        bandwidth=2.0 * _BYTES / _best(block.clone),
    )  # fmt: skip


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest run."""
    run()
    found = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        run()
        found = min(found, time.perf_counter() - start)
    return found
