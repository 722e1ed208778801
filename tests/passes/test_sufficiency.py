"""Whether calibration data suffices: what is expected before the refits is what they then have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis
from fxslim.passes.planner import make_plan
from fxslim.passes.restore import FEW_TOKENS, Restoration, RestoredConsumer, restore_weights
from fxslim.passes.sufficiency import Need, expected_needs, refit_needs, scarcest, summarize
from tests.passes.conftest import Analyse


class Mixed(nn.Module):
    """A convolution sees every pixel, the head one row for each image; one of them has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 8, 3, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


@pytest.fixture
def convolutions(analyse: Analyse) -> Analysis:
    return analyse(Mixed(), torch.randn(2, 2, 7, 7), dynamic=({0: "rows"},))


def test_what_is_expected_is_what_the_refits_have(convolutions: Analysis) -> None:
    plan = make_plan(convolutions, width=0.5)
    batches = [[torch.randn(n, 2, 7, 7)] for n in (8, 8, 3)]
    expected = expected_needs(convolutions, plan.selection(convolutions), batches)
    made = refit_needs(restore_weights(convolutions, plan.selection(convolutions), batches))
    assert expected == made
    assert [(n.weight, n.tokens) for n in made] == [("second.weight", 19 * 9), ("head.weight", 19)]
    assert [n.columns for n in made] == [3 * 9, 4 + 1], "the constant counts where there is a bias"


def row(weight: str, tokens: int, before: float, after: float, accepted: bool = True) -> RestoredConsumer:
    return RestoredConsumer(weight, weight, 20, 9, tokens, accepted, 1e-4, before, after, fitted=10)


def test_the_summary_is_that_of_the_rows(convolutions: Analysis) -> None:
    selection = make_plan(convolutions, width=0.5).selection(convolutions)
    rows = (row("a", 100, 0.5, 0.1), row("b", 30, 0.4, 0.4, accepted=False), row("c", 70, 0.9, 0.2))
    found = summarize(Restoration({}, rows, (), selection))
    assert found is not None
    assert (found.refits, found.rejected) == (3, 1)
    assert found.tokens_per_column == (3.0, 7.0) and found.scarcest == "b"
    assert found.median_error == (0.5, 0.2)
    assert found.worst_error == (0.4, 0.4) and found.worst == "b"
    assert summarize(Restoration({}, (), (), selection)) is None


def test_short_is_below_the_threshold() -> None:
    enough = int(FEW_TOKENS * 10)
    assert not Need("a", enough, 10).short and Need("a", enough - 1, 10).short
    assert scarcest([Need("a", 50, 10), Need("b", 50, 20)]) == Need("b", 50, 20)
    assert scarcest([]) is None
