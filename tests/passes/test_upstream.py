"""Whose activations a refit learns from: every batch through both upstreams, or in turn where data is plenty."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.evaluate import Evaluator, MaskedEvaluator
from fxslim.passes.consumers import find_consumers
from fxslim.passes.methods import settings
from fxslim.passes.planner import make_plan
from fxslim.passes.restore import restore_weights
from fxslim.passes.statistics import CalibrationWalk
from fxslim.passes.upstream import PLENTY, choose_upstream, turns_of
from fxslim.passes.work import count_work
from tests.passes.conftest import Analyse
from tests.passes.residual import layered

WIDTH = 10  # of the hidden layer of `pair`
COUNT, ROWS = 16, 10  # the fewest batches, and rows, that are plenty for it
CLOSE = 1.2  # by which an error on other data may exceed that of the dearer way


def data(count: int = COUNT, rows: int = ROWS) -> list[list[Tensor]]:
    return [[torch.randn(rows, 4)] for _ in range(count)]


def chosen(analysis: Analysis, batches: list[list[Tensor]]) -> str:
    return choose_upstream(analysis, find_consumers(analysis.axes)[0][1:], batches)


def test_plenty_of_data_is_run_in_turn(pair: Analysis) -> None:
    assert COUNT * ROWS == PLENTY * WIDTH
    assert chosen(pair, data()) == "in turn"
    assert chosen(pair, data(rows=ROWS - 1)) == "both"
    assert chosen(pair, [*data(COUNT - 1), *data(1, ROWS - 1)]) == "both"  # rows of every kind of batch count
    assert chosen(pair, data(COUNT // 2, 4 * ROWS)) == "both"  # too few batches to hold out some of either
    assert choose_upstream(pair, [], data()) == "both"


def test_turns_are_as_much_for_both_and_have_no_rhythm() -> None:
    batches = [[torch.randn(rows, 4)] for rows in (2, 126) * 20]
    turns = turns_of(batches)
    assert turns == turns_of(batches)
    for part in (slice(0, 35), slice(35, 40)):  # what is learned from, and what is held out
        words = [sum(len(b[0]) for b, t in zip(batches[part], turns[part], strict=True) if t == own) for own in (0, 1)]
        assert abs(words[0] - words[1]) <= 126 and min(words) > 0
    assert set(turns[::2]) == set(turns[1::2]) == {0, 1}


def test_norms_are_compared_batch_by_batch(analyse: Analyse) -> None:
    module = nn.Sequential(nn.Linear(4, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3))
    assert chosen(analyse(module, torch.randn(6, 4), dynamic=({0: "rows"},)), data(rows=10 * ROWS)) == "both"


def test_batches_run_through_one_of_two_in_turn(pair: Analysis) -> None:
    first, second, batches = Evaluator(pair.program), Evaluator(pair.program), data(5)
    second.set_weight("up.weight", torch.zeros(WIDTH, 4))
    second.set_weight("up.bias", torch.zeros(WIDTH))
    consumer = next(c for c in find_consumers(pair.axes)[0] if c.weight == "down.weight")
    walk = CalibrationWalk(first, batches, second, turns=[0, 1, 1, 0, 1])
    walk.advance_to(consumer.node)
    assert walk.passes == 1
    assert [bool(value.any()) for value in walk.values(consumer.source)] == [True, False, False, True, False]
    learned, held_out = walk.split(
        walk.columns(consumer), lambda parts: torch.tensor([p.shape[1] for p in parts]).sum()
    )
    assert (int(learned), int(held_out)) == (4 * ROWS, ROWS)


def test_half_of_the_passes_restores_as_well_where_data_is_plenty() -> None:
    analysis = layered()
    plan = make_plan(analysis, width=0.5)
    batches, other = ([[torch.randn(40, 5, dtype=torch.float64)] for _ in range(n)] for n in (32, 8))

    def error(upstream: str | None) -> float:
        restored = restore_weights(analysis, plan.selection(analysis), batches, upstream=upstream)  # type: ignore[arg-type]
        assert all(row.tokens == 32 * 40 for row in restored.rows)
        slim = MaskedEvaluator(analysis.axes, restored.selection)
        for name, weight in restored.weights.items():
            slim.set_weight(name, weight)
        whole = Evaluator(analysis.program)
        return sum(float((whole.run(b)[0] - slim.run(b)[0]).square().sum()) for b in other)

    assert error(None) == error("in turn") != error("both")
    assert error("in turn") < CLOSE * error("both")


def test_the_work_that_is_foretold_is_half(pair: Analysis) -> None:
    turns, both = (count_work(pair, data(rows=rows), settings("fasp", data=True)) for rows in (ROWS, ROWS - 1))
    assert turns["forward"].single / ROWS == pytest.approx(both["forward"].single / (ROWS - 1) / 2)
    assert turns["moments"].single / ROWS == pytest.approx(both["moments"].single / (ROWS - 1) / 2)
