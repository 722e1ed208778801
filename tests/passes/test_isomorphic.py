"""Residual branches of equal structure are found from the graph, along one stream, and matched place by place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.capture import capture
from fxslim.graph.program import Program
from fxslim.passes.drop_branches import find_branches
from fxslim.passes.isomorphic import neighbours, same_places

D = 8


class Alternating(nn.Module):
    """Two kinds of branches by turns, each behind a norm; all read one mask, sliced anew by each."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.mix = nn.ModuleList([nn.Linear(D, D, bias=False) for _ in range(layers)])
        self.feed = nn.ModuleList([nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 12), nn.GELU(), nn.Linear(12, D))
                                   for _ in range(layers)])  # fmt: skip

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for mix, feed in zip(self.mix, self.feed, strict=True):
            x = x + mix(x) * mask[:, :D]
            x = x + feed(x)
        return x


def program(model: nn.Module, *inputs: Tensor) -> Program:
    return capture(model.eval(), inputs)


def test_each_kind_of_branch_is_a_run_of_its_own() -> None:
    found = program(Alternating(), torch.randn(2, D), torch.ones(2, 2 * D))
    adds = [b.add.name for b in find_branches(found)]
    assert [[b.add.name for b in run] for run in neighbours(found)] == [adds[::2], adds[1::2]]


def test_weights_are_matched_by_their_places() -> None:
    found = program(Alternating(), torch.randn(2, D), torch.ones(2, 2 * D))
    mixes, feeds = neighbours(found)
    assert same_places(found, mixes[0], mixes[2]) == {"mix.2.weight": "mix.0.weight"}
    parts = [f"{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")]
    assert same_places(found, feeds[1], feeds[0]) == {f"feed.0.{p}": f"feed.1.{p}" for p in parts}
    assert same_places(found, mixes[0], feeds[0]) is None


class Two(nn.Module):
    """Two branches that `act` makes different, or not."""

    def __init__(self, act: Callable[[Tensor, int], Tensor], width: int = 12) -> None:
        super().__init__()
        self.act = act
        self.up = nn.ModuleList([nn.Linear(D, 12), nn.Linear(D, width)])
        self.down = nn.ModuleList([nn.Linear(12, D), nn.Linear(width, D)])

    def forward(self, x: Tensor) -> Tensor:
        for number, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            x = x + down(self.act(up(x), number))
        return x


@pytest.mark.parametrize(
    ("model", "runs"),
    [
        (Two(lambda y, _: y.relu()), 1),
        (Two(lambda y, _: y.relu(), width=16), 0),  # other shapes
        (Two(lambda y, i: y.relu() if i else y.tanh()), 0),  # another operator
        (Two(lambda y, i: y * (0.5 + i)), 0),  # another number
        (Two(lambda y, i: y.relu() - y if i else y - y.relu()), 0),  # other operands
        (Two(lambda y, i: y * y.relu() if i else y * y), 0),  # two places of the one are one of the other
    ],
)
def test_what_differs_is_no_neighbour(model: nn.Module, runs: int) -> None:
    assert len(neighbours(program(model, torch.randn(2, D)))) == runs


def test_streams_are_kept_apart() -> None:
    class Towers(nn.Module):
        """One branch on each of two streams, and a second one where they have met."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(D, D) for _ in range(3))

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            x, y = x + self.a(x).relu(), y + self.b(y).relu()
            return x, y + self.c(y).relu()

    found = program(Towers(), torch.randn(2, D), torch.randn(2, D))
    (run,) = neighbours(found)
    assert same_places(found, *run) == {"c.weight": "b.weight", "c.bias": "b.bias"}


def test_a_weight_that_others_read_is_left_out() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x).relu()
            x = x + self.b(x).relu()
            return x @ self.b.weight

    found = program(Tied(), torch.randn(2, D))
    ((first, second),) = neighbours(found)
    assert same_places(found, first, second) == {"b.bias": "a.bias"}
    assert same_places(found, second, first) == {"a.weight": "b.weight", "a.bias": "b.bias"}


def test_caches_of_their_own_do_not_keep_branches_apart() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor, past_a: Tensor, past_b: Tensor) -> Tensor:
            x = x + torch.cat([past_a, self.a(x)], 0)[-2:]
            return x + torch.cat([past_b, self.b(x)], 0)[-2:]

    found = program(Cached(), *(torch.randn(2, D) for _ in range(3)))
    ((first, second),) = neighbours(found)
    assert same_places(found, first, second) == {"b.weight": "a.weight", "b.bias": "a.bias"}
