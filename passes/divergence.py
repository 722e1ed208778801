"""How far a changed program is from the original, by its outputs alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from fxslim.passes.statistics import is_finite

__all__ = ["divergence"]

_AT_ONCE = 1 << 19  # numbers of each side: what is computed from so many stays in a processor's cache


def divergence(
    names: Sequence[str], original: Sequence[Any], changed: Sequence[Any], caches: Collection[str] = ()
) -> float:
    """The sum over all floating point outputs of KL(original || changed), in nats a row, where an output is called
    logits, else of the squared error relative to the original's variance. What was not finite before (a vocabulary that
    is masked in part, a row that has no distribution) is left out, and so are outputs that replace `caches`: what they
    are for shows in the others. Infinite where a value is not finite any more."""
    total = 0.0
    for name, old, new in zip(names, original, changed, strict=True):
        if isinstance(old, Tensor) and old.is_floating_point() and old.numel() and name not in caches:
            if not is_finite(new) and not bool((new.isfinite() | ~old.isfinite()).all()):
                return float("inf")
            total += _kl(old, new) if "logits" in name and old.shape[-1] > 1 else _relative(old, new)
    return total


def _kl(old: Tensor, new: Tensor) -> float:
    """The mean over the rows that have a distribution, a few rows at a time: vocabularies are large."""
    count = max(1, _AT_ONCE // old.shape[-1])
    sides = (torch.split(value.reshape(-1, value.shape[-1]), count) for value in (old, new))
    parts = [_rows(a.float(), b.float()) for a, b in zip(*sides, strict=True)]
    total, rows = sum(float(part.sum()) for part in parts), sum(len(part) for part in parts)
    return max(0.0, total / rows) if rows else 0.0


def _rows(old: Tensor, new: Tensor) -> Tensor:
    """KL(old || new) of the rows of `old` that have a distribution: [rows], float64."""
    new = new.masked_fill(old == -float("inf"), -float("inf"))  # what was ruled out stays so, whatever it is now
    a, b = old.log_softmax(-1), new.log_softmax(-1)
    found = (a.exp() * (a - b).nan_to_num(0.0)).sum(-1, dtype=torch.float64)  # p = 0 counts nothing
    return found[old.logsumexp(-1).isfinite()]


def _relative(old: Tensor, new: Tensor) -> float:
    a, b = old.double(), new.double()
    finite = a.isfinite()
    spread = (a[finite] - a[finite].mean()).square().sum().clamp(min=1e-30)
    return float((a - b)[finite].square().sum() / spread) if bool(finite.any()) else 0.0
