"""Models of residual branches that could share weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture

D, HIDDEN, INPUTS = 8, 16, 5


class Layered(nn.Module):
    """Feed-forward branches behind norms, beside one stream. Everything is float64."""

    def __init__(self, layers: int = 4, identical: tuple[int, int] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.head = nn.Linear(INPUTS, D), nn.Linear(D, 3)
        self.branches = nn.ModuleList(
            [
                nn.Sequential(nn.LayerNorm(D), nn.Linear(D, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, D))
                for _ in range(layers)
            ]
        )
        with torch.no_grad():
            for parameter in self.branches.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        if identical is not None:
            first, second = (self.branches[i] for i in identical)
            second.load_state_dict(first.state_dict())
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)

    def use(self, number: int, others: tuple[int, ...]) -> Layered:
        """The same model, with the matrices of branch `number` in the others as well."""
        with torch.no_grad():
            for other in others:
                for place in (1, 3):
                    self.branches[other][place].weight.copy_(self.branches[number][place].weight)
        return self


def batches(count: int, seed: int = 1) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(64, INPUTS, generator=generator, dtype=torch.float64),) for _ in range(count)]


def layered(layers: int = 4, identical: tuple[int, int] | None = None) -> Analysis:
    model = Layered(layers, identical)
    return analyze(capture(model, batches(1)[0], dynamic_shapes=({0: "rows"},)))
