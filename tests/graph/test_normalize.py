"""What capture makes explicit computes the same, to the last bit, and exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
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


class Typed(nn.Module):
    """Numbers that are not floats yet: unsigned, integers beside an empty float."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(4, 3), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "reversed":
            return self.layer(255.0 - x)
        if self.how == "empty":
            return self.layer(torch.cat([torch.empty(0), x], -1) / 3)
        if self.how == "concat":
            return self.layer(torch.concat([torch.empty(0), x.float()], -1))
        return self.layer(x / 10).relu()


@pytest.mark.parametrize("how", ["reversed", "empty", "concat", "divided"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_types_are_those_of_the_model(how: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Typed(how), torch.randint(0, 255, (2, 4)).to(dtype)
    program = capture(model, (x,))
    torch.testing.assert_close(Evaluator(program).run([x])[0], model(x).detach())
    (double,) = Evaluator(program, dtype=torch.float64).run([x])
    assert double.dtype is torch.float64
    torch.testing.assert_close(double.float(), model(x).detach())
    assert how == "empty" or analyze(program).unknown_ops == {}


@pytest.mark.parametrize(
    "transposed",
    [lambda w: w.T, lambda w: w.t(), lambda w: w.transpose(0, -1), lambda w: w.permute(1, 0), lambda w: w.mT],
    ids=["T", "t", "transpose", "permute", "mT"],
)
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_a_product_with_a_transposed_weight_is_a_linear_layer(
    transposed: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ transposed(self.weight)

    model, x = Product(), torch.randn(shape)
    program = capture(model, (x,))
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [torch.ops.aten.linear.default]
    torch.testing.assert_close(Evaluator(program).run([x])[0], model(x))


def test_a_product_of_activations_stays_one() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.T

    program = capture(Product(), (torch.randn(3, 4),))
    assert torch.ops.aten.linear.default not in [n.target for n in program.graph.nodes]


def test_whole_bounds_of_a_clamp_are_exported(tmp_path: Path) -> None:
    class Bounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(0.25, 1)

    x = torch.linspace(-2, 2, 9)
    program = capture(Bounded(), (x,))
    torch.testing.assert_close(Evaluator(program).run([x])[0], x.clamp(0.25, 1), rtol=0, atol=0)
    export_onnx(program, tmp_path / "model.onnx")
    assert check_onnx(program, tmp_path / "model.onnx").ok
