"""Evaluation: float64 is the module's double, and masking nothing is masking nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from fxslim.graph.axes.select import Selection
from fxslim.graph.capture import capture
from fxslim.graph.errors import AnalysisError
from fxslim.graph.evaluate import Evaluator, MaskedEvaluator
from tests.models.nets import captured

NAMES = ("mlp", "resnet", "attention", "decoder", "cached")


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_the_doubled_module(name: str) -> None:
    net = captured(name)
    args, kwargs = net.net.call(3, 4)
    flat = net.analysis.program.flatten(args, kwargs)
    got = Evaluator(net.analysis.program, dtype=torch.float64).run(flat)
    doubled = [a.double() if a.is_floating_point() else a for a in args]
    with torch.no_grad():
        wanted = copy.deepcopy(net.model).double()(*doubled)
    flat_wanted = torch.utils._pytree.tree_leaves(wanted)
    for a, b in zip(got, flat_wanted, strict=True):
        assert a.dtype is torch.float64
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_masking_nothing_is_plain_evaluation(name: str) -> None:
    net = captured(name)
    flat = net.analysis.program.flatten(*net.net.call(2, 3))
    for dtype in (None, torch.float64):
        plain = Evaluator(net.analysis.program, dtype=dtype).run(flat)
        masked = MaskedEvaluator(net.analysis.axes, Selection(), dtype=dtype).run(flat)
        assert all(torch.equal(a, b) for a, b in zip(plain, masked, strict=True))


def test_a_replaced_weight_is_used_and_stays_out_of_the_program() -> None:
    net = captured("mlp")
    evaluator = Evaluator(net.analysis.program)
    flat = net.analysis.program.flatten(*net.net.call(2, 3))
    before = evaluator.run(flat)[0]
    evaluator.set_weight("c.weight", torch.zeros(3, 7))
    torch.testing.assert_close(evaluator.run(flat)[0], net.model.c.bias.detach().expand(2, 3, 3))
    assert torch.equal(Evaluator(net.analysis.program).run(flat)[0], before)


def test_values_are_dropped_after_their_last_use() -> None:
    program = captured("mlp").analysis.program
    evaluator = Evaluator(program)
    env = evaluator.bind(program.example_inputs)
    evaluator.advance(env, program.graph.nodes)
    assert {n.name for n in env} == {n.name for n in program.output_nodes}


def test_wrong_inputs_are_named() -> None:
    program = captured("mlp").analysis.program
    with pytest.raises(AnalysisError, match=r"has 1 inputs \(x\), got 2"):
        Evaluator(program).run([torch.randn(2, 6)] * 2)
    with pytest.raises(AnalysisError, match="evaluation failed"):
        Evaluator(program).run([torch.randn(2, 5, 4)])


class Started(torch.nn.Module):
    """A state that forward creates, in torch's default type."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.turn = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.shape[0], 4)
        for step in x.unbind(1):
            state = torch.tanh(self.read(step) + self.turn(state))
        return state + torch.arange(4) * torch.full((4,), 0.5)


def test_what_forward_creates_is_float64_too() -> None:
    model, x = Started(), torch.randn(2, 3, 3)
    got = Evaluator(capture(model, (x,)), dtype=torch.float64).run([x])[0]
    assert got.dtype is torch.float64
    torch.testing.assert_close(got.float(), model(x).detach())


def test_complex_weights_become_complex128() -> None:
    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("angles", torch.polar(torch.ones(4), torch.randn(4)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.fft.fft(x) * self.angles).abs()

    model, x = Turned(), torch.randn(2, 4)
    got = Evaluator(capture(model, (x,)), dtype=torch.float64).run([x])[0]
    assert got.dtype is torch.float64
    torch.testing.assert_close(got.float(), model(x))
