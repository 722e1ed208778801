"""Sample calls of elementwise operators, mostly from tables: operator -> the domain of its arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fxslim.graph.axes.oracle import Sample

aten = torch.ops.aten


def real(*shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, dtype=torch.float64)


def positive(*shape: int) -> Tensor:
    """Numbers in (0.5, 2)."""
    return torch.rand(shape, dtype=torch.float64) * 1.5 + 0.5


def unit(*shape: int) -> Tensor:
    """Numbers in (-0.9, 0.9)."""
    return torch.rand(shape, dtype=torch.float64) * 1.8 - 0.9


def probability(*shape: int) -> Tensor:
    """Numbers in (0.1, 0.9)."""
    return torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1


def integer(*shape: int) -> Tensor:
    """Integers in [1, 8)."""
    return torch.randint(1, 8, shape)


def boolean(*shape: int) -> Tensor:
    """Both values."""
    return torch.rand(shape) < 0.5


_UNARY: dict[Any, tuple[str, ...]] = {
    real: (
        "abs", "alias", "atan", "ceil", "celu", "clone", "contiguous", "cos", "cosh", "detach", "elu", "erf", "exp",
        "exp2", "expm1", "floor", "frac", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "isfinite",
        "isinf",
        "isnan", "leaky_relu", "lift_fresh_copy", "log_sigmoid", "mish", "nan_to_num", "neg", "relu", "relu6", "round",
        "selu", "sigmoid", "sign", "silu", "sin", "sinh", "softplus", "softshrink", "square", "tan", "tanh", "trunc",
        "zeros_like", "ones_like", "zero",
    ),
    positive: ("log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "sqrt"),
    unit: ("acos", "asin"),
    probability: ("logit",),
    boolean: ("logical_not", "bitwise_not"),
}  # fmt: skip

_SCALAR: dict[Any, tuple[str, ...]] = {
    real: (
        "add.Scalar", "sub.Scalar", "mul.Scalar", "div.Scalar", "rsub.Scalar", "eq.Scalar", "ne.Scalar", "ge.Scalar",
        "gt.Scalar", "le.Scalar", "lt.Scalar", "fill.Scalar", "full_like.default", "floor_divide.Scalar", "fmod.Scalar",
        "remainder.Scalar", "clamp_max.default", "clamp_min.default",
    ),
    positive: ("pow.Tensor_Scalar",),
    integer: ("bitwise_and.Scalar", "bitwise_or.Scalar"),
}  # fmt: skip

_BINARY: dict[Any, tuple[str, ...]] = {
    real: (
        "add.Tensor", "sub.Tensor", "mul.Tensor", "atan2.default", "eq.Tensor", "ge.Tensor", "gt.Tensor", "le.Tensor",
        "lt.Tensor", "ne.Tensor", "maximum.default", "max.other", "minimum.default", "min.other", "rsub.Tensor",
    ),
    positive: ("div.Tensor", "floor_divide.default", "fmod.Tensor", "remainder.Tensor", "pow.Tensor_Tensor"),
    integer: ("bitwise_and.Tensor", "bitwise_or.Tensor", "bitwise_xor.Tensor"),
    boolean: ("logical_and.default", "logical_or.default", "logical_xor.default"),
}  # fmt: skip


def op(name: str) -> Any:
    """The overload that `name` (`add.Tensor`) writes."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def samples() -> Iterator[Sample]:
    """All samples of this file."""
    for make, names in _UNARY.items():
        for name in names:
            yield Sample(op(name), (make(3, 5),))
            yield Sample(op(name), (make(2, 1, 4),), note="size 1")
    for make, names in _SCALAR.items():
        for name in names:
            yield Sample(op(name), (make(3, 5), 2))
            yield Sample(op(name), (make(4),), {op(name)._schema.arguments[1].name: 3}, note="by name")
    for make, names in _BINARY.items():
        for name in names:
            yield Sample(op(name), (make(3, 5), make(3, 5)))
            yield Sample(op(name), (make(2, 3, 5), make(3, 1)), note="broadcast right")
            yield Sample(op(name), (make(5), make(2, 1, 5)), note="broadcast left")
            yield Sample(op(name), (make(1, 5), make(4, 1)), note="broadcast both")
            yield Sample(op(name), (make(4, 3), make()), note="with a number")
    yield from _scalars()
    yield from _ternary()
    yield from _casts()
    yield from _special()


