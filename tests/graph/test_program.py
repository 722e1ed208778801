"""The Program: copies that are independent, fingerprints of structure, modules that are modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxslim.graph.capture import capture
from fxslim.graph.errors import AnalysisError
from fxslim.graph.program import Program
from tests.models.nets import MLP, TwoByTwo


@pytest.fixture
def program() -> Program:
    return capture(MLP(), (torch.randn(2, 6),), dynamic_shapes=({0: "rows"},))


def test_a_clone_is_independent(program: Program) -> None:
    before, weight = str(program.graph), program.weights["a.weight"]
    copy = program.clone()
    (relu, *_) = copy.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    relu.target = torch.ops.aten.gelu.default
    relu.meta["val"] = None
    copy.weights["a.weight"] = torch.zeros(9, 6)
    del copy.info["b.weight"]
    copy.history.append("x")
    copy.dynamic["x"][0] = "other"
    assert str(program.graph) == before
    assert program.weights["a.weight"] is weight
    assert "b.weight" in program.info
    assert program.history == []
    assert program.dynamic == {"x": {0: "rows"}}
    assert all(n.meta["val"] is not None for n in program.graph.nodes if n.op == "call_function")


def test_the_fingerprint_is_of_structure_not_of_values(program: Program) -> None:
    first = program.fingerprint()
    assert program.clone().fingerprint() == first
    assert capture(MLP(), (torch.randn(7, 6),), dynamic_shapes=({0: "n"},)).fingerprint() == first
    other = program.clone()
    other.weights["a.weight"] = other.weights["a.weight"] * 2
    assert other.fingerprint() == first


def test_the_fingerprint_feels_operators_arguments_names_and_shapes(program: Program) -> None:
    class Wider(MLP):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 7, bias=False)

    class Renamed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = MLP()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    programs = [program] + [capture(m(), (torch.randn(2, 6),), dynamic_shapes=({0: "rows"},)) for m in (Wider, Renamed)]
    gelu, swapped = program.clone(), program.clone()
    (relu, *_) = gelu.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    relu.target = torch.ops.aten.sigmoid.default
    (first, second, *_) = swapped.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    second.args = first.args
    programs += [gelu, swapped]
    assert len({p.fingerprint() for p in programs}) == 5


def test_a_default_that_is_written_down_is_the_same_structure() -> None:
    program = capture(nn.Conv2d(2, 3, 1), (torch.randn(1, 2, 4, 4),))
    explicit = program.clone()
    (conv,) = explicit.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default)
    conv.kwargs = {"groups": 1}
    assert explicit.fingerprint() == program.fingerprint()
    conv.kwargs = {"stride": [2, 2]}
    assert explicit.fingerprint() != program.fingerprint()


def test_the_module_has_the_models_names_and_call() -> None:
    model = TwoByTwo()
    x, y = torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    module = capture(model, (x,), {"right": y}).module()
    assert {n for n, _ in module.named_parameters()} == {n for n, _ in model.named_parameters()}
    got, wanted = module(x, right=y), model(x, right=y)
    assert got.keys() == wanted.keys()
    torch.testing.assert_close(got["big"], wanted["big"])
    assert all(p.requires_grad for p in module.parameters())
    got["big"].sum().backward()
    assert module.get_parameter("big.weight").grad is not None


def test_buffers_stay_buffers() -> None:
    module = capture(nn.BatchNorm1d(4), (torch.randn(3, 4),)).module()
    assert {n for n, _ in module.named_buffers()} == {"running_mean", "running_var"}
    assert {n for n, _ in module.named_parameters()} == {"weight", "bias"}


def test_a_call_of_another_structure_is_refused(program: Program) -> None:
    assert len(program.flatten((torch.randn(2, 6),))) == 1
    with pytest.raises(AnalysisError, match="was captured with"):
        program.flatten((torch.randn(2, 6), torch.randn(2, 6)))
