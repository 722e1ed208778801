"""Rules of operators that act position by position, with broadcasting: `a b c, b 1 -> a b c`.

What differs among them is the symmetry they leave: a linear map of one operand leaves every change of basis, ReLU a
positive scaling with a permutation, any other function a permutation.
"""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.terms import Size

__all__ = ["pointwise_rule"]

aten = torch.ops.aten


def pointwise_rule(call: Call, default: Symmetry) -> DimRule:
    """The rule of an elementwise call: operands aligned at the right, dimensions of size 1 broadcast."""
    (result,) = call.results
    letters = names(len(result))
    operands = [_aligned(shape, letters, result) for shape in call.shapes]
    return DimRule.parse(
        f"{', '.join(map(text, operands))} -> {text(_aligned(result, letters, result))}", default=default
    )


def _aligned(shape: tuple[Size, ...], letters: tuple[str, ...], result: tuple[Size, ...]) -> list[str]:
    offset = len(result) - len(shape)
    return ["1" if size == 1 else letters[offset + i] for i, size in enumerate(shape)]


def _broadcast_letters(found: DimRule) -> set[str]:
    """Letters of the result that some operand lacks."""
    everything = {x for d in found.results[0] if isinstance(x := d, str)}
    return {x for x in everything if any(x not in dims for dims in found.operands)}


_DROPOUTS = (
    aten.dropout.default, aten.alpha_dropout.default, aten.feature_dropout.default, aten.feature_alpha_dropout.default,
)  # fmt: skip
_LINEAR = (
    aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.clone.default, aten.contiguous.default,
    aten.neg.default, aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default,
    aten.type_as.default, *_DROPOUTS,
)  # fmt: skip
_SCALING = (aten.relu.default, aten.leaky_relu.default, aten.abs.default)
_NONLINEAR = (
    aten.acos.default, aten.asin.default, aten.atan.default, aten.bitwise_not.default,
    aten.ceil.default, aten.celu.default, aten.clamp.default, aten.clamp_max.default, aten.clamp_min.default,
    aten.cos.default, aten.cosh.default, aten.elu.default, aten.eq.Scalar, aten.erf.default, aten.exp.default,
    aten.exp2.default, aten.expm1.default, aten.fill.Scalar, aten.floor.default, aten.frac.default, aten.ge.Scalar,
    aten.gelu.default, aten.gt.Scalar, aten.hardsigmoid.default, aten.hardswish.default, aten.hardtanh.default,
    aten.isfinite.default, aten.isinf.default, aten.isnan.default, aten.le.Scalar, aten.log.default,
    aten.log10.default, aten.log1p.default, aten.log2.default, aten.logical_not.default, aten.logit.default,
    aten.lt.Scalar, aten.mish.default, aten.ne.Scalar, aten.pow.Scalar, aten.pow.Tensor_Scalar,
    aten.reciprocal.default, aten.relu6.default, aten.remainder.Scalar, aten.round.default, aten.rsqrt.default,
    aten.rsub.Scalar, aten.selu.default, aten.sigmoid.default, aten.sign.default, aten.silu.default, aten.sin.default,
    aten.sinh.default, aten.softplus.default, aten.sqrt.default, aten.square.default, aten.tan.default,
    aten.tanh.default, aten.trunc.default, aten.hardshrink.default, aten.softshrink.default, aten.log_sigmoid.default,
    aten.nan_to_num.default, aten.threshold.default, aten.add.Scalar, aten.sub.Scalar, aten.full_like.default,
    aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default, aten.floor_divide.Scalar,
    aten.fmod.Scalar, aten.bitwise_and.Scalar, aten.bitwise_or.Scalar, aten.zero.default,
)  # fmt: skip
_SCALAR_FACTOR = (aten.mul.Scalar, aten.div.Scalar)
_BINARY = (
    aten.atan2.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor, aten.eq.Tensor,
    aten.floor_divide.default, aten.fmod.Tensor, aten.ge.Tensor, aten.gt.Tensor, aten.le.Tensor,
    aten.logical_and.default, aten.logical_or.default, aten.logical_xor.default, aten.lt.Tensor, aten.maximum.default,
    aten.max.other, aten.minimum.default, aten.min.other, aten.ne.Tensor, aten.pow.Tensor_Tensor,
    aten.remainder.Tensor, aten.lerp.Tensor, aten.where.self, aten.where.ScalarSelf,
    aten.where.ScalarOther, aten.where.Scalar, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.copy.default,
    aten.addcmul.default, aten.addcdiv.default, aten.clamp.Tensor, aten.div.Tensor_mode,
    aten.fill.Tensor,
)  # fmt: skip


