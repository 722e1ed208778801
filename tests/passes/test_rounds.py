"""Rounds: their counts, positions of later rounds in terms of the original, and fresh statistics in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import apply_plan, compress, make_plan, prove
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError, VerifyError
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prune import Prune
from fxslim.passes.rounds import composed, counts_by_round, cuts_in_rounds
from tests.models.nets import captured
from tests.plans import plan_of, random_cut

EXACT = 1e-9
CLOSE = 1e-4  # activations are summed in float32

Batches = list[list[Tensor]]


def batches() -> Batches:
    return [[torch.randn(30, 4)] for _ in range(3)]


@pytest.mark.parametrize(
    ("schedule", "rounds", "counts"),
    [
        ("geometric", 1, [4]), ("linear", 1, [4]), ("geometric", 2, [8, 4]), ("linear", 2, [10, 4]),
        ("geometric", 4, [11, 8, 6, 4]), ("linear", 4, [13, 10, 7, 4]),
    ],
)  # fmt: skip
def test_counts_fall_from_the_size_to_the_target(schedule: Any, rounds: int, counts: list[int]) -> None:
    assert counts_by_round(16, 4, rounds, schedule) == counts
    assert counts_by_round(2, 1, rounds, schedule) == [2] * (rounds - 1) + [1], "an axis of one position is none"


@pytest.mark.parametrize("importance", ["fasp", "obs", "magnitude"])
def test_one_round_is_no_rounds(pair: Analysis, importance: Any) -> None:
    data = batches()
    plan, made = compress(pair, width=0.6, importance=importance, calibration=data)
    again, same = compress(pair, width=0.6, importance=importance, calibration=data, rounds=1)
    assert again == plan
    assert all(torch.equal(tensor, same.program.weights[name]) for name, tensor in made.program.weights.items())

    def choose(analysis: Analysis, left: Mapping[str, int]) -> tuple[Cut, ...]:
        assert dict(left) == {c.group: c.count for c in plan.cuts}
        return make_plan(analysis, width=0.6, importance=importance, calibration=data).cuts

    counts = {c.group: c.count for c in plan.cuts}
    assert cuts_in_rounds(pair, counts, 1, "geometric", choose, data) == plan.cuts


def test_later_positions_are_those_of_the_original(pair: Analysis) -> None:
    given = iter([(1, 3, 4, 6, 7, 9), (0, 2, 5), (1, 2)])
    seen = []

    def choose(analysis: Analysis, left: Mapping[str, int]) -> tuple[Cut, ...]:
        (group,), kept = analysis.prunable, next(given)
        seen.append((group.size, left[group.name]))
        return (Cut(group.name, group.kind, group.size, len(kept), (), kept),)

    (cut,) = cuts_in_rounds(pair, {"up.weight[0]": 2}, 3, "geometric", choose, None)
    assert cut.kept == (4, 9), "of 1 3 4 6 7 9 stay 1 4 9, and of these the last two"
    assert seen == [(10, 6), (6, 3), (3, 2)]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("net", ["attention", "decoder", "cached", "grouped", "shuffle", "resnet", "lora"])
def test_the_composed_plan_is_one_cut_after_the_other(net: str, seed: int) -> None:
    """Whole heads and what is inside them, in either order, other positions in each head."""
    analysis = captured(net).analysis
    generator = torch.Generator().manual_seed(seed)

    def cut(of: Analysis) -> tuple[Cut, ...]:
        own = [g for g in of.prunable if g.size > 2 and float(torch.rand((), generator=generator)) < 0.7]
        return tuple(random_cut(g, max(2, g.size * 2 // 3), generator) for g in own)

    first = plan_of(analysis, cut(analysis))
    between = analyze(Prune(first)(analysis).program)
    second = plan_of(between, cut(between))
    apart = Prune(second)(between).program
    plan = plan_of(analysis, composed(analysis, first, second.cuts))
    at_once = Prune(plan)(analysis).program
    assert {n: w.shape for n, w in at_once.info.items()} == {n: w.shape for n, w in apart.info.items()}
    assert all(torch.equal(tensor, apart.weights[name]) for name, tensor in at_once.weights.items())


def test_a_step_that_does_not_fit_is_noticed(pair: Analysis) -> None:
    (group,) = pair.prunable
    first = plan_of(pair, [Cut(group.name, group.kind, 10, 2, (), (1, 3))])
    with pytest.raises(VerifyError, match=r"a round saw the sizes \(10,\) where \(2,\) were left"):
        composed(pair, first, [Cut(group.name, group.kind, 10, 1, (), (0,))])
    with pytest.raises(VerifyError, match="the rounds did not leave 2 positions"):
        cuts_in_rounds(pair, {group.name: 2}, 2, "linear", lambda *_: (), None)


class Echo(nn.Module):
    """Four units, of which the last says what the third does."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.eye(4))
            self.up.weight[3] = self.up.weight[2]
            self.down.weight.copy_(torch.tensor([[1.0, 0.6, 0.5, 0.4]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def echo() -> tuple[Analysis, Batches]:
    torch.manual_seed(0)
    data = [[torch.rand(200, 4)] for _ in range(3)]
    return analyze(capture(Echo().double().eval(), (data[0][0].double(),))), [[x.double() for x in b] for b in data]


@pytest.mark.parametrize("schedule", ["geometric", "linear"])
def test_a_later_round_sees_what_the_refit_made_of_the_rest(schedule: Any) -> None:
    """The column scores are 1, 0.6, 0.5, 0.4 times alike norms. At once the first two stay. In rounds the last goes
    first, the third takes over what it gave, 0.9, and it is the second that goes."""
    analysis, data = echo()
    options: dict[str, Any] = {"width": 0.5, "importance": "fasp", "calibration": data}
    assert make_plan(analysis, **options).cuts[0].kept == (0, 1)
    plan = make_plan(analysis, rounds=2, schedule=schedule, **options)
    assert plan.cuts[0].kept == (0, 2)
    assert (plan.options["rounds"], plan.options["schedule"]) == (2, schedule)
    assert prove(analysis, plan).ok


@pytest.mark.parametrize(
    ("net", "importance"),
    [("grouped", i) for i in ("fasp", "obs", "flap", "activation", "taylor", "magnitude")]
    + [("attention", "fasp"), ("decoder", "magnitude")],
)
def test_a_plan_in_rounds_is_like_any_other(net: str, importance: Any) -> None:
    """It keeps as many positions as at once, is proven, and makes the same model from its text."""
    found = captured(net)
    data = [found.analysis.program.flatten(*found.net.call(4, 6)) for _ in range(2)]
    options: dict[str, Any] = {"width": 0.4, "importance": importance, "calibration": data}
    plan, made = compress(found.analysis, rounds=3, **options)
    once = make_plan(found.analysis, **options)
    assert [(c.group, c.count) for c in plan.cuts] == [(c.group, c.count) for c in once.cuts]
    assert plan.predicted == once.predicted and plan.predicted["params"][1] == made.program.parameters()
    proof = prove(found.analysis, plan, [found.analysis.program.flatten(*found.net.call(3, 7))])
    assert proof.ok and proof.max_error <= EXACT
    again = apply_plan(found.analysis, Plan.from_json(plan.to_json()), None, data)
    assert all(torch.equal(w, again.program.weights[name]) for name, w in made.program.weights.items())


@pytest.mark.parametrize("budget", ["global", "outliers"])
def test_rounds_divide_no_budget_anew(pair: Analysis, budget: Any) -> None:
    data = batches()
    options: dict[str, Any] = {"importance": "fasp", "budget": budget, "calibration": data}
    once, plan = make_plan(pair, 0.614, **options), make_plan(pair, 0.614, rounds=2, **options)
    assert [c.count for c in plan.cuts] == [c.count for c in once.cuts]


def test_rounds_need_no_data(pair: Analysis) -> None:
    plan = make_plan(pair, width=0.3, rounds=2)
    assert plan.cuts[0].count == 3 and prove(pair, plan).ok
    assert make_plan(pair, width=1.0, rounds=2).cuts == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be a whole number"), ({"rounds": 1.5}, "rounds must be a whole number"),
        ({"rounds": True}, "rounds must be a whole number"), ({"rounds": 2, "schedule": "cubic"}, "unknown schedule"),
        ({"schedule": "linear"}, "schedule: no effect with one round"),
        ({"rounds": 2, "subspace": True}, "asks for more: subspace"),
        ({"rounds": 2, "streams": True}, "asks for more: streams"),
        ({"rounds": 2, "metric": "plain"}, "asks for more: metric"),
        ({"rounds": 2, "depth": True}, "asks for more: depth"),
    ],
)  # fmt: skip
def test_what_has_no_sense_is_refused(pair: Analysis, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(pair, 0.6, calibration=batches(), **options)
