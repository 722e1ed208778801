"""A projection that computes q, k and v in one product becomes three, and V alone can be cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.evaluate import Evaluator
from fxslim.passes.importance import top
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.planner import make_plan
from fxslim.passes.prepare import SPLIT, prepare
from fxslim.passes.prove import prove
from fxslim.passes.prune import Prune
from fxslim.passes.split import SplitFused
from tests.passes.conftest import Analyse, Pair

EXACT, CLOSE = 1e-9, 1e-5
HEADS, WIDTH = 3, 4


class Fused(nn.Module):
    """Self-attention whose projection is taken apart by position, in one of the layouts that models use."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.qkv, self.out = nn.Linear(12, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 5)

    def parts(self, x: Tensor) -> list[Tensor]:
        b, n, _ = x.shape
        y = self.qkv(x)
        if self.layout == "3·h·d, unbind":
            return list(y.reshape(b, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0))
        if self.layout == "3·h·d, by number":
            y = y.reshape(b, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
            return [y[0], y[1], y[-1]]
        if self.layout == "h·3·d":
            y = y.view(b, n, HEADS, 3, WIDTH)
            return [y[..., i, :].transpose(1, 2) for i in range(3)]
        y = y.view(b, n, HEADS, WIDTH, 3)
        return [y[..., i].transpose(1, 2) for i in range(3)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], HEADS * WIDTH))


LAYOUTS = ("3·h·d, unbind", "3·h·d, by number", "h·3·d", "h·d·3")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_parts_can_be_cut_alone(layout: str, analyse: Analyse) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 5, 12)
    model = Fused(layout).eval()
    whole = analyse(model, x, dynamic=({0: "batch"},))
    assert {g.kind for g in whole.prunable} == {"heads", "query-key dims"}
    parts = prepare(whole, [SPLIT])
    groups = {g.kind: (g.size, [a.size for a in g.batch]) for g in parts.prunable}
    assert groups == {"heads": (HEADS, []), "value dims": (WIDTH, [HEADS]), "query-key dims": (WIDTH, [HEADS])}
    torch.testing.assert_close(Evaluator(parts.program).run([x])[0], model(x).detach(), atol=CLOSE, rtol=CLOSE)
    for kind in groups:
        proof = prove(parts, make_plan(parts, width=0.5, groups=[kind]), [[x], [torch.randn(3, 5, 12)]])
        assert proof.ok and proof.exact and proof.max_error <= EXACT and proof.effect > CLOSE


def test_values_cut_in_a_fused_projection_equal_slices_of_the_weights(analyse: Analyse) -> None:
    """By hand: other value dimensions in each head, queries and keys whole."""
    torch.manual_seed(2)
    x = torch.randn(2, 5, 12)
    model = Fused("3·h·d, unbind").double().eval()
    parts = prepare(analyse(model, x.double()), [SPLIT])
    (group,) = [g for g in parts.prunable if g.kind == "value dims"]
    kept = torch.tensor([[0, 2], [1, 2], [0, 3]])
    mask = torch.zeros(HEADS, WIDTH, dtype=torch.bool).scatter_(1, kept, True)
    slim = Prune(Plan(parts.program.fingerprint(), (Cut.from_mask(group, mask),)))(parts).program
    q, k, v = model.parts(x.double())
    small = torch.stack([v[:, h][..., kept[h]] for h in range(HEADS)], 1)
    mixed = F.scaled_dot_product_attention(q, k, small).transpose(1, 2).reshape(2, 5, HEADS * 2)
    wanted = mixed @ model.out.weight[:, mask.flatten()].T + model.out.bias
    torch.testing.assert_close(slim.module()(x.double()), wanted, atol=EXACT, rtol=EXACT)


def test_a_plan_remembers_the_preparation_and_survives_json(analyse: Analyse) -> None:
    parts = prepare(analyse(Fused("h·3·d"), torch.randn(2, 5, 12)), [SPLIT])
    plan = make_plan(parts, width=0.5)
    assert plan.prepare == (SPLIT,)
    assert Plan.from_json(plan.to_json()).prepare == (SPLIT,)


class Steps(nn.Module):
    """A sequence read step by step: nothing was fused."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.read(x).unbind(1)
        return self.out(F.relu(first) + second)


class Used(nn.Module):
    """The fused projection is also read whole."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.out = nn.Linear(4, 12), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.two(x).view(-1, 2, 6)
        return self.out(y[:, 0] * y[:, 1]), y.sum((1, 2))


@pytest.mark.parametrize(("model", "shape"), [(Steps(), (3, 2, 4)), (Used(), (3, 4)), (Pair(), (3, 4))])
def test_what_is_not_a_fused_projection_stays(model: nn.Module, shape: tuple[int, ...], analyse: Analyse) -> None:
    assert not SplitFused()(analyse(model, torch.randn(shape))).modified


def test_random_selections_of_all_parts_are_proven(analyse: Analyse) -> None:
    parts = prepare(analyse(Fused("h·d·3"), torch.randn(2, 5, 12)), [SPLIT])
    generator = torch.Generator().manual_seed(4)
    for count in (1, 2):
        cuts = [
            Cut.from_mask(g, top(torch.rand([int(a.size) for a in (*g.batch, g.axis)], generator=generator), count))
            for g in parts.prunable
        ]
        proof = prove(parts, Plan(parts.program.fingerprint(), tuple(cuts)))
        assert proof.ok and proof.max_error <= EXACT
