"""A projection that computes q, k and v in one product becomes three, and V alone can be cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.evaluate import Evaluator
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.planner import make_plan
from fxslim.passes.prepare import SPLIT, prepare
from fxslim.passes.prove import prove
from fxslim.passes.prune import Prune
from fxslim.passes.split import SplitFused
from tests.passes.conftest import Analyse, Pair
from tests.plans import plan_of, random_cut

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
        proof = prove(parts, plan_of(parts, [random_cut(g, count, generator) for g in parts.prunable]))
        assert proof.ok and proof.max_error <= EXACT


class Between(nn.Module):
    """Three parts read by number, with something between the projection and the readers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.three, self.out, self.between = nn.Linear(4, 24), nn.Linear(8, 2), between

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.between(self.three(x).view(2, 5, 3, 8)).unbind(2)
        return self.out(a * b.sigmoid() + c.relu())


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda y: y.softmax(2),
    "norm": lambda y: F.layer_norm(y, (3, 8)),
    "flip": lambda y: y.flip(2),
    "roll": lambda y: y.roll(1, 2),
    "sum of those before": lambda y: y.cumsum(2),
    "first part in all": lambda y: y * y[:, :, :1],
    "product with itself": lambda y: (y @ y.mT) @ y,
}


@pytest.mark.parametrize("name", MIXING)
def test_parts_that_meet_before_they_are_read_are_not_split(name: str, analyse: Analyse) -> None:
    torch.manual_seed(3)
    assert not SplitFused()(analyse(Between(MIXING[name]), torch.randn(2, 5, 4))).modified


def test_what_acts_position_by_position_may_stand_between(analyse: Analyse) -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 5, 4)
    model = Between(lambda y: torch.tanh(y) * 2 + 1).eval()
    parts = prepare(analyse(model, x), [SPLIT])
    assert parts.program.history == [SPLIT]
    torch.testing.assert_close(Evaluator(parts.program).run([x])[0], model(x).detach(), atol=CLOSE, rtol=CLOSE)


class Late(nn.Module):
    """What is read by number is needed for what is read by number later."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.three, self.out, self.how = nn.Linear(4, 12), nn.Linear(4, 2), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "twice":
            return self.out(self.fused(self.fused(x)))
        y = self.three(x).view(-1, 3, 4)
        if self.how == "gate":
            z = y * y[:, 0].sigmoid().unsqueeze(1)
            return self.out(z[:, 1] + z[:, 2])
        return self.out(torch.select(y, 1, x.shape[0] - x.shape[0]) + y[:, 1])

    def fused(self, x: Tensor) -> Tensor:
        a, b, c = self.three(x).view(-1, 3, 4).unbind(1)
        return a * b + c


@pytest.mark.parametrize("how", ["twice", "gate", "computed"])
def test_parts_that_cannot_be_computed_alone_are_not_split(how: str, analyse: Analyse) -> None:
    assert not SplitFused()(analyse(Late(how), torch.randn(5, 4), dynamic=({0: "rows"},))).modified


class Chain(nn.Module):
    """A fused projection of a part of another one; names that both have in a state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 24), nn.Linear(8, 24), nn.Linear(8, 2)
        self.alias = self.second

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.first(x).view(-1, 3, 8).unbind(1)
        d, e, f = self.second(a).view(-1, 3, 8).unbind(1)
        return self.out(b * c + d * e + f)


def test_one_split_behind_another_leaves_nothing_of_either(analyse: Analyse) -> None:
    torch.manual_seed(4)
    x = torch.randn(5, 4)
    analysis = analyse(Chain(), x)
    parts = prepare(analysis, [SPLIT]).program
    assert parts.parameters() == analysis.program.parameters()
    assert not {"first.weight", "second.weight"} & set(parts.info)
    names = {name for name, _ in parts.module().named_parameters(remove_duplicate=False)}
    assert {"second.weight_1", "alias.weight_1"} <= names
    torch.testing.assert_close(parts.module()(x), analysis.program.module()(x), atol=CLOSE, rtol=CLOSE)
