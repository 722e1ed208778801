"""Slim programs against references written by hand: no code of the selection, the rewriter or the oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.planner import make_plan
from fxslim.passes.prove import prove
from fxslim.passes.prune import Prune

TOLERANCE = 1e-12  # float64, a handful of operations


class Viewed(nn.Module):
    """A hidden dimension seen as 6·4 between two linears; `between` acts on that view."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.leave, self.between = nn.Linear(5, 24), nn.Linear(24, 4), between

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.between(self.enter(x).view(-1, 6, 4)).reshape(-1, 24))


class GroupNormed(nn.Module):
    """Three groups of four channels; ReLU behind."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 4, 1)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.norm(self.enter(x))))


class Repeated(nn.Module):
    """Grouped-query attention as it is written by hand: keys and values repeated by `repeat_interleave`."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 24), nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, 6, 4).transpose(1, 2)
        k, v = (f(x).view(b, s, 3, 4).transpose(1, 2).repeat_interleave(2, 1) for f in (self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 24))


def cut(analysis: Analysis, **kept: list[int]) -> Plan:
    """A plan that keeps the same positions everywhere, by kind or by size (`n6`)."""
    cuts = []
    for group in analysis.prunable:
        positions = kept.get(f"n{group.size}")
        if positions is not None:
            mask = torch.zeros([int(a.size) for a in (*group.batch, group.axis)], dtype=torch.bool)  # type: ignore[arg-type]
            mask[..., positions] = True
            cuts.append(Cut.from_mask(group, mask))
    return Plan(analysis.program.fingerprint(), tuple(cuts))


def run(analysis: Analysis, plan: Plan, x: Tensor) -> Tensor:
    slim = Evaluator(Prune(plan)(analysis).program, dtype=torch.float64).run([x])[0]
    assert isinstance(slim, Tensor)
    return slim


def test_softmax_over_a_view_sees_the_kept_positions_alone() -> None:
    torch.manual_seed(0)
    model, x = Viewed(lambda y: y.softmax(-1)), torch.randn(7, 5)
    analysis = analyze(capture(model, (x,)))
    got = run(analysis, cut(analysis, n4=[0, 3], n6=[1, 2, 5]), x)
    double = model.double().requires_grad_(False)
    hidden = double.enter(x.double()).view(-1, 6, 4)
    hidden[..., [1, 2]] = -torch.inf
    hidden = hidden.softmax(-1)
    hidden[:, [0, 3, 4]] = 0
    assert float((got - double.leave(hidden.reshape(-1, 24))).abs().max()) < TOLERANCE


def test_group_norm_sees_the_kept_channels_of_each_group_alone() -> None:
    torch.manual_seed(0)
    model, x = GroupNormed(), torch.randn(2, 3, 5, 5)
    analysis = analyze(capture(model, (x,)))
    got = run(analysis, cut(analysis, n4=[0, 2, 3], n3=[0, 2]), x)
    double = model.double().requires_grad_(False)
    channels = double.enter(x.double()).view(2, 3, 4, 5, 5)[:, :, [0, 2, 3]]
    mean, var = channels.mean((2, 3, 4), keepdim=True), channels.var((2, 3, 4), keepdim=True, correction=0)
    scale, shift = (p.view(1, 3, 4, 1, 1)[:, :, [0, 2, 3]] for p in (double.norm.weight, double.norm.bias))
    normed = F.relu((channels - mean) / (var + double.norm.eps).sqrt() * scale + shift)
    whole = torch.zeros(2, 3, 4, 5, 5, dtype=torch.float64)
    whole[:, :, [0, 2, 3]] = normed
    whole[:, 1] = 0
    assert float((got - double.leave(whole.view(2, 12, 5, 5))).abs().max()) < TOLERANCE


