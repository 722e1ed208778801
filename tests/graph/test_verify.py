"""Verification: each way in which a rewritten program can be wrong is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxslim.graph.capture import capture
from fxslim.graph.errors import VerifyError
from fxslim.graph.program import Program
from fxslim.graph.verify import verify


@pytest.fixture
def program() -> Program:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    return capture(model, (torch.randn(3, 4),), dynamic_shapes=({0: "rows"},))


def wrong_shape(p: Program) -> None:
    p.weights["0.weight"] = torch.zeros(5, 4)


def wrong_type(p: Program) -> None:
    p.weights["0.weight"] = p.weights["0.weight"].double()


def lost(p: Program) -> None:
    del p.weights["0.bias"]


def unread(p: Program) -> None:
    p.info["idle"] = p.info["0.bias"]


def read_twice(p: Program) -> None:
    node = p.weight_nodes()["0.bias"]
    with p.graph.inserting_after(node):
        again = p.graph.get_attr("0.bias")
    again.meta = dict(node.meta)


def stale(p: Program) -> None:
    (relu,) = p.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    relu.meta["val"] = relu.meta["val"].new_empty((3, 7))


def does_not_fit(p: Program) -> None:
    last = p.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[-1]
    (x,) = p.graph.find_nodes(op="placeholder")
    last.args = (x, *last.args[1:])


def other_input(p: Program) -> None:
    (x,) = p.graph.find_nodes(op="placeholder")
    x._rename("other")


def other_output(p: Program) -> None:
    (relu,) = p.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    (output,) = p.graph.find_nodes(op="output")
    output.args = ((relu,),)


def test_a_program_as_captured_is_well_formed(program: Program) -> None:
    verify(program)
    verify(program.clone(), program)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_shape, r"the weight '0\.weight' is torch\.float32 \(5, 4\), recorded as torch\.float32 \(6, 4\)"),
        (wrong_type, r"the weight '0\.weight' is .*float64"),
        (lost, r"reads the weight '0\.bias', which the program does not have"),
        (unread, "weights that no node reads: idle"),
        (read_twice, "read by more than one node"),
        (stale, r"recorded as torch\.float32 \(3, 7\)"),
        (does_not_fit, "the rewritten graph does not run"),
        (other_input, "names of inputs or outputs changed"),
        (other_output, "the output 'output' changed its shape"),
    ],
)
def test_what_is_wrong_is_named(program: Program, spoil: Callable[[Program], None], message: str) -> None:
    wrong = program.clone()
    spoil(wrong)
    with pytest.raises(VerifyError, match=message):
        verify(wrong, program)
    verify(program)
