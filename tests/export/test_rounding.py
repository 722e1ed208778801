from __future__ import annotations

import pytest
import torch
from torch import nn

from fxslim.export.rounding import run_rounded
from fxslim.graph.capture import capture
from tests.export.nets import Mlp, randomise


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_and_results_are_rounded(dtype: torch.dtype) -> None:
    model, x = randomise(Mlp()), torch.randn(4, 12)
    program = capture(model, (x,))

    def r(t: torch.Tensor) -> torch.Tensor:
        return t.detach().to(dtype).float()

    up, down = model.get_submodule("up"), model.get_submodule("down")
    hidden = torch.relu(r(nn.functional.linear(r(x), r(up.weight), r(up.bias))))
    expected = r(nn.functional.linear(hidden, r(down.weight), r(down.bias)))
    (found,) = run_rounded(program, (x,), dtype)
    assert torch.equal(found, expected)
    assert not torch.equal(found, model(x))


def test_what_integers_alone_decide_is_not_rounded() -> None:
    class Angles(nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return (ids.float() * 0.7).cos()

    ids = torch.arange(3000, 3010)
    (found,) = run_rounded(capture(Angles(), (ids,)), (ids,), torch.bfloat16)
    assert torch.equal(found, (ids.float() * 0.7).cos())


def test_large_numbers_are_held_at_the_end_of_the_type() -> None:
    class Large(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1e6

    x = torch.tensor([1.0, float("inf")])
    (found,) = run_rounded(capture(Large(), (x,)), (x,), torch.float16)
    assert found.tolist() == [65504.0, float("inf")]
