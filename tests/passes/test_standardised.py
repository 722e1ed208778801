"""The standardised budget: levels by hand, one order over all groups, and what a plan makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import make_plan
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.costs import CostModel
from fxslim.graph.errors import InputError, PlanError
from fxslim.passes.importance import scores_on_original, top
from fxslim.passes.standardised import standardised_counts, standardised_levels
from tests.passes.blocks import opened
from tests.passes.conftest import Analyse


class Layers(nn.Module):
    """Two hidden layers, of six and of twelve neurons, a thousandfold apart in scale."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 12), nn.Linear(12, 3)
        with torch.no_grad():
            self.c.weight.mul_(1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.fixture
def layers(analyse: Analyse) -> Analysis:
    return analyse(Layers(), torch.randn(6, 4), dynamic=({0: "rows"},))


def test_levels_by_hand() -> None:
    scores = torch.tensor([5.0, 1.0, 3.0])
    deviation = (8 / 3) ** 0.5
    torch.testing.assert_close(standardised_levels(scores), torch.tensor([-2.0, 0.0, 2.0]).double() / deviation)
    rows = torch.tensor([[5.0, 1.0, 3.0], [9.0, 13.0, 5.0]])  # mean 6, variance 94 / 6
    torch.testing.assert_close(standardised_levels(rows), torch.tensor([-3.0, 0.0, 3.0]).double() / (94 / 6) ** 0.5)
    assert torch.equal(standardised_levels(torch.full((2, 4), 3.0)), torch.zeros(4).double())


def test_scale_and_summand_of_a_group_do_not_matter() -> None:
    scores = torch.rand(3, 5)
    torch.testing.assert_close(standardised_levels(7 * scores + 2), standardised_levels(scores), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("round_to", [1, 2, 3])
def test_the_lowest_of_all_groups_go_first(layers: Analysis, round_to: int) -> None:
    """Against one sorted list of all portions."""
    groups, costs = layers.prunable, CostModel(layers.axes)
    scores = {g.name: torch.rand(g.size).double() * 10**i for i, g in enumerate(groups)}
    counts = standardised_counts(groups, scores, 0.6, "params", costs, round_to)
    assert costs.of("params", counts) <= 0.6 * costs.params() and all(c % round_to == 0 for c in counts.values())
    portions = {g.name: standardised_levels(scores[g.name]).reshape(-1, round_to).mean(1) for g in groups}
    gone = [portions[g.name][: (g.size - counts[g.axis]) // round_to] for g in groups]
    stay = [portions[g.name][(g.size - counts[g.axis]) // round_to : -1] for g in groups]
    assert max(float(p.max()) for p in gone if len(p)) < min(float(p.min()) for p in stay if len(p))
    last = max((g for g in groups if counts[g.axis] < g.size), key=lambda g: float(
        portions[g.name][(g.size - counts[g.axis]) // round_to - 1]))  # fmt: skip
    more = {**counts, last.axis: counts[last.axis] + round_to}
    assert costs.of("params", more) > 0.6 * costs.params(), "no portion more than it takes"


def test_what_cannot_be_met_names_what_can(layers: Analysis) -> None:
    scores = {g.name: torch.rand(g.size) for g in layers.prunable}
    with pytest.raises(PlanError, match=r"keep=0\.01 of the params cannot be met.* 0\.\d{4} remains"):
        standardised_counts(layers.prunable, scores, 0.01, "params", CostModel(layers.axes))
    with pytest.raises(InputError, match="keep must lie above 0"):
        standardised_counts(layers.prunable, scores, 0.0, "params", CostModel(layers.axes))


def test_a_plan_keeps_what_ranks_highest_on_the_original(layers: Analysis) -> None:
    data = [[torch.randn(30, 4)] for _ in range(3)]
    plan = make_plan(layers, 0.6, importance="flap", budget="standardised", calibration=data)
    scores = scores_on_original("flap", layers, layers.prunable, data)
    counts = standardised_counts(layers.prunable, scores, 0.6, "params", CostModel(layers.axes))
    assert {c.group: c.count for c in plan.cuts} == {
        g.name: counts[g.axis] for g in layers.prunable if counts[g.axis] < g.size
    }
    assert plan.cuts and all(torch.equal(c.mask(), top(scores[c.group], c.count)) for c in plan.cuts)
    by_size = make_plan(layers, 0.6, importance="magnitude", budget="standardised")
    assert by_size.cuts and by_size.predicted["params"][1] <= 0.6 * by_size.predicted["params"][0]


def test_value_dims_of_every_head_go_together() -> None:
    analysis, data = opened("heads")
    plan = make_plan(analysis, 0.7, importance="flap", budget="standardised", calibration=data)
    (cut,) = [c for c in plan.cuts if c.kind == "value dims"]
    assert cut.batch == (3,) and len({tuple(row) for row in cut.kept}) > 1


def test_subspaces_and_widths_have_no_ranking() -> None:
    analysis, data = opened("heads")
    with pytest.raises(InputError, match="ranks positions, and subspaces have none"):
        make_plan(analysis, 0.7, subspace=True, budget="standardised", calibration=data)
    with pytest.raises(InputError, match="divides a share"):
        make_plan(analysis, width=0.7, budget="standardised")
