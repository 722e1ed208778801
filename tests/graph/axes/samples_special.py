"""Sample calls of special functions, distances, losses and random numbers, mostly from tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxslim.graph.axes.oracle import Sample
from tests.graph.axes.samples_pointwise import boolean, integer, op, positive, probability, real, unit

aten = torch.ops.aten


def above_one(*shape: int) -> Tensor:
    """Numbers in (1.5, 3)."""
    return positive(*shape) + 1


def sevenths(*shape: int) -> Tensor:
    """Multiples of 1/7 with a sign."""
    return torch.randint(-20, 20, shape).double() / 7


@dataclass(frozen=True, eq=False)
class Seeded(Sample):
    """A call that draws random numbers: every run draws the same."""

    def run(self, operands: Sequence[Tensor], literals: Mapping[str, Any] | None = None) -> tuple[Tensor, ...]:
        """The results for other operands and literal arguments."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return super().run(operands, literals)


def samples() -> Iterator[Sample]:
    """All samples of this file."""
    for family in (_unary, _scalar, _binary, _others, _random, _distances, _losses):
        yield from family()


_UNARY: dict[Callable[..., Tensor], tuple[str, ...]] = {
    real: (
        "positive", "deg2rad", "rad2deg", "real", "conj_physical", "_conj_physical", "resolve_conj",
        "resolve_neg", "angle", "asinh", "erfc", "i0", "isneginf", "isposinf", "isreal", "sgn", "signbit", "sinc",
        "special_airy_ai", "special_bessel_j0", "special_bessel_j1", "special_erfcx", "special_i0e", "special_i1",
        "special_i1e", "special_log_ndtr", "special_modified_bessel_i0", "special_modified_bessel_i1", "special_ndtr",
    ),
    positive: (
        "digamma", "lgamma", "special_entr", "special_bessel_y0", "special_bessel_y1", "special_modified_bessel_k0",
        "special_modified_bessel_k1", "special_scaled_modified_bessel_k0", "special_scaled_modified_bessel_k1",
        "special_spherical_bessel_j0",
    ),
    above_one: ("acosh",),
    unit: ("atanh", "erfinv"),
    probability: ("special_ndtri",),
}  # fmt: skip

_SCALAR: dict[Callable[..., Tensor], tuple[str, ...]] = {
    integer: ("bitwise_left_shift.Tensor_Scalar", "bitwise_right_shift.Tensor_Scalar", "bitwise_xor.Scalar",
              "isin.Tensor_Scalar"),
    real: ("copysign.Scalar",),
    positive: ("float_power.Tensor_Scalar", "xlogy.Scalar_Other"),
}  # fmt: skip

_POLYNOMIALS = tuple(
    f"special_{name}.default" for name in (
        "chebyshev_polynomial_t", "chebyshev_polynomial_u", "chebyshev_polynomial_v", "chebyshev_polynomial_w",
        "hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p",
        "shifted_chebyshev_polynomial_t", "shifted_chebyshev_polynomial_u", "shifted_chebyshev_polynomial_v",
        "shifted_chebyshev_polynomial_w",
    )
)  # fmt: skip
_BINARY: dict[Callable[..., Tensor], tuple[str, ...]] = {
    integer: ("bitwise_left_shift.Tensor", "bitwise_right_shift.Tensor", "gcd.default", "lcm.default"),
    real: (
        "clamp_max.Tensor", "clamp_min.Tensor", "complex.default", "copysign.Tensor", "fmax.default", "fmin.default",
        "heaviside.default", "hypot.default", "isclose.default", "ldexp.Tensor", "logaddexp.default",
        "logaddexp2.default", "nextafter.default", "polar.default",
    ),
    positive: ("float_power.Tensor_Tensor", "igamma.default", "igammac.default", "special_xlog1py.default",
               "xlogy.Tensor"),
    above_one: ("special_zeta.default", *_POLYNOMIALS),
}  # fmt: skip


def _unary() -> Iterator[Sample]:
    for make, names in _UNARY.items():
        for name in names:
            yield Sample(op(name), (make(3, 5),))
            yield Sample(op(name), (make(2, 1, 4),), note="size 1")


