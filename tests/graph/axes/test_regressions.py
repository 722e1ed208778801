"""Orientation, roles and batch axes in layouts where they once came out wrong: one regression test for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.notation import Symmetry
from fxslim.graph.capture import capture
from tests.graph.axes import tiny
from tests.graph.axes.tiny import analysis_of


class Gram(nn.Module):
    """Scores of a layer's output with itself: both sides are made by one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(6, 8), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.out(y @ y.mT)


class Tied(nn.Module):
    """Embedding and head are one weight, with nothing nonlinear between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(self.embed(ids), self.embed.weight)


class Squared(nn.Module):
    """A square layer on the residual stream: its weight holds the stream on both dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mid, self.leave = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.mid(x))


def squared() -> Analysis:
    return analyze(capture(Squared(), (torch.randn(2, 6),)))


def test_a_weight_on_both_sides_of_a_product_is_only_rotated() -> None:
    (group,) = analyze(capture(Gram(), (torch.randn(5, 6),))).prunable
    assert group.symmetry <= Symmetry.ORTHOGONAL


def test_heads_fused_by_view_are_only_rotated() -> None:
    assert analysis_of(tiny.FusedByView).group("qkv.weight[0].query-key-dims").symmetry <= Symmetry.ORTHOGONAL


def test_a_tied_embedding_is_only_rotated() -> None:
    (group,) = analyze(capture(Tied(), (torch.tensor([[1, 2, 3]]),))).prunable
    assert group.symmetry <= Symmetry.ORTHOGONAL


def test_heads_fused_by_split_select_values_per_head() -> None:
    batch = analysis_of(tiny.FusedBySplit).group("qkv.weight[0].value-dims").batch
    assert [a.size for a in batch] == [3]


def test_a_square_weight_produces_on_one_side_and_consumes_on_the_other() -> None:
    (group,) = squared().prunable
    assert {s.dim: s.role for s in group.sites if s.weight == "mid.weight"} == {0: "produces", 1: "consumes"}


def test_a_square_weight_leaves_the_stream_any_order() -> None:
    (group,) = squared().prunable
    assert group.symmetry >= Symmetry.PERMUTATION