@pytest.mark.parametrize("width", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Viewed(torch.tanh), (7, 5)),
        (Viewed(lambda y: y.softmax(-1)), (7, 5)),
        (GroupNormed(), (2, 3, 5, 5)),
        (Repeated(), (2, 5, 8)),
    ],
    ids=["view", "softmax", "group norm", "repeat_interleave"],
)
def test_random_plans_are_proven(model: nn.Module, shape: tuple[int, ...], width: float, seed: int) -> None:
    torch.manual_seed(seed)
    analysis = analyze(capture(model, (torch.randn(shape),)))
    plan = make_plan(analysis, width=width, importance="random", inexact=True, seed=seed)
    assert plan.cuts
    assert prove(analysis, plan).ok


def test_of_two_axes_that_follow_each_other_everywhere_one_leads() -> None:
    groups = analyze(capture(Viewed(torch.tanh), (torch.randn(7, 5),))).prunable
    assert sorted(len(g.batch) for g in groups) == [0, 1]


def test_a_statistic_over_heads_forbids_a_choice_for_each_head() -> None:
    (dims,) = [
        g for g in analyze(capture(Viewed(lambda y: y.softmax(-1)), (torch.randn(7, 5),))).prunable if g.size == 6
    ]
    assert dims.batch == ()


def test_an_input_that_comes_back_in_a_concatenation_is_the_users() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.l = nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.l(x).relu()], -1)

    groups: tuple[Group, ...] = analyze(capture(Features(), (torch.randn(4, 16),))).prunable
    assert not groups


def test_a_proof_in_which_masking_changes_nothing_is_none() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2, bias=False))
    analysis = analyze(capture(model, (torch.zeros(3, 4),)))
    proof = prove(analysis, make_plan(analysis, width=0.5))
    assert not proof.ok and not proof.conclusive


def test_dead_units_are_cut_with_a_proof_on_random_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].bias[2:5] = -100.0  # never above zero
    analysis = analyze(capture(model, (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),)))
    (group,) = [g for g in analysis.prunable if g.size == 6]
    dead = Plan(analysis.program.fingerprint(), (Cut(group.name, group.kind, 6, 3, (), (0, 1, 5)),))
    proof = prove(analysis, dead)
    assert proof.ok and proof.shaken and proof.max_error <= 1e-12
    assert "what is cut was dead" in str(proof)
    whole = Plan(analysis.program.fingerprint(), (Cut(group.name, group.kind, 6, 3, (), (2, 3, 4)),))
    assert not prove(analysis, whole).shaken


class Recurrent(nn.Module):
    """Two layers in both directions, read by a linear one."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU | nn.RNN], units: int) -> None:
        super().__init__()
        self.steps = cell(4, units, num_layers=2, bidirectional=True, batch_first=True)
        self.leave = nn.Linear(2 * units, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.steps(x)[0])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_cut_equals_a_smaller_one_with_sliced_weights(cell: type[nn.LSTM | nn.GRU | nn.RNN]) -> None:
    torch.manual_seed(7)
    units, kept = 6, [0, 2, 5]
    model, x = Recurrent(cell, units).double().eval(), torch.randn(2, 5, 4, dtype=torch.float64)
    analysis = analyze(capture(model, (x,)))
    small = Recurrent(cell, len(kept)).double().eval()
    both = torch.tensor([*kept, *(units + k for k in kept)])  # the two directions one after the other
    with torch.no_grad():
        for name, weight in model.named_parameters():
            target = small.get_parameter(name)
            if name == "leave.weight":
                target.copy_(weight[:, both])
                continue
            if name == "leave.bias":
                target.copy_(weight)
                continue
            rows = weight.unflatten(0, (-1, units))[:, kept].flatten(0, 1)  # the same units of every gate
            if weight.dim() == 2 and "weight_hh" in name:
                rows = rows[:, kept]
            elif weight.dim() == 2 and "_l1" in name:
                rows = rows[:, both]
            target.copy_(rows)
    (group,) = analysis.prunable
    assert (group.kind, group.exact) == ("recurrent units", True)
    torch.testing.assert_close(run(analysis, cut(analysis, n6=kept), x), small(x).detach(), rtol=0, atol=TOLERANCE)
