"""Outlier-weighted widths: the shares by hand, the offsets, and a plan that follows them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import make_plan
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.passes.outliers import outlier_shares, width_offsets


class Chain(nn.Module):
    """Three hidden layers; the middle consumer holds a tenth of outliers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(20, 20) for _ in range(4)])
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(torch.rand(20, 20) + 0.5)
            self.layers[2].weight[:, :2] *= 100

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x) / 30)
        return self.layers[-1](x)


def chain() -> tuple[Analysis, list[tuple[Tensor]]]:
    torch.manual_seed(0)
    batches = [(torch.rand(50, 20),) for _ in range(2)]
    return analyze(capture(Chain().eval(), batches[0])), batches


def test_shares_are_what_exceeds_five_times_the_mean() -> None:
    analysis, batches = chain()
    x = torch.cat([b[0] for b in batches])
    weights, expected = analysis.program.weights, []
    for i in range(3):
        x = torch.tanh((x @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]) / 30)
        entries = weights[f"layers.{i + 1}.weight"] * x.norm(dim=0)
        expected.append(float((entries > 5 * entries.mean()).double().mean()))
    shares = outlier_shares(analysis, analysis.prunable, batches)
    assert list(shares.values()) == pytest.approx(expected) and expected[0] == expected[2] == 0 < expected[1]


def test_offsets_are_zero_on_average_and_at_most_two_lambdas_apart() -> None:
    analysis, batches = chain()
    groups = analysis.prunable
    offsets = width_offsets(groups, outlier_shares(analysis, groups, batches))
    assert sum(offsets.values()) == pytest.approx(0)
    assert max(offsets.values()) - min(offsets.values()) == pytest.approx(0.16)
    assert width_offsets(groups, {g.name: 0.3 for g in groups}) == {}


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
def test_a_plan_keeps_more_where_outliers_are(keep: float) -> None:
    analysis, batches = chain()
    plan = make_plan(analysis, keep, importance="fasp", budget="outliers", calibration=batches)
    counts = {c.group: c.count for c in plan.cuts}
    first, middle, last = (counts.get(f"layers.{i}.weight[0]", 20) for i in range(3))
    assert middle > first and middle > last and abs(first - last) <= 1, "a single step may use up the budget"
    before, after = plan.predicted["params"]
    assert abs(after / before - keep) <= 0.03


def test_outliers_need_data_and_a_share() -> None:
    analysis, batches = chain()
    with pytest.raises(InputError, match="'outliers' needs calibration data"):
        make_plan(analysis, 0.6, budget="outliers")
    with pytest.raises(InputError, match="divides a share"):
        make_plan(analysis, width=0.6, budget="outliers", calibration=batches)
