"""For compiler engineers: an operator of your own gets a rule and ONNX, and a pass of your own comes before a plan."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from onnxscript import opset20 as ops
from torch import Tensor, nn

import fxslim
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.same import verify_same_function
from fxslim.testing import check_pass, check_rule

torch.library.define("example::gate", "(Tensor x, Tensor weight) -> Tensor")
torch.library.impl("example::gate", "default", lambda x, weight: x * torch.sigmoid(weight))
torch.library.register_fake("example::gate", lambda x, weight: torch.empty_like(x))
aten, GATE = torch.ops.aten, torch.ops.example.gate.default


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64))

    def forward(self, x: Tensor) -> Tensor:
        return GATE(x, self.weight)


@dataclass(frozen=True)
class UnfoldGates(fxslim.Pass):
    """Writes gates as the product that they are. The numerics are preserved, which fxslim checks."""

    name: ClassVar[str] = "unfold-gates"

    def apply(self, analysis: Analysis) -> fxslim.PassResult:
        rewriter = Rewriter(analysis.program, self.name)  # it counts the edits
        copies = rewriter.copies(analysis.axes)
        for node in analysis.program.graph.find_nodes(op="call_function", target=GATE):
            x, weight = (rewriter.now(copies[argument]) for argument in node.args)
            opened = rewriter.add_call(aten.sigmoid.default, (weight,), copies[node])
            rewriter.replace(copies[node], rewriter.add_call(aten.mul.Tensor, (x, opened), copies[node]))
        rewriter.sweep()
        return fxslim.PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        verify_same_function(result, original)


def main() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), Gate(), nn.Linear(64, 4))
    program = fxslim.capture(model, (torch.randn(8, 16),), dynamic_shapes=({0: "batch"},))
    print("without a rule:", fxslim.analyze(program).unknown_ops)

    fxslim.register_rule(GATE, "b d, d -> b d")  # one line, in the notation of docs/notation.md
    check_rule(GATE, (torch.randn(3, 5), torch.randn(5)))  # it is tried on the operator itself
    fxslim.register_translation(GATE, lambda x, weight: ops.Mul(x, ops.Sigmoid(weight)))
    assert fxslim.analyze(program).unknown_ops == {}

    fxslim.register_pass(UnfoldGates)
    check_pass(UnfoldGates(), program)
    for which in (program, fxslim.prepare(program, [UnfoldGates.name])):
        plan = fxslim.make_plan(which, width=0.5)
        assert fxslim.prove(program, plan).ok  # the plan repeats the pass
        slim = fxslim.apply(program, plan)
        with tempfile.TemporaryDirectory() as scratch:
            file = fxslim.export_onnx(slim, path := Path(scratch) / "slim.onnx")
            assert fxslim.check_onnx(slim, path, threads=1).ok
        print(f"{plan.prepare}: proven, exported as {dict(file.ops)}")


if __name__ == "__main__":
    main()
