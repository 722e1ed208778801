"""Widths by influence: which branch a group lies in, MoDeGPT's rule by hand, and plans that follow it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import make_plan, prove
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.terms import Axis
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.passes.drop_branches import find_branches, influences
from fxslim.passes.influence import branches_of, by_influence, removal_factors, scaled_removal

D, HIDDEN = 12, 40
GAINS = (1.0, 0.02, 0.6)


class Deep(nn.Module):
    """Three branches beside a stream of which each turns it differently, and a hidden layer outside of all."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.widen, self.head = nn.Linear(5, HIDDEN), nn.Linear(HIDDEN, D), nn.Linear(D, 3)
        self.branches = nn.ModuleList(
            [nn.Sequential(nn.Linear(D, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, D)) for _ in GAINS]
        )
        with torch.no_grad():
            for branch, gain in zip(self.branches, GAINS, strict=True):
                branch[2].weight.mul_(gain)
                branch[2].bias.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(torch.relu(self.enter(x)))
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


def deep() -> tuple[Analysis, list[tuple[Tensor]]]:
    torch.manual_seed(0)
    batches = [(torch.randn(40, 5),) for _ in range(3)]
    return analyze(capture(Deep().eval(), batches[0])), batches


def test_a_group_lies_in_the_innermost_branch_that_holds_it() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(D, 9), nn.Linear(9, D), nn.Linear(D, 7), nn.Linear(7, D)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(torch.tanh(self.a(x)))
            return x + (y + self.d(torch.tanh(self.c(y))))

    analysis = analyze(capture(Nested(), (torch.randn(2, D),)))
    inner, outer = find_branches(analysis.program)
    owners = branches_of(analysis, analysis.groups, [inner, outer])
    assert owners["a.weight[0]"] == outer and owners["c.weight[0]"] == inner


def test_what_lies_outside_has_no_branch() -> None:
    analysis, _ = deep()
    branches = find_branches(analysis.program)
    owners = branches_of(analysis, analysis.prunable, branches)
    assert owners == {f"branches.{i}.0.weight[0]": branch for i, branch in enumerate(branches)}
    assert {g.name for g in analysis.prunable} - set(owners) == {"enter.weight[0]", "widen.weight[0]"}


def test_factors_are_a_softmax_of_the_influences() -> None:
    found = removal_factors({"a": 0.1, "b": 0.1, "c": 0.1 + 0.1 * math.log(4)}, temperature=0.1)
    assert found == pytest.approx({"a": 4 / 3, "b": 4 / 3, "c": 1 / 3}), "e^-0, e^-0 and a fourth: three on average 1"
    assert removal_factors({"a": 0.7}) == pytest.approx({"a": 1.0})
    assert removal_factors({"a": 0.1, "b": 0.9}, temperature=1e6) == pytest.approx({"a": 1, "b": 1}, rel=1e-5)


def test_widths_scale_what_is_removed() -> None:
    a, b, c = (Axis(i, 10) for i in range(3))
    widths = scaled_removal({a: 0.5, b: 1.0, c: 1.5})
    assert widths(1.0) == pytest.approx({a: 1, b: 1, c: 1}) and widths(0.0) == pytest.approx({a: 0, b: 0, c: 0})
    assert widths(0.75) == pytest.approx({a: 0.75, b: 0.5, c: 0.25}), "twice a fourth, by the factors"
    assert widths(0.5) == pytest.approx({a: 0.5, b: 0.0, c: 0.0}), "nothing loses more than it has"


@pytest.mark.parametrize("importance", ["fasp", "magnitude"])
@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
def test_a_plan_takes_most_where_the_stream_is_turned_least(keep: float, importance: Any) -> None:
    analysis, batches = deep()
    groups = ["neurons"]
    plan = make_plan(analysis, keep, importance=importance, budget="influence", groups=groups, calibration=batches)
    before, after = plan.predicted["params"]
    assert abs(after / before - keep) <= 0.01 and prove(analysis, plan).ok and plan.options["budget"] == "influence"
    counts = {c.group: c.count for c in plan.cuts}
    first, second, third = (counts.get(f"branches.{i}.0.weight[0]", HIDDEN) for i in range(3))
    assert first > third >= second and first > second and (third > second or second == 1 or keep > 0.8)


def test_the_widths_of_a_plan_are_those_of_the_rule() -> None:
    analysis, batches = deep()
    plan = make_plan(analysis, 0.7, importance="fasp", budget="influence", groups=["neurons"], calibration=batches)
    found = removal_factors(influences(analysis.program, find_branches(analysis.program), batches))
    lost = {c.group: 1 - c.count / c.size for c in plan.cuts}
    common = lost["enter.weight[0]"]  # of a group outside: the mean of the branches
    for i, factor in enumerate(found.values()):
        assert lost[f"branches.{i}.0.weight[0]"] == pytest.approx(
            min(factor * common, 1 - 1 / HIDDEN), abs=1.5 / HIDDEN
        )


def test_what_cannot_be_divided_is_refused() -> None:
    analysis, batches = deep()
    with pytest.raises(InputError, match="'influence' needs calibration data"):
        make_plan(analysis, 0.6, budget="influence")
    with pytest.raises(InputError, match="divides a share"):
        make_plan(analysis, width=0.6, budget="influence", calibration=batches)
    with pytest.raises(InputError, match="none holds a group"):
        by_influence(analysis, [analysis.group("enter.weight[0]")], batches)
    with pytest.raises(InputError, match="budget: no effect"):
        make_plan(analysis, 0.6, budget="influence", metric="plain", calibration=batches)
