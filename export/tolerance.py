"""How far two computations of one function may differ: measured against float64, not a fixed number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fxslim.export.providers import provider_name
from fxslim.graph.errors import InputError

__all__ = [
    "BFLOAT16",
    "FLOAT16",
    "FLOAT32",
    "HALF",
    "TF32",
    "TOLERANCES",
    "Comparison",
    "Tolerance",
    "compare",
    "tolerance_for",
    "tolerance_of_type",
]


@dataclass(frozen=True)
class Tolerance:
    """`rmse(candidate, fp64) <= factor * rmse(reference, fp64) + epsilon * rms(fp64)`.

    The largest single error is bounded in the same way, with `outlier` times as much: a mean over a large output would
    hide one wrong element. Outputs of fewer than `SMALL` elements get `small_factor`, since their noise is an estimate
    from few samples.
    """

    name: str
    factor: float
    small_factor: float
    epsilon: float
    outlier: float
    reason: str


SMALL = 64

FLOAT32 = Tolerance(
    "float32", 3.0, 10.0, 2.0**-20, 8.0,
    "both sides round in float32 and differ in the order of sums and in the polynomials for exp, erf and tanh, which "
    "are good to a few units in the last place (2^-23); 2^-20 leaves three bits for those",
)  # fmt: skip
TF32 = Tolerance(
    "tf32", 3.0, 10.0, 2.0**-10, 8.0,
    "the provider multiplies with a mantissa of 10 bits and cannot be told not to; weaker than the float32 check",
)  # fmt: skip
HALF = Tolerance(
    "half", 3.0, 10.0, 2.0**-10, 8.0,
    "weights or inputs hold 10 (float16) or 7 (bfloat16) bits, and providers keep different intermediates in float32",
)  # fmt: skip
FLOAT16 = Tolerance(
    "float16", 3.0, 10.0, 2.0**-10, 8.0,
    "the reference is the program with every result rounded to float16; runtimes round at other places (fused "
    "operators round once, decomposed ones more often), and 2^-10 is one unit in the last place",
)  # fmt: skip
BFLOAT16 = Tolerance(
    "bfloat16", 3.0, 10.0, 2.0**-7, 8.0,
    "the reference is the program with every result rounded to bfloat16; runtimes round at other places, and 2^-7 is "
    "one unit in the last place",
)  # fmt: skip
TOLERANCES = {t.name: t for t in (FLOAT32, TF32, HALF, FLOAT16, BFLOAT16)}

_REDUCED = ("tensorrt", "tensorrt-rtx", "coreml", "qnn", "directml", "migraphx")


def tolerance_for(provider: str, dtypes: set[torch.dtype]) -> Tolerance:
    """The tolerance for a program with data of `dtypes` on an ONNX Runtime provider."""
    if dtypes & {torch.float16, torch.bfloat16}:
        return HALF
    return TF32 if provider_name(provider) in _REDUCED else FLOAT32


def tolerance_of_type(dtype: str) -> Tolerance:
    """The tolerance for a file whose arithmetic is in `dtype`: float16 or bfloat16."""
    return {"float16": FLOAT16, "bfloat16": BFLOAT16}[dtype]


@dataclass(frozen=True)
class Comparison:
    """One output of one run. Errors are against the reference, in the output's own unit; rms errors against float64."""

    name: str
    max_abs: float  # largest |candidate - reference|
    max_rel: float  # the same over the largest |reference|
    rmse: float  # of the candidate against float64
    noise_floor: float  # of the reference against float64
    allowed: float  # bound on rmse
    ok: bool
    problem: str | None = None
    constant: bool = False  # the exact output has one value throughout: agreeing with it proves little

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values; a number that is not finite becomes None."""
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in vars(self).items()}


def compare(
    name: str, candidate: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor, tolerance: Tolerance
) -> Comparison:
    """Whether `candidate` is as good an answer as `reference` is, judged by `exact`, the float64 one. Shapes are equal.

    Integers and booleans have no noise and must be equal. Infinities (masked logits) must be in the same places.
    """
    if not candidate.shape == reference.shape == exact.shape:
        raise InputError(f"{name}: shapes {[list(t.shape) for t in (candidate, reference, exact)]} cannot be compared")
    wide, base = candidate.detach().double(), reference.detach().double()
    if not reference.is_floating_point():
        return _compare_integers(name, wide, base)
    truth = exact.detach().double()
    finite = torch.isfinite(base) & torch.isfinite(truth)
    unlike = int((~_same(wide, base) & ~finite).sum()) + int((~torch.isfinite(wide) & finite).sum())
    if unlike:
        problem = f"{unlike} of {base.numel()} values are not finite on one side only"
        return Comparison(name, math.inf, math.inf, math.inf, 0.0, 0.0, False, problem)
    if base.numel() and not bool(finite.any()):
        problem = "no value is finite, so there is nothing to compare"
        return Comparison(name, 0.0, 0.0, 0.0, 0.0, 0.0, False, problem)
    return _compare_floats(name, wide[finite], base[finite], truth[finite], tolerance)


def _same(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _compare_integers(name: str, candidate: torch.Tensor, reference: torch.Tensor) -> Comparison:
    difference = _peak(candidate - reference)
    wrong = int((candidate != reference).sum())
    problem = f"{wrong} of {reference.numel()} integers differ" if wrong else None
    relative = difference / (_peak(reference) or 1.0)
    return Comparison(name, difference, relative, _rms(candidate - reference), 0.0, 0.0, wrong == 0, problem)


def _compare_floats(
    name: str, candidate: torch.Tensor, reference: torch.Tensor, exact: torch.Tensor, tolerance: Tolerance
) -> Comparison:
    factor = tolerance.small_factor if exact.numel() < SMALL else tolerance.factor
    error, floor = _rms(candidate - exact), _rms(reference - exact)
    allowed = factor * floor + tolerance.epsilon * _rms(exact)
    peak = _peak(candidate - exact)
    peak_allowed = tolerance.outlier * (factor * _peak(reference - exact) + tolerance.epsilon * _peak(exact))
    problem = None
    if error > allowed:
        problem = f"rms error {error:.3g} against float64 exceeds {allowed:.3g} (PyTorch's own: {floor:.3g})"
    elif peak > peak_allowed:
        problem = f"largest error {peak:.3g} against float64 exceeds {peak_allowed:.3g}"
    difference = _peak(candidate - reference)
    relative = difference / (_peak(reference) or 1.0)
    constant = exact.numel() > 1 and bool((exact == exact[0]).all())
    return Comparison(name, difference, relative, error, floor, allowed, problem is None, problem, constant)


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0


def _peak(values: torch.Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
