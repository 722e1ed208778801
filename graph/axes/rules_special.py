"""Rules of elementwise operators that models use less often: special functions, bits, complex numbers."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_pointwise import pointwise_rule

__all__: list[str] = []

aten = torch.ops.aten

_LINEAR = (
    aten.positive.default, aten.deg2rad.default, aten.rad2deg.default, aten.real.default, aten._conj.default,
    aten.conj_physical.default, aten._conj_physical.default, aten.resolve_conj.default, aten.resolve_neg.default,
)  # fmt: skip
_UNARY = (
    aten.acosh.default, aten.angle.default, aten.asinh.default, aten.atanh.default, aten.digamma.default,
    aten.erfc.default, aten.erfinv.default, aten.i0.default, aten.isneginf.default, aten.isposinf.default,
    aten.isreal.default, aten.lgamma.default, aten.mvlgamma.default, aten.polygamma.default, aten.round.decimals,
    aten.sgn.default, aten.signbit.default, aten.sinc.default, aten.special_airy_ai.default,
    aten.special_bessel_j0.default, aten.special_bessel_j1.default, aten.special_bessel_y0.default,
    aten.special_bessel_y1.default, aten.special_entr.default, aten.special_erfcx.default, aten.special_i0e.default,
    aten.special_i1.default, aten.special_i1e.default, aten.special_log_ndtr.default,
    aten.special_modified_bessel_i0.default, aten.special_modified_bessel_i1.default,
    aten.special_modified_bessel_k0.default, aten.special_modified_bessel_k1.default, aten.special_ndtr.default,
    aten.special_ndtri.default, aten.special_scaled_modified_bessel_k0.default,
    aten.special_scaled_modified_bessel_k1.default, aten.special_spherical_bessel_j0.default,
    aten.bitwise_left_shift.Tensor_Scalar, aten.bitwise_right_shift.Tensor_Scalar,
    aten.bitwise_xor.Scalar, aten.copysign.Scalar, aten.div.Scalar_mode,
    aten.float_power.Scalar, aten.float_power.Tensor_Scalar, aten.isin.Tensor_Scalar, aten.xlogy.Scalar_Other,
    aten.xlogy.Scalar_Self, aten.fake_quantize_per_tensor_affine.default, aten.rrelu.default,
)  # fmt: skip
_BINARY = (
    aten.bitwise_left_shift.Tensor, aten.bitwise_right_shift.Tensor,
    aten.clamp_max.Tensor, aten.clamp_min.Tensor, aten.complex.default, aten.copysign.Tensor,
    aten.float_power.Tensor_Tensor, aten.fmax.default, aten.fmin.default, aten.gcd.default, aten.heaviside.default,
    aten.hypot.default, aten.igamma.default, aten.igammac.default, aten.isclose.default, aten.lcm.default,
    aten.ldexp.Tensor, aten.logaddexp.default, aten.logaddexp2.default, aten.nextafter.default, aten.polar.default,
    aten.special_chebyshev_polynomial_t.default, aten.special_chebyshev_polynomial_u.default,
    aten.special_chebyshev_polynomial_v.default, aten.special_chebyshev_polynomial_w.default,
    aten.special_hermite_polynomial_h.default, aten.special_hermite_polynomial_he.default,
    aten.special_laguerre_polynomial_l.default, aten.special_legendre_polynomial_p.default,
    aten.special_shifted_chebyshev_polynomial_t.default, aten.special_shifted_chebyshev_polynomial_u.default,
    aten.special_shifted_chebyshev_polynomial_v.default, aten.special_shifted_chebyshev_polynomial_w.default,
    aten.special_xlog1py.default, aten.special_zeta.default, aten.xlogy.Tensor,
)  # fmt: skip


@rule(*_LINEAR)
def linear_special(call: Call) -> DimRule:
    """A constant factor, or nothing at all; of complex numbers a part or the conjugate."""
    (value,) = (t.meta["val"] for t in call.tensors)
    return pointwise_rule(call, Symmetry.GENERAL if value.is_floating_point() else Symmetry.PERMUTATION)


@rule(*_UNARY)
def special(call: Call) -> DimRule:
    """A function of each element."""
    if call.op is aten.rrelu.default and call.arg("training"):
        found = pointwise_rule(call, Symmetry.PERMUTATION)
        return DimRule(found.operands, found.results, fixed=found.letters(), why="random values")
    return pointwise_rule(call, Symmetry.PERMUTATION)


@rule(*_BINARY)
def special_of_two(call: Call) -> DimRule:
    """A function of aligned elements."""
    return pointwise_rule(call, Symmetry.PERMUTATION)


@rule(aten.frexp.Tensor)
def mantissa_and_exponent(call: Call) -> DimRule:
    """Two numbers for each element."""
    dims = text(names(len(call.shapes[0])))
    return DimRule.parse(f"{dims} -> {dims}, {dims}")


@rule(aten.fake_quantize_per_channel_affine.default)
def rounded_by_channel(call: Call) -> DimRule:
    """Each channel has a scale and a zero of its own."""
    letters = names(len(call.shapes[0]))
    channel = letters[int(call.arg("axis"))]
    return DimRule.parse(f"{text(letters)}, {channel}, {channel} -> {text(letters)}")
