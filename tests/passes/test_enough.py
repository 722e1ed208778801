"""How many batches a survey looks at."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis
from fxslim.passes.bases import change_bases, in_bases
from fxslim.passes.enough import ENOUGH, FEWEST, LEAST, drawn, enough
from fxslim.passes.planner import make_plan
from fxslim.passes.survey import survey
from fxslim.passes.team import Team
from tests.passes.blocks import subspaces_of
from tests.passes.conftest import Analyse

CLOSE = 0.15  # of the losses at a size, by which those of a part of the data may differ


def data(count: int, rows: int) -> list[list[Tensor]]:
    return [[torch.randn(rows, 4)] for _ in range(count)]


@pytest.fixture
def by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxslim.passes.enough.LEAST", 0)


def test_few_data_are_taken_whole(pair: Analysis) -> None:
    for batches in (data(FEWEST, LEAST // FEWEST - 1), data(FEWEST - 1, LEAST), data(1, 3), []):
        assert enough(pair, batches) == len(batches)
        assert list(drawn(batches, len(batches))) == batches


def test_of_much_data_as_much_as_is_needed(pair: Analysis) -> None:
    assert enough(pair, data(40, LEAST // 16)) == 16
    assert enough(pair, data(40, LEAST // 16 - 1)) == 17  # a row less: a batch more
    assert enough(pair, data(40, LEAST)) == FEWEST


def test_rows_are_counted_not_batches(pair: Analysis) -> None:
    """Batches of one row between large ones."""
    batches = [[torch.randn(rows, 4)] for rows in (1, 1023) * 32]
    taken = drawn(batches, enough(pair, batches))
    assert LEAST <= sum(len(b[0]) for b in taken) < LEAST + 1023


def test_what_is_drawn_has_no_rhythm_and_is_the_same_every_time() -> None:
    batches = data(32, 1)
    taken = [next(i for i, b in enumerate(batches) if b is one) for one in drawn(batches, 16)]
    assert taken == sorted(set(taken)) and len(taken) == 16
    assert 4 <= sum(i % 2 for i in taken) <= 12 and 4 <= sum(i < 16 for i in taken) <= 12
    assert all(a is b for a, b in zip(drawn(batches, 16), drawn(batches, 16), strict=True))
    more = drawn(batches, 20)
    assert all(any(one is other for other in more) for one in drawn(batches, 16))


@pytest.mark.usefixtures("by_columns")
def test_the_widest_weight_says_how_many(pair: Analysis) -> None:
    assert enough(pair, data(40, 4)) == math.ceil(ENOUGH * 10 / 4)  # ten columns, not four


@pytest.mark.usefixtures("by_columns")
def test_every_window_of_a_map_is_a_row(analyse: Analyse) -> None:
    conv = analyse(nn.Sequential(nn.Conv2d(2, 9, 1), nn.ReLU(), nn.Conv2d(9, 3, 2)), torch.randn(1, 2, 5, 5))
    batches = [[torch.randn(1, 2, 5, 5)] for _ in range(40)]
    assert enough(conv, batches) == math.ceil(ENOUGH * (9 * 2 * 2) / (4 * 4))


class Experts(nn.Module):
    """Every expert sees all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 20)), nn.Parameter(torch.randn(3, 20, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x.expand(3, -1, -1) @ self.up @ self.down).sum(0)


class Tied(nn.Module):
    """A weight in two places, which no refit can own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight.T) @ self.weight


@pytest.mark.usefixtures("by_columns")
@pytest.mark.parametrize("kind", [Experts, Tied])
def test_weights_that_are_no_consumers_count(analyse: Analyse, kind: type[nn.Module]) -> None:
    found = analyse(kind(), torch.randn(6, 4), dynamic=({0: "rows"},))
    assert enough(found, data(64, 4)) == math.ceil(ENOUGH * 20 / 4)


def test_a_program_without_weights_takes_all(analyse: Analyse) -> None:
    assert enough(analyse(nn.ReLU(), torch.randn(3, 4)), data(50, LEAST)) == 50


def test_processes_make_no_difference(pair: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan is the same in any number of them."""
    monkeypatch.setattr("fxslim.passes.team.current_team", lambda: Team(1, 12))
    assert enough(pair, data(40, LEAST)) == FEWEST


@pytest.mark.parametrize("seed", range(3))
def test_the_curves_of_a_part_are_those_of_the_whole(pair: Analysis, seed: int) -> None:
    torch.manual_seed(seed)
    batches = data(128, 600)
    count = enough(pair, batches)
    assert count < len(batches) / 8
    part = survey(pair, pair.prunable, [], drawn(batches, count))
    whole = survey(pair, pair.prunable, [], [[torch.cat([b[0] for b in batches])]])
    (name,) = (g.name for g in pair.prunable)
    found, wanted = (s.curves[name].losses for s in (part, whole))
    known = wanted.isfinite() & (wanted > 0)
    assert bool(((found[known] * len(batches) / count / wanted[known] - 1).abs() < CLOSE).all())


def test_a_plan_says_how_many_and_is_applied_with_as_many(analyse: Analyse, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a plan that does not say was made with all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    analysis, batches = analyse(model, torch.randn(6, 4), dynamic=({0: "rows"},)), data(40, LEAST // 16)
    plan = make_plan(analysis, width=0.5, subspace=True, importance="obs", calibration=batches)
    assert plan.options["surveyed"] == 16
    monkeypatch.setattr("fxslim.passes.enough.LEAST", 10 * LEAST)  # as another version may have it
    first, whole = (survey(analysis, [], subspaces_of(analysis), b) for b in (drawn(batches[:-1], 16), batches[:-1]))
    older = replace(plan, options={k: v for k, v in plan.options.items() if k != "surveyed"})
    made = [in_bases(analysis, p, batches).program.weights["0.weight"] for p in (plan, older)]
    wanted = [change_bases(analysis, s, plan.subspaces).program.weights["0.weight"] for s in (first, whole)]
    assert torch.equal(made[0], wanted[0]) and torch.equal(made[1], wanted[1]) and not torch.equal(*made)
