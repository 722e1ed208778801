"""How far a changed program is from the original, by its outputs alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

__all__ = ["divergence"]


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
            if not bool((new.isfinite() | ~old.isfinite()).all()):
                return float("inf")
            total += _kl(old, new) if "logits" in name and old.shape[-1] > 1 else _relative(old, new)
    return total


def _kl(old: Tensor, new: Tensor) -> float:
    a, b = old.float().log_softmax(-1), new.float().log_softmax(-1)
    rows = (a.exp() * (a - b).nan_to_num(0.0)).sum(-1)  # p = 0 counts nothing
    rows = rows[old.float().logsumexp(-1).isfinite()]
    return float(rows.mean().clamp(min=0)) if rows.numel() else 0.0


def _relative(old: Tensor, new: Tensor) -> float:
    a, b = old.double(), new.double()
    finite = a.isfinite()
    spread = (a[finite] - a[finite].mean()).square().sum().clamp(min=1e-30)
    return float((a - b)[finite].square().sum() / spread) if bool(finite.any()) else 0.0
