"""Operators with several names, and shorthands, come out of capture in one form that has a rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.analysis import analyze_axes
from fxslim.graph.axes.rules import REGISTRY
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.normalize import _NAMES


class Calls(nn.Module):
    """One call."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call(x, y)


MANY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "arithmetic": lambda x, y: torch.subtract(torch.divide(torch.multiply(x, y), 3), torch.negative(torch.absolute(y))),
    "comparisons": lambda x, y: torch.clip(torch.where(torch.greater(x, y), x, y), -1, 1),
    "joins of matrices": lambda x, y: torch.concat([torch.hstack([x, y]), torch.column_stack([y, x])], 1),
    "rows": lambda x, y: torch.vstack([x, y]) + torch.vstack([torch.vstack([x[0], y[0]]), torch.vstack([y, x])])[:6],
    "vectors": lambda x, y: torch.hstack([x[0], y[1]]) + torch.column_stack([x[0], y[0]]).reshape(-1),
    "depth": lambda x, y: torch.dstack([x[None], y[None]]),
    "tiles": lambda x, y: torch.tile(x, (2,)) + torch.tile(y, (1, 2)),
    "flips": lambda x, y: torch.fliplr(x) + torch.flipud(y),
    "crosses": lambda x, y: torch.linalg.cross(x.t(), y.t(), dim=0) + torch.cross(x.t(), y.t(), dim=0),
    "outer": lambda x, y: torch.ger(x[0], y[0]) + torch.outer(x[1], y[1]),
    "special": lambda x, y: torch.special.expit(x) + torch.special.softmax(y, 1),
}


@pytest.mark.parametrize("name", MANY)
def test_shorthands_have_rules_and_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 3), torch.randn(3, 3)
    program = capture(Calls(MANY[name]), (x, y))
    assert analyze_axes(program).unknown == {}
    (got,) = Evaluator(program).run([x, y])
    torch.testing.assert_close(got, MANY[name](x, y), rtol=0, atol=0)


def test_a_cross_product_keeps_its_dimension_when_another_is_cut_to_three() -> None:
    program = capture(Calls(lambda x, y: torch.cross(x, y, dim=-1)), (torch.randn(4, 3), torch.randn(4, 3)))
    (call,) = (n for n in program.graph.nodes if n.op == "call_function")
    assert (call.target, call.kwargs) == (torch.ops.aten.linalg_cross.default, {"dim": -1})


def test_every_synonym_leads_to_a_rule() -> None:
    without = {str(plain) for plain in _NAMES.values() if plain not in REGISTRY}
    assert without <= {"aten.trapezoid.x"}
