"""The global division of a budget against trying all combinations of sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.axes.terms import Axis
from fxslim.graph.capture import capture
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError, PlanError
from fxslim.passes.allocation import allocate
from fxslim.passes.planner import make_plan


class Branches(nn.Module):
    """Three hidden layers side by side: what one of them costs does not depend on the others."""

    def __init__(self, sizes: tuple[int, ...] = (6, 8, 5)) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(4 + i, n) for i, n in enumerate(sizes))
        self.down = nn.ModuleList(nn.Linear(n, 3) for n in sizes)

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.stack([d(torch.relu(u(x))) for u, d, x in zip(self.up, self.down, xs, strict=True)]).sum(0)


class Chain(nn.Module):
    """Hidden layers behind one another: the weight between two is cut by both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.fixture(scope="module")
def branches() -> Analysis:
    return analyze(capture(Branches(), tuple(torch.randn(2, 4 + i) for i in range(3))))


@pytest.fixture(scope="module")
def chain() -> Analysis:
    return analyze(capture(Chain(), (torch.randn(2, 4),)))


def cuttable(analysis: Analysis) -> list[Group]:
    return [g for g in analysis.prunable if g.size > 1]


def convex(size: int, scale: float = 1.0) -> Tensor:
    """Losses of keeping 0 .. size positions: each next one that goes costs more."""
    steps = (torch.rand(size).double() * scale).sort().values
    return torch.cat([steps.cumsum(0).flip(0), torch.zeros(1).double()])


def total(groups: Sequence[Group], curves: Mapping[str, Tensor], counts: Mapping[Axis, int]) -> float:
    return sum(float(curves[g.name][counts[g.axis]]) for g in groups)


def best(groups: Sequence[Group], curves: Mapping[str, Tensor], costs: CostModel, budget: float) -> float:
    """The least loss of all combinations within the budget."""
    found = float("inf")
    for sizes in itertools.product(*(range(1, g.size + 1) for g in groups)):
        counts = {g.axis: n for g, n in zip(groups, sizes, strict=True)}
        if costs.params(counts) <= budget:
            found = min(found, total(groups, curves, counts))
    return found


