"""What the tests of passes share: analyses of one-idea models, and calibration batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture

Analyse = Callable[..., Analysis]


@pytest.fixture
def analyse() -> Analyse:
    """`analyse(module, *inputs, dynamic=...)`: the groups of a module."""

    def make(model: nn.Module, *inputs: Tensor, dynamic: object = None) -> Analysis:
        return analyze(capture(model.eval(), inputs, dynamic_shapes=dynamic))

    return make


class Pair(nn.Module):
    """A hidden layer and what consumes it."""

    def __init__(self, width: int = 10, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, width, bias=bias), nn.Linear(width, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


@pytest.fixture
def pair(analyse: Analyse) -> Analysis:
    """A hidden layer of ten, inputs of four, outputs of three; any number of rows."""
    torch.manual_seed(3)
    return analyse(Pair(), torch.randn(6, 4), dynamic=({0: "rows"},))
