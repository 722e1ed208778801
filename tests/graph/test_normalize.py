"""What capture makes explicit computes the same, to the last bit, and exports."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fxslim.export import check_onnx, export_onnx
from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.planner import make_plan
from fxslim.passes.prune import Prune

aten = torch.ops.aten


class Awkward(nn.Module):
    """Concatenations with empty tensors of one dimension (an untouched cache), squeezes of nothing, and 1 - x."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.cat([torch.tensor([]), self.a(x)], -1)
        hidden = torch.cat([hidden, torch.empty(0), hidden * 2], 0).squeeze(-1).squeeze()
        return self.b((1 - hidden).relu())


def test_empty_parts_go_and_reversed_subtraction_is_plain(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Awkward(), torch.randn(3, 4)
    program = capture(model, (x,), {}, ({0: "rows"},))
    targets = [n.target for n in program.graph.nodes]
    assert aten.rsub.Scalar not in targets and targets.count(aten.cat.default) == 1
    assert aten.squeeze.dims not in targets
    assert set(program.info) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert torch.equal(Evaluator(program).run([x])[0], model(x))
    analysis = analyze(program)
    assert analysis.unknown_ops == {}
    slim = Prune(make_plan(analysis, width=0.5))(analysis).program
    export_onnx(slim, tmp_path / "slim.onnx")
    assert check_onnx(slim, tmp_path / "slim.onnx").ok