def _scalars() -> Iterator[Sample]:
    """A Python number in place of a tensor."""
    for name in ("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor"):
        yield Sample(op(name), (real(3, 5), 2.5), note="python number")
    yield Sample(aten.add.Tensor, (real(3, 5), real(3, 5)), {"alpha": 3}, note="alpha")
    yield Sample(aten.pow.Scalar, (2.0, real(3, 5)))
    yield Sample(aten.clamp.default, (real(3, 5), -0.5, 0.5))
    yield Sample(aten.threshold.default, (real(3, 5), 0.1, 2.0))
    yield Sample(aten.clamp.Tensor, (real(3, 5), real(5), real(3, 1) + 2))
    yield Sample(aten.clamp.Tensor, (real(3, 5), None, real(3, 5)), note="one bound")
    yield Sample(aten.div.Tensor_mode, (real(3, 5), positive(5)), {"rounding_mode": "floor"})
    yield Sample(
        aten.nan_to_num.default,
        (torch.tensor([[1.0, float("nan"), 2.0], [float("inf"), 0.0, 3.0]]).double(),),
        note="nan",
    )


def _ternary() -> Iterator[Sample]:
    yield Sample(aten.addcmul.default, (real(3, 5), real(3, 5), real(5)))
    yield Sample(aten.addcdiv.default, (real(3, 5), real(3, 1), positive(5)), {"value": 0.5})
    yield Sample(aten.lerp.Scalar, (real(3, 5), real(3, 5), 0.3))
    yield Sample(aten.lerp.Tensor, (real(3, 5), real(5), real(3, 1)))
    yield Sample(aten.where.self, (boolean(3, 5), real(3, 5), real(3, 5)))
    yield Sample(aten.where.self, (boolean(3, 1), real(5), real(2, 3, 5)), note="broadcast")
    yield Sample(aten.where.ScalarSelf, (boolean(3, 5), 0.0, real(3, 5)))
    yield Sample(aten.where.ScalarOther, (boolean(3, 5), real(3, 5), 0.0))
    yield Sample(aten.where.Scalar, (boolean(3, 5), 1.0, 0.0))
    yield Sample(aten.masked_fill.Scalar, (real(3, 5), boolean(3, 5), -1e4))
    yield Sample(aten.masked_fill.Scalar, (real(2, 3, 5), boolean(1, 5), -1e4), note="broadcast")
    yield Sample(aten.masked_fill.Tensor, (real(3, 5), boolean(5), real()))
    yield Sample(aten.copy.default, (real(3, 5), real(5)))
    yield Sample(aten.fill.Tensor, (real(3, 5), real()))


def _casts() -> Iterator[Sample]:
    yield Sample(aten._to_copy.default, (real(3, 5),), {"dtype": torch.float64})
    yield Sample(aten._to_copy.default, (real(3, 5),), {"dtype": torch.int64}, note="to integers")
    yield Sample(aten.to.dtype, (real(3, 5), torch.float64))
    yield Sample(aten.to.dtype, (integer(3, 5), torch.float64), note="from integers")
    yield Sample(aten.to.dtype, (real(3, 5), torch.bool), note="to booleans")
    yield Sample(aten.to.dtype_layout, (real(3, 5),), {"dtype": torch.float64})
    yield Sample(aten.type_as.default, (real(3, 5), real(2, 4)))
    yield Sample(aten.type_as.default, (real(3, 5), integer(4)), note="to integers")
    yield Sample(aten.empty_like.default, (real(3, 5),), undefined=True)


def _special() -> Iterator[Sample]:
    yield Sample(aten.dropout.default, (real(3, 5), 0.5, False))
    yield Sample(aten.prelu.default, (real(2, 3, 5), real(3).abs()))
    yield Sample(aten.prelu.default, (real(2, 3, 5), real(1).abs()), note="one slope")
    yield Sample(aten.prelu.default, (real(4), real(1).abs()), note="vector")
    yield Sample(aten.glu.default, (real(3, 8),))
    yield Sample(aten.glu.default, (real(2, 6, 5), 1), note="dim 1")
    yield Sample(aten.gelu.default, (real(3, 5),), {"approximate": "tanh"}, note="tanh")
    yield Sample(aten.leaky_relu.default, (real(3, 5), 0.2), note="slope")
    yield Sample(aten.relu.default, (real(),), note="number")
