"""Ranks by depth: how deep weights lie, the line that shares follow, and budgets that are met."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.api import apply, make_plan, prove
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.passes.methods import settings
from fxslim.passes.rank_schedule import SLOPE, by_depth, depths

SIDE, LAYERS = 48, 5
EXACT = 1e-9


class Stack(nn.Module):
    """Layers that are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def stack() -> Analysis:
    torch.manual_seed(0)
    return analyze(capture(Stack().double(), (torch.randn(3, SIDE, dtype=torch.float64),)))


@dataclass(frozen=True)
class Weight:
    name: str
    limit: float


def test_depth_counts_the_weights_on_the_longest_way() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o, self.up, self.down, self.skip = (nn.Linear(8, 8) for _ in range(7))

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
            return self.down(torch.relu(self.up(y))) + self.skip(x)

    program = capture(Block(), (torch.randn(2, 5, 8),))
    names = [f"{n}.weight" for n in ("q", "k", "v", "o", "up", "down", "skip")]
    found = depths(program, names)
    assert [found[n] * 3 for n in names] == pytest.approx([0, 0, 0, 1, 2, 3, 0])
    assert depths(program, names[:3]) == dict.fromkeys(names[:3], 0.5), "side by side: none is deeper"
    assert depths(program, ["o.weight", "down.weight"]) == {"o.weight": 0, "down.weight": 1}, "only these count"


@pytest.mark.parametrize("slope", [0.5, -0.5, 0.0])
def test_shares_lie_on_a_line(slope: float) -> None:
    weights = [Weight(f"layers.{i}.weight", 1000.0) for i in range(LAYERS)]
    rule = by_depth(stack(), slope)
    level = 0.4 / (1 - abs(slope))
    got = list(rule(weights, 0.6, 1).values())
    assert got == pytest.approx([1000 * level * (1 + slope * (1 - 2 * i / 4)) for i in range(LAYERS)], abs=1)
    assert min(rule(weights, 0.0, 1).values()) >= 1000 - 1, "at the one end all are whole"
    assert set(rule(weights, 1.0, 8).values()) == {8}, "at the other all are at the lowest"
    assert all(rank % 16 == 0 for rank in rule(weights, 0.6, 16).values())


@pytest.mark.parametrize("slope", [0.4, -0.4])
@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("keep", [0.8, 0.5])
def test_ranks_follow_the_line_and_the_budget(keep: float, of: Any, slope: float) -> None:
    analysis = stack()
    plan = make_plan(analysis, keep, metric="plain", budget="linear", slope=slope, of=of)
    before, after = plan.predicted[of]
    assert keep - 0.01 <= after / before <= keep
    assert (plan.options["budget"], plan.options["slope"]) == ("linear", slope)
    ranks = {c.group.split(".")[1]: c.count for c in plan.cuts}
    found = [ranks.get(str(i), SIDE // 2) for i in range(LAYERS)]  # one that stays whole is at its break-even
    assert found == sorted(found, reverse=slope > 0) and found[0] != found[-1]
    steps = [a - b for a, b in itertools.pairwise(found)]
    assert keep > 0.6 or max(steps) - min(steps) <= 2, "a line, but for rounding"
    program = apply(analysis, plan)
    assert program.parameters() == plan.predicted["params"][1]
    proof = prove(analysis, plan)
    assert proof.ok and proof.max_error <= EXACT


def test_no_slope_is_one_share() -> None:
    analysis = stack()
    flat = make_plan(analysis, 0.6, metric="plain", budget="linear", slope=0.0)
    assert [c.count for c in flat.cuts] == [c.count for c in make_plan(analysis, 0.6, metric="plain").cuts]


def test_the_method_by_name() -> None:
    chosen = settings("lr-sms", data=False).options()
    plan = make_plan(stack(), 0.6, **chosen)
    assert plan.options["slope"] == SLOPE and plan.options["metric"] == "plain"
    counts = [c.count for c in plan.cuts]
    assert counts == sorted(counts, reverse=SLOPE > 0) and counts[0] != counts[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "plain", "budget": "linear", "slope": 1.0}, "slope must lie between -1 and 1"),
        ({"metric": "plain", "budget": "linear", "slope": True}, "slope must lie between -1 and 1"),
        ({"metric": "plain", "slope": 0.1}, "slope: no effect"), ({"slope": 0.1}, "slope: no effect"),
        ({"budget": "linear"}, "'linear' divides ranks, and none are chosen"),
    ],
)  # fmt: skip
def test_what_has_no_effect_or_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(stack(), 0.6, **options)