@pytest.mark.parametrize("keep", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_independent_groups_are_optimal_up_to_one_step(branches: Analysis, keep: float, seed: int) -> None:
    torch.manual_seed(seed)
    groups, costs = cuttable(branches), CostModel(branches.axes)
    curves = {g.name: convex(g.size, 1.0 + i) for i, g in enumerate(groups)}
    counts = allocate(groups, curves, keep, "params", costs).counts
    whole = costs.params()
    assert costs.params(counts) <= keep * whole
    step = max(whole - costs.params({g.axis: g.size - 1}) for g in groups)
    got = total(groups, curves, counts)
    assert best(groups, curves, costs, keep * whole) <= got + 1e-12
    assert got <= best(groups, curves, costs, keep * whole - step) + 1e-12


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_coupled_groups_come_close(chain: Analysis, keep: float, seed: int) -> None:
    torch.manual_seed(seed)
    groups, costs = cuttable(chain), CostModel(chain.axes)
    curves = {g.name: convex(g.size, 1.0 + 2 * i) for i, g in enumerate(groups)}
    counts = allocate(groups, curves, keep, "params", costs).counts
    assert costs.params(counts) <= keep * costs.params()
    got, least = total(groups, curves, counts), best(groups, curves, costs, keep * costs.params())
    assert least <= got <= 1.35 * least


@pytest.mark.parametrize("seed", range(3))
def test_curves_that_are_not_convex_stay_within_the_budget(branches: Analysis, seed: int) -> None:
    torch.manual_seed(seed)
    groups, costs = cuttable(branches), CostModel(branches.axes)
    curves = {g.name: torch.rand(g.size + 1).double().sort(descending=True).values for g in groups}
    for curve in curves.values():
        curve[-1] = 0
    counts = allocate(groups, curves, 0.5, "params", costs).counts
    assert 0.4 * costs.params() < costs.params(counts) <= 0.5 * costs.params()


@pytest.mark.parametrize("of", ["params", "macs"])
def test_keeping_everything_keeps_everything(branches: Analysis, of: Target) -> None:
    groups = cuttable(branches)
    curves = {g.name: torch.zeros(g.size + 1) for g in groups}
    counts = allocate(groups, curves, 1.0, of, CostModel(branches.axes)).counts
    assert counts == {g.axis: g.size for g in groups}


def test_a_budget_of_macs_counts_macs(branches: Analysis) -> None:
    groups, costs = cuttable(branches), CostModel(branches.axes)
    counts = allocate(groups, {g.name: convex(g.size) for g in groups}, 0.6, "macs", costs).counts
    assert 0.5 * costs.macs() < costs.macs(counts) <= 0.6 * costs.macs()


def test_a_group_that_costs_nothing_goes_first(branches: Analysis) -> None:
    groups, costs = cuttable(branches), CostModel(branches.axes)
    curves = {g.name: convex(g.size) + 1e-9 for g in groups}
    curves[groups[1].name] = torch.zeros(groups[1].size + 1)
    counts = allocate(groups, curves, 0.8, "params", costs).counts
    assert counts[groups[0].axis] == groups[0].size and counts[groups[2].axis] == groups[2].size
    assert counts[groups[1].axis] < groups[1].size


def test_a_costly_group_stays_whole(branches: Analysis) -> None:
    groups, costs = cuttable(branches), CostModel(branches.axes)
    curves = {g.name: convex(g.size) for g in groups}
    curves[groups[0].name] *= 1e6
    counts = allocate(groups, curves, 0.6, "params", costs).counts
    assert counts[groups[0].axis] == groups[0].size


def test_sizes_without_a_known_loss_are_not_offered(branches: Analysis) -> None:
    groups, costs = cuttable(branches), CostModel(branches.axes)
    curves = {g.name: convex(g.size) for g in groups}
    curves[groups[1].name][:4] = float("inf")
    counts = allocate(groups, curves, 0.4, "params", costs).counts
    assert counts[groups[1].axis] >= 4


@pytest.mark.parametrize("round_to", [2, 3, 4])
def test_counts_are_rounded_and_narrow_groups_stay_whole(branches: Analysis, round_to: int) -> None:
    groups, costs = cuttable(branches), CostModel(branches.axes)
    curves = {g.name: convex(g.size) for g in groups}
    counts = allocate(groups, curves, 0.75, "params", costs, round_to).counts
    assert costs.params(counts) <= 0.75 * costs.params()
    for group in groups:
        count = counts[group.axis]
        assert count == group.size or count % round_to == 0
    wide = allocate(groups, curves, 0.9, "params", costs, 6).counts
    assert wide[groups[2].axis] == 5  # narrower than 6


def test_the_last_step_gives_back_what_the_budget_holds() -> None:
    """A group of 2000 offers every 31st size; the count is exact all the same."""
    analysis = analyze(capture(Branches((2000,)), (torch.randn(2, 4),)))
    (group,), costs = cuttable(analysis), CostModel(analysis.axes)
    counts = allocate([group], {group.name: convex(2000)}, 0.6, "params", costs).counts
    assert costs.params(counts) <= 0.6 * costs.params() < costs.params({group.axis: counts[group.axis] + 1})


@pytest.mark.parametrize("keep", [0.85, 0.6, 0.4])
@pytest.mark.parametrize(("which", "unit"), [("branches", 1), ("chain", 1), ("branches", 2), ("chain", 3)])
def test_nothing_more_fits_into_the_budget(which: str, unit: int, keep: float, request: pytest.FixtureRequest) -> None:
    """The last step of a costly group leaves something over: no other group may lack what it would pay for."""
    analysis: Analysis = request.getfixturevalue(which)
    groups, costs = cuttable(analysis), CostModel(analysis.axes)
    counts = allocate(groups, {g.name: convex(g.size) for g in groups}, keep, "params", costs, unit).counts
    assert costs.params(counts) <= keep * costs.params()
    for group in groups:
        count = counts[group.axis]
        more = {**counts, group.axis: min(group.size, count + unit)}
        assert count == group.size or (count % unit == 0 and costs.params(more) > keep * costs.params())


def test_a_target_that_cannot_be_met_names_the_smallest_share(branches: Analysis) -> None:
    groups, costs = cuttable(branches), CostModel(branches.axes)
    smallest = costs.params({g.axis: 1 for g in groups}) / costs.params()
    curves = {g.name: convex(g.size) for g in groups}
    with pytest.raises(PlanError, match=f"{smallest:.4f} remains"):
        allocate(groups, curves, 0.05, "params", costs)
    counts = allocate(groups, curves, smallest + 1e-9, "params", costs).counts
    assert set(counts.values()) == {1}
    with pytest.raises(PlanError, match=r"1\.0000 remains"):
        allocate([], {}, 0.5, "params", costs)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_shares_out_of_range_are_refused(branches: Analysis, keep: float) -> None:
    with pytest.raises(InputError, match="keep must lie above 0"):
        allocate([], {}, keep, "params", CostModel(branches.axes))


def test_a_share_that_is_just_missed_is_said(pair: Analysis) -> None:
    """One of ten positions is the least: 11 of 83 parameters."""
    batches = [[torch.randn(30, 4)] for _ in range(4)]
    options = {"importance": "obs", "budget": "global", "calibration": batches}
    assert not any("more than was asked" in note for note in make_plan(pair, 11 / 83, **options).notes)
    assert any("more than was asked" in note for note in make_plan(pair, 11 / 83 - 0.005, **options).notes)
    with pytest.raises(PlanError, match="cannot be met"):
        make_plan(pair, 11 / 83 - 0.05, **options)
