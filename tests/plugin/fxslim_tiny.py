"""A distribution of somebody else's: an operator with its rule and translation, a pass, an importance and a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from onnxscript import opset18 as onnx_ops
from torch import Tensor, nn

import fxslim
from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.methods import Settings
from fxslim.passes.same import verify_same_function


@torch.library.custom_op("tiny::gate", mutates_args=())
def gate(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.sigmoid(weight)


@gate.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


GATE = torch.ops.tiny.gate.default


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 3)
        self.gate = nn.Parameter(torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.ops.tiny.gate(self.up(x).relu(), self.gate))


def model() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return Gated(), (torch.randn(2, 8),), None, ({0: "batch"},)


def register_rules() -> None:
    fxslim.register_rule(GATE, "b d, d -> b d")
    fxslim.register_translation(GATE, lambda x, weight: onnx_ops.Mul(x, onnx_ops.Sigmoid(weight)))


@dataclass(frozen=True)
class UnfoldGates(Pass):
    """Writes gates as a product with a sigmoid."""

    name: ClassVar[str] = "unfold-gates"
    weights: tuple[str, ...] = ()  # all, where none is named

    def apply(self, analysis: Analysis) -> PassResult:
        rewriter = Rewriter(analysis.program, self.name)
        copies = rewriter.copies(analysis.axes)
        for node in analysis.program.graph.find_nodes(op="call_function", target=GATE):
            x, weight = (copies[argument] for argument in node.args)
            if not self.weights or str(weight.target) in self.weights:
                opened = rewriter.add_call(torch.ops.aten.sigmoid.default, (weight,), copies[node])
                product = rewriter.add_call(torch.ops.aten.mul.Tensor, (x, opened), copies[node])
                rewriter.replace(copies[node], product)
        if rewriter.modified:
            rewriter.sweep()
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        verify_same_function(result, original)


def first_come(analysis: Analysis, group: Group, batches: Sequence[Sequence[Tensor]] | None) -> Tensor:
    return torch.arange(group.size, 0, -1, dtype=torch.float64).expand(group.shape)


def register_importances() -> None:
    fxslim.register_importance("first-come", first_come)


FIRST_COME = Settings("first-come", False, "uniform", "none")
