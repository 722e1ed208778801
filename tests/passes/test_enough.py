"""How many batches a survey looks at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis
from fxslim.passes.enough import ENOUGH, LEAST, enough
from fxslim.passes.survey import survey
from tests.passes.conftest import Analyse

CLOSE = 0.15  # of the losses at a size, by which those of a part of the data may differ


def data(count: int, rows: int) -> list[list[Tensor]]:
    return [[torch.randn(rows, 4)] for _ in range(count)]


@pytest.fixture
def by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxslim.passes.enough.LEAST", 0)


def test_few_data_are_taken_whole(pair: Analysis) -> None:
    batches = data(4, LEAST // 4)
    assert list(enough(pair, batches)) == batches
    assert list(enough(pair, batches[:1])) == batches[:1]
    assert list(enough(pair, [])) == []


def test_of_much_data_as_many_batches_as_are_needed_come_from_everywhere(pair: Analysis) -> None:
    batches = data(16, LEAST // 4)
    assert [next(i for i, b in enumerate(batches) if b is taken) for taken in enough(pair, batches)] == [0, 4, 8, 12]
    assert len(enough(pair, data(16, LEAST // 4 - 1))) == 5  # a row less: a batch more


@pytest.mark.usefixtures("by_columns")
def test_the_widest_weight_says_how_many(pair: Analysis) -> None:
    assert (
        len(enough(pair, data(16, round(ENOUGH * 10 / 4)))) == 4
    )  # of the hidden layer of ten, not of the four inputs


@pytest.mark.usefixtures("by_columns")
def test_every_window_of_a_map_is_a_row(analyse: Analyse) -> None:
    conv = analyse(nn.Sequential(nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 2)), torch.randn(1, 2, 5, 5))
    batches = [[torch.randn(1, 2, 5, 5)] for _ in range(40)]
    assert len(enough(conv, batches)) == math.ceil(ENOUGH * (5 * 2 * 2) / (4 * 4))


def test_a_program_without_weights_takes_all(analyse: Analyse) -> None:
    batches = data(5, 3)
    assert list(enough(analyse(nn.ReLU(), torch.randn(3, 4)), batches)) == batches


@pytest.mark.parametrize("seed", range(3))
def test_the_curves_of_a_part_are_those_of_the_whole(pair: Analysis, seed: int) -> None:
    torch.manual_seed(seed)
    batches = data(64, 600)
    part, count = survey(pair, pair.prunable, [], batches), len(enough(pair, batches))
    assert count < len(batches) / 8
    whole = survey(pair, pair.prunable, [], [[torch.cat([b[0] for b in batches])]])
    (name,) = (g.name for g in pair.prunable)
    found, wanted = (s.curves[name].losses for s in (part, whole))
    known = wanted.isfinite() & (wanted > 0)
    assert bool(((found[known] * len(batches) / count / wanted[known] - 1).abs() < CLOSE).all())