@rule(*_LINEAR)
def linear_unary(call: Call) -> DimRule:
    """y = c x: every change of basis commutes, unless the values are integers; drawing numbers mixes all."""
    if call.op in _DROPOUTS and call.arg("train"):
        found = pointwise_rule(call, Symmetry.PERMUTATION)
        return DimRule(found.operands, found.results, fixed=found.letters(), why="random values")
    default = Symmetry.GENERAL if _is_linear(call) else Symmetry.PERMUTATION
    if call.op is not aten.type_as.default:
        return pointwise_rule(call, default)
    (own, other), letters = call.shapes, names(len(call.results[0]))
    dims, unread = text(_aligned(own, letters, own)), names(len(other), "x")  # only the type of the second is read
    clause = f" | permutation {text(unread)}" if unread else ""
    return DimRule.parse(f"{dims}, {text(unread)} -> {dims}{clause}", default=default)


def _is_linear(call: Call) -> bool:
    values = (call.tensors[0].meta["val"], call.node.meta["val"])
    return all(v.dtype.is_floating_point or v.dtype.is_complex for v in values)


@rule(*_SCALAR_FACTOR)
def scalar_factor(call: Call) -> DimRule:
    """A constant factor commutes with every change of basis."""
    return pointwise_rule(call, Symmetry.GENERAL)


@rule(*_SCALING)
def scaling_unary(call: Call) -> DimRule:
    """f(s x) = s f(x) for s > 0."""
    return pointwise_rule(call, Symmetry.SCALING)


@rule(*_NONLINEAR)
def nonlinear_unary(call: Call) -> DimRule:
    """A function of each element: only the order of positions is free."""
    return pointwise_rule(call, Symmetry.PERMUTATION)


@rule(*_BINARY)
def nonlinear_binary(call: Call) -> DimRule:
    """A function of two or three aligned elements."""
    return pointwise_rule(call, Symmetry.PERMUTATION)


@rule(aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor, aten.lerp.Scalar)
def addition(call: Call) -> DimRule:
    """x + y commutes with every change of basis of a letter that all carry; a broadcast letter is only permuted."""
    found = pointwise_rule(call, Symmetry.GENERAL)
    constant = len(call.tensors) < 2  # x + 1: the constant is spread over all letters
    spread = set(found.letters()) if constant else _broadcast_letters(found)
    return _with_symmetry(found, dict.fromkeys(spread, Symmetry.PERMUTATION))


@rule(aten.mul.Tensor, aten.div.Tensor)
def multiplication(call: Call) -> DimRule:
    """x * y: a letter that only the numerator carries keeps every change of basis, one that both carry is permuted."""
    found = pointwise_rule(call, Symmetry.GENERAL)
    if len(found.operands) < 2:
        return found
    both = {x for x in found.letters() if all(x in dims for dims in found.operands)}
    if call.op is aten.div.Tensor:
        both |= {x for x in found.letters() if x in found.operands[1]}
    return _with_symmetry(found, dict.fromkeys(both, Symmetry.PERMUTATION))


@rule(aten.prelu.default)
def prelu(call: Call) -> DimRule:
    """The slope is one number or one for each channel (dimension 1), which then is only permuted."""
    x, slope = call.shapes
    letters = names(len(x))
    weight = "()" if slope == () else ("1" if slope == (1,) else letters[min(1, len(letters) - 1)])
    clause = f" | permutation {weight}" if weight in letters else ""
    return DimRule.parse(f"{text(letters)}, {weight} -> {text(letters)}{clause}", default=Symmetry.SCALING)


@rule(aten.glu.default)
def glu(call: Call) -> DimRule:
    """x[:half] * sigmoid(x[half:]): the two halves lose the same positions."""
    (shape,) = call.shapes
    letters, dim = list(names(len(shape))), call.dim("dim", len(shape))
    operand = [f"[{x}|{x}]" if i == dim else x for i, x in enumerate(letters)]
    sizes = {letters[dim]: call.results[0][dim]}
    return DimRule.parse(f"{text(operand)} -> {text(letters)}", sizes=sizes)


def _with_symmetry(found: DimRule, symmetry: dict[str, Symmetry]) -> DimRule:
    return DimRule(
        found.operands,
        found.results,
        found.tied,
        found.fixed,
        tuple(sorted(symmetry.items())),
        found.default,
        found.sizes,
    )
