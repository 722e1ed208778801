"""Rules of random numbers: a part of a random tensor is not the smaller random tensor, so nothing is sliced."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import clause
from fxslim.graph.axes.rules_pointwise import pointwise_rule

__all__: list[str] = []

aten = torch.ops.aten
RANDOM = "random values"


@rule(
    aten.rand.default, aten.randn.default, aten.randint.default, aten.randint.low, aten.randperm.default,
    aten.normal.float_float,
)  # fmt: skip
def random_values(call: Call) -> DimRule:
    """Drawn for a shape."""
    letters = names(len(call.results[0]))
    return DimRule.parse(f"-> {text(letters)}{clause('fixed', letters)}", why=RANDOM)


@rule(
    aten.rand_like.default, aten.randn_like.default, aten.randint_like.default, aten.randint_like.low_dtype,
    aten.bernoulli.default, aten.bernoulli.p, aten.normal.Tensor_float, aten.normal.float_Tensor,
    aten.normal.Tensor_Tensor, aten.poisson.default, aten.uniform.default, aten.exponential.default,
    aten.normal_functional.default, aten.random.default, aten.random.to, getattr(aten.random, "from"),
)  # fmt: skip
def random_values_like(call: Call) -> DimRule:
    """Drawn for each element of an operand."""
    found = pointwise_rule(call, Symmetry.PERMUTATION)
    return DimRule(found.operands, found.results, fixed=found.letters(), default=found.default, why=RANDOM)


@rule(aten.multinomial.default)
def multinomial(call: Call) -> DimRule:
    """Positions of the last dimension, drawn by weight."""
    letters = names(len(call.shapes[0]))
    fixed = clause("fixed", [*letters, "k"])
    return DimRule.parse(f"{text(letters)} -> {text((*letters[:-1], 'k'))}{fixed}", why=RANDOM)