def _scalar() -> Iterator[Sample]:
    for make, names in _SCALAR.items():
        for name in names:
            yield Sample(op(name), (make(3, 5), 2))


def _binary() -> Iterator[Sample]:
    for make, names in _BINARY.items():
        for name in names:
            kind = Parts if name in ("complex.default", "polar.default") else Sample
            yield kind(op(name), (make(3, 5), make(3, 5)))
            yield kind(op(name), (make(2, 3, 5), make(3, 1)), note="broadcast right")
            yield kind(op(name), (make(1, 5), make(4, 1)), note="broadcast both")


@dataclass(frozen=True, eq=False)
class Parts(Sample):
    """A call on complex numbers, as the oracle meets them: complex operands are the given real ones times a constant,
    complex results one number made of their two parts. Both are linear and act on each element, so they commute with
    all that a rule claims."""

    def run(self, operands: Sequence[Tensor], literals: Mapping[str, Any] | None = None) -> tuple[Tensor, ...]:
        """The results for other operands and literal arguments."""
        complexes = [t.is_complex() for t in super().operands]
        given = [t * (0.6 - 0.8j) if c and not t.is_complex() else t for t, c in zip(operands, complexes, strict=True)]
        return tuple(r.real + 3**0.5 * r.imag if r.is_complex() else r for r in super().run(given, literals))

    @property
    def operands(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The values of the tensor operands, complex ones by their real part."""
        return tuple(t.real.clone() if t.is_complex() else t for t in super().operands)


def _others() -> Iterator[Sample]:
    yield Sample(aten.xlogy.Scalar_Self, (2.0, positive(3, 5)))
    yield Sample(aten.float_power.Scalar, (2.0, real(3, 5)))
    yield Sample(aten.div.Scalar_mode, (real(3, 5), 0.3), {"rounding_mode": "floor"})
    yield Sample(aten.round.decimals, (real(3, 5),), {"decimals": 1})
    yield Sample(aten.mvlgamma.default, (positive(3, 5) + 3, 3))
    yield Sample(aten.polygamma.default, (1, positive(3, 5)))
    yield Parts(aten._conj.default, (torch.complex(real(3, 5), real(3, 5)),))
    yield Sample(aten.frexp.Tensor, (real(3, 5),))
    yield Sample(aten.rrelu.default, (real(3, 5),))
    yield Seeded(aten.rrelu.default, (-positive(3, 5), 0.1, 0.3, True), note="training")
    yield Sample(aten.fake_quantize_per_tensor_affine.default, (real(3, 5).float(), 0.1, 0, -8, 7))
    scale, zero = positive(3).float(), torch.zeros(3, dtype=torch.int32)
    yield Sample(aten.fake_quantize_per_channel_affine.default, (real(2, 3, 5).float(), scale, zero, 1, -8, 7))
    for dropout in (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout):
        if dropout is not aten.dropout:
            yield Sample(dropout.default, (real(3, 5), 0.5, False))
    yield Seeded(aten.dropout.default, (real(4, 5), 0.5, True), note="training")


def _random() -> Iterator[Sample]:
    for name in ("rand", "randn"):
        yield Seeded(op(name), ([3, 5],))
    yield Seeded(aten.randint.default, (9, [3, 5]))
    yield Seeded(aten.randint.low, (1, 9, [3, 5]))
    yield Seeded(aten.randperm.default, (5,))
    yield Seeded(aten.normal.float_float, (0.0, 1.0, [3, 5]))
    for name in ("rand_like", "randn_like", "uniform", "exponential", "normal_functional", "random"):
        yield Seeded(op(name), (real(3, 5),))
    yield Seeded(aten.randint_like.default, (real(4, 5), 90))
    yield Seeded(aten.randint_like.low_dtype, (real(4, 5), 1, 90))
    yield Seeded(aten.random.to, (real(4, 5), 90))
    yield Seeded(getattr(aten.random, "from"), (real(4, 5), 1, 90))
    yield Seeded(aten.bernoulli.default, (probability(6, 5),))
    yield Seeded(aten.bernoulli.p, (real(6, 5), 0.5))
    yield Seeded(aten.normal.Tensor_float, (real(3, 5), 2.0))
    yield Seeded(aten.normal.float_Tensor, (2.0, positive(3, 5)))
    yield Seeded(aten.normal.Tensor_Tensor, (real(3, 5), positive(3, 5)))
    yield Seeded(aten.poisson.default, (positive(4, 5) * 4,))
    yield Seeded(aten.multinomial.default, (positive(4, 5), 3))
    yield Seeded(aten.multinomial.default, (positive(5), 3), note="vector")


def _distances() -> Iterator[Sample]:
    for order, note in ((2.0, ""), (1.0, "Manhattan")):
        yield Sample(aten.cdist.default, (real(2, 3, 5), real(2, 4, 5), order), note=note)
        yield Sample(aten.pdist.default, (real(4, 5), order), note=note)
        yield Sample(aten.dist.default, (real(3, 5), real(3, 5), order), note=note)
    yield Sample(aten.cdist.default, (real(3, 5), real(4, 5)), note="no batch")
    yield Sample(aten.dist.default, (real(3, 5), real(5)), note="broadcast")
    yield Sample(aten.dist.default, (real(3, 5), real(3, 5), -1.0), note="negative order")
    for name in ("cosine_similarity", "linalg_vecdot"):
        dim = "dim"
        yield Sample(op(name), (real(2, 3, 5), real(2, 3, 5)), {dim: -1} if name == "linalg_vecdot" else {})
        yield Sample(op(name), (real(2, 1, 5), real(3, 5)), {dim: 2}, note="broadcast")
        yield Sample(op(name), (real(3, 5), real(3, 1)), {dim: 1}, note="one number")
    yield Sample(aten.pairwise_distance.default, (real(3, 5), real(3, 5)))
    yield Sample(aten.pairwise_distance.default, (real(2, 3, 5), real(5), 1.0, 1e-6, True), note="keepdim")


def _losses() -> Iterator[Sample]:
    differences: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
        "mse_loss": (real, real), "l1_loss": (real, real), "smooth_l1_loss": (real, real), "huber_loss": (real, real),
        "kl_div": (real, positive), "binary_cross_entropy": (probability, probability),
        "binary_cross_entropy_with_logits": (real, probability), "soft_margin_loss": (real, real),
        "hinge_embedding_loss": (real, _signs),
    }  # fmt: skip
    for name, (prediction, target) in differences.items():
        for reduction, note in ((1, ""), (0, "each"), (2, "sum")):
            yield Sample(op(name), (prediction(3, 5), target(3, 5)), {"reduction": reduction}, note=note)
    weight = {"weight": positive(5), "reduction": 2}
    yield Sample(aten.binary_cross_entropy.default, (probability(3, 5), probability(3, 5)), weight, note="weight")
    for reduction, note in ((1, ""), (0, "each"), (2, "sum")):
        yield Sample(
            aten.poisson_nll_loss.default, (real(3, 5), positive(3, 5), True, False, 1e-8, reduction), note=note
        )
        yield Sample(aten.margin_ranking_loss.default, (real(5), real(5), _signs(5), 0.5, reduction), note=note)
        yield Sample(aten.cosine_embedding_loss.default, (real(4, 5), real(4, 5), _signs(4), 0.0, reduction), note=note)
        yield Sample(
            aten.triplet_margin_loss.default, (real(4, 5), real(4, 5), real(4, 5)), {"reduction": reduction}, note=note
        )
        for name in ("cross_entropy_loss", "nll_loss_nd"):
            classes = torch.tensor([4, 0, 2])
            yield Sample(op(name), (real(3, 5), classes, None, reduction), note=note)
            yield Sample(op(name), (real(3, 5), classes, positive(5), reduction), note=f"weight {note}")
    several = (real(2, 5, 3), torch.tensor([[4, 0, 2], [1, 1, 3]]))
    yield Sample(aten.cross_entropy_loss.default, several, note="positions")
    yield Sample(aten.cross_entropy_loss.default, (real(3, 5), probability(3, 5)), note="probabilities")
    yield Sample(aten.cross_entropy_loss.default, (real(5), torch.tensor(3)), note="one example")


def _signs(*shape: int) -> Tensor:
    return torch.where(boolean(*shape), 1.0, -1.0).double()
