from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fxslim.export.reference import run_float64
from fxslim.graph.capture import capture
from fxslim.graph.errors import CheckError
from tests.export.nets import Exported, randomise

ROUNDING = 1e-13  # float64, relative; the same operators in the same order


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
def test_the_reference_equals_the_model_in_float64(name: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(name)
    inputs = exported.program.example_inputs
    model = copy.deepcopy(exported.model).double()
    with torch.no_grad():
        expected = model(*(x.double() if x.is_floating_point() else x for x in inputs))
    expected = next(iter(expected.values())) if isinstance(expected, dict) else expected
    (found,) = run_float64(exported.program, inputs)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def test_types_that_the_program_asks_for_are_widened() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, dtype=torch.bfloat16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            angle = torch.arange(5, dtype=torch.float32) / 3
            x = x.to(torch.float16).to(torch.float32)
            return (x * angle).softmax(-1, dtype=torch.float32) * self.weight.float()

    model = randomise(Casts())
    program = capture(model, (torch.randn(2, 5),))
    x = torch.randn(2, 5)
    (found,) = run_float64(program, (x,))
    angle = torch.arange(5, dtype=torch.float64) / 3
    expected = (x.double() * angle).softmax(-1) * model.weight.detach().double()
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)


def test_integers_stay_integers(attention: Exported) -> None:
    class Count(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return (ids > 2).sum(-1)

    ids = torch.tensor([[1, 5, 9]])
    (found,) = run_float64(capture(Count(), (ids,)), (ids,))
    assert found.dtype is torch.int64 and found.tolist() == [2]


def test_an_operator_that_reads_bits_has_no_reference() -> None:
    class Bits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(torch.int32) + 1

    x = torch.randn(4)
    with pytest.raises(CheckError, match="no meaning in float64"):
        run_float64(capture(Bits(), (x,)), (x,))
