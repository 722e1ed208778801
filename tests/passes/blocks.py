"""Modules with axes on which any basis will do, one idea each, and what the tests of subspaces do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.passes.bases import change_bases
from fxslim.passes.subspaces import Subspace, find_subspaces
from fxslim.passes.survey import survey

__all__ = [
    "BLOCKS", "Bottleneck", "Experts", "Heads", "Images", "Lora", "Repeated", "in_best_bases", "opened", "subspaces_of",
]  # fmt: skip

Batches = list[list[Tensor]]


class Heads(nn.Module):
    """Attention with separate projections, without positions: queries and keys have a basis of their own."""

    def __init__(self, bias: bool = True, mask: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, n, bias=bias) for n in (12, 12, 15))
        self.o, self.mask = nn.Linear(15, 8, bias=bias), mask

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, 3, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=self.mask).transpose(1, 2).reshape(b, s, 15))


class Repeated(nn.Module):
    """Six query heads on two key-value heads, repeated or expanded."""

    def __init__(self, expand: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 10), nn.Linear(30, 8)
        self.expand = expand

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, 6, 4).transpose(1, 2)
        k, v = (f(x).view(b, s, 2, -1).transpose(1, 2) for f in (self.k, self.v))
        if self.expand:
            k, v = (t[:, :, None].expand(b, 2, 3, s, t.shape[-1]).reshape(b, 6, s, t.shape[-1]) for t in (k, v))
        else:
            k, v = (t.repeat_interleave(3, 1) for t in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 30))


class Lora(nn.Module):
    """A linear map with a pair of thin ones beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 6), nn.Linear(8, 5, bias=False), nn.Linear(5, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class Bottleneck(nn.Module):
    """Neurons, then a linear bottleneck: selection and a basis meet in `down`."""

    def __init__(self, hidden: int = 12, rank: int = 6) -> None:
        super().__init__()
        self.enter, self.down, self.up = nn.Linear(8, hidden), nn.Linear(hidden, rank), nn.Linear(rank, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(F.relu(self.enter(x))))


class Images(nn.Module):
    """A pair of convolutions with nothing between."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class Experts(nn.Module):
    """A stack of pairs, each with a bottleneck of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.randn(3, 8, 5)), nn.Parameter(torch.randn(3, 5, 7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(x, self.down), self.up)


def _features(rows: int) -> Tensor:
    return torch.randn(rows, 5, 8)


def _images(rows: int) -> Tensor:
    return torch.randn(rows, 3, 6, 6)


def _stacked(rows: int) -> Tensor:
    return torch.randn(3, rows, 8)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], int]] = {
    "heads": (Heads, _features, 2),
    "heads without biases": (lambda: Heads(bias=False), _features, 2),
    "causal heads": (lambda: Heads(mask=True), _features, 2),
    "repeat": (lambda: Repeated(False), _features, 2),
    "expand": (lambda: Repeated(True), _features, 2),
    "lora": (Lora, _features, 1),
    "bottleneck": (Bottleneck, _features, 1),
    "conv 1x1": (lambda: Images(1), _images, 1),
    "conv 3x3": (lambda: Images(3), _images, 1),
    "experts": (Experts, _stacked, 1),
}
"""How each is built, its inputs, and how many subspaces it has."""


@cache
def opened(name: str, *, double: bool = True) -> tuple[Analysis, Batches]:
    """The analysis of one of `BLOCKS` and three batches of calibration data; made once, so nobody may change it."""
    build, inputs, _ = BLOCKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, data = build().eval(), [[inputs(4)] for _ in range(3)]
    if double:
        model, data = model.double(), [[x.double() for x in batch] for batch in data]
    return analyze(capture(model, (data[0][0],))), data


def subspaces_of(analysis: Analysis) -> list[Subspace]:
    """All that there are; none may be refused."""
    found, refused = find_subspaces(analysis, analysis.groups)
    assert refused == []
    return found


def in_best_bases(analysis: Analysis, batches: Sequence[Sequence[Tensor]]) -> Analysis:
    """The program with every subspace in its best basis."""
    found = subspaces_of(analysis)
    surveyed = survey(analysis, [], found, batches)
    return change_bases(analysis, surveyed, [s.group.name for s in found])
