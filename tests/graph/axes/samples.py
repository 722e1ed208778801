"""The database of sample calls: at least one for every registered operator, the first being the canonical one."""

from __future__ import annotations

import torch

from fxslim.graph.axes.oracle import Sample
from tests.graph.axes import (
    samples_index,
    samples_linear,
    samples_matrix,
    samples_pointwise,
    samples_rnn,
    samples_shape,
    samples_special,
)

__all__ = ["SAMPLES", "canonical"]


_MODULES = (
    samples_pointwise,
    samples_linear,
    samples_shape,
    samples_special,
    samples_matrix,
    samples_index,
    samples_rnn,
)


def _all() -> tuple[Sample, ...]:
    state = torch.random.get_rng_state()
    torch.manual_seed(20240607)
    found = tuple(s for module in _MODULES for s in module.samples())
    torch.random.set_rng_state(state)
    return found


SAMPLES: tuple[Sample, ...] = _all()


def canonical() -> dict[str, Sample]:
    """Operator name -> its first sample, alphabetical."""
    first: dict[str, Sample] = {}
    for sample in SAMPLES:
        first.setdefault(str(sample.op), sample)
    return dict(sorted(first.items()))
