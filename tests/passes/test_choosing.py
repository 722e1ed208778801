"""Strategies that need data, by hand: what they score, and what a plan makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fxslim.api import apply_plan, compress
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes import restore
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.importance import BY_DATA, Importance, choose, position_scores, problem
from fxslim.passes.planner import PlanOptions, make_plan, plan_and_restore
from fxslim.passes.restore import restore_weights
from fxslim.passes.second_order import RIDGE, eliminate
from fxslim.passes.statistics import CalibrationWalk, SecondMoment
from tests.models.nets import captured
from tests.passes.blocks import opened

CLOSE = 1e-5  # activations are summed in float32

Batches = list[list[Tensor]]


def batches() -> Batches:
    return [[torch.randn(30, 4)] for _ in range(3)]


def seen(analysis: Analysis, weight: str, data: Batches) -> tuple[Consumer, SecondMoment]:
    """The consumer with this weight and the moment of its inputs."""
    (consumer,) = [c for c in find_consumers(analysis.axes)[0] if c.weight == weight]
    walk = CalibrationWalk(Evaluator(analysis.program), data)
    walk.advance_to(consumer.node)
    return consumer, walk.moment(consumer)


def hidden(pair: Analysis, data: Batches) -> Tensor:
    w = pair.program.weights
    return torch.relu(torch.cat([b[0] for b in data]) @ w["up.weight"].T + w["up.bias"]).detach().double()


def test_scores_by_hand(pair: Analysis) -> None:
    data = batches()
    own, group = [seen(pair, "down.weight", data)], pair.group("up.weight[0]")
    x, w = hidden(pair, data), pair.program.weights["down.weight"].detach().double()
    ones = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    h = ones.T @ ones
    h = h + RIDGE * h.diagonal().mean() * torch.eye(11).double()
    wanted: dict[Importance, Tensor] = {
        "fasp": w.abs().sum(0) * x.norm(dim=0),
        "flap": w.square().sum(0) * x.var(0, correction=0) * len(x),
        "activation": x.norm(dim=0),
        "obs": w.square().sum(0) / torch.linalg.inv(h).diagonal()[:10],
    }
    assert set(wanted) == set(BY_DATA)
    for importance, scores in wanted.items():
        got = position_scores(pair, importance, own, group)
        torch.testing.assert_close(got, scores, rtol=1e-3, atol=1e-4, msg=importance)


def test_fluctuation_does_not_see_a_constant(pair: Analysis) -> None:
    """FLAP: what a unit gives always goes into the bias, however large."""
    (consumer,) = [c for c in find_consumers(pair.axes)[0] if c.weight == "down.weight"]
    x = hidden(pair, batches())
    x[:, 3] = 1000.0
    own, group = [(consumer, SecondMoment.of(x.unsqueeze(0)))], pair.group("up.weight[0]")
    assert float(position_scores(pair, "flap", own, group)[3]) < 1e-3
    assert int(position_scores(pair, "activation", own, group).argmax()) == 3


def test_the_second_order_choice_is_the_elimination(pair: Analysis) -> None:
    """Greedy with updates, not the largest scores of going alone."""
    data = batches()
    own, group = seen(pair, "down.weight", data), pair.group("up.weight[0]")
    done = eliminate([problem(pair, *own, group)], (10,), 4)
    assert torch.equal(choose(pair, "obs", [own], group, 4), done.mask)
    plan = make_plan(pair, width=0.4, importance="obs", calibration=data)
    assert plan.cuts[0].kept == tuple(done.mask.nonzero().flatten().tolist())


def test_a_copy_of_a_unit_is_spared_by_second_order_alone(pair: Analysis) -> None:
    """Two units that say the same: one of them goes, as the other can take its part."""
    x = hidden(pair, batches())
    (consumer,) = [c for c in find_consumers(pair.axes)[0] if c.weight == "down.weight"]
    group, importance = pair.group("up.weight[0]"), pair.program.weights["down.weight"].abs().sum(0)
    scores = importance.double() * x.norm(dim=0)
    first, second = scores.topk(2).indices.tolist()
    x[:, second] = x[:, first]
    own = [(consumer, SecondMoment.of(x.unsqueeze(0)))]
    kept = {i: choose(pair, i, own, group, 8) for i in ("fasp", "obs")}
    assert bool(kept["fasp"][[first, second]].all())
    assert not bool(kept["obs"][[first, second]].all())


@pytest.mark.parametrize("importance", BY_DATA)
def test_the_restoration_on_the_way_is_that_of_the_finished_plan(importance: Importance) -> None:
    analysis = captured("mlp").analysis
    data = [analysis.program.flatten(*captured("mlp").net.call(6, 5)) for _ in range(3)]
    made = plan_and_restore(analysis, width=0.5, importance=importance, calibration=data)
    again = restore_weights(analysis, made.plan.selection(analysis), data)
    assert made.restoration is not None and made.analysis is analysis
    assert made.restoration.weights.keys() == again.weights.keys() and again.weights
    for name, tensor in again.weights.items():
        torch.testing.assert_close(made.restoration.weights[name], tensor, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("importance", ["fasp", "obs"])
def test_what_ran_before_a_group_was_decided_runs_again(importance: Importance) -> None:
    """One axis for queries, keys and values: the output projection decides it, behind attention with whole queries."""
    found = captured("vit")
    data = [found.analysis.program.flatten(*found.net.call(4, 6)) for _ in range(3)]
    options: PlanOptions = {"width": 0.5, "importance": importance, "groups": ["query-key dims"]}
    assert plan_and_restore(found.analysis, calibration=data, **options).restoration is None
    plan, made = compress(found.analysis, calibration=data, **options)
    again = apply_plan(found.analysis, plan, calibration=data)
    assert made.restoration is not None and plan.cuts
    for name, tensor in again.program.weights.items():
        assert torch.equal(made.program.weights[name], tensor), name


@pytest.mark.parametrize("importance", BY_DATA)
def test_data_cuts_inside_heads_unless_heads_are_asked_for(importance: Importance) -> None:
    analysis, data = opened("heads")
    plan = make_plan(analysis, width=0.5, importance=importance, calibration=data)
    assert [c.kind for c in plan.cuts] == ["value dims"]
    assert any("(heads) stays whole: what lies inside it is cut" in n for n in plan.notes)
    assert any("(query-key dims) stays whole: no weight sums over it" in n for n in plan.notes)
    asked = make_plan(analysis, width=0.5, importance=importance, calibration=data, groups=["heads"])
    assert [(c.kind, c.count) for c in asked.cuts] == [("heads", 2)]


def test_with_subspaces_queries_and_keys_are_cut_as_well() -> None:
    analysis, data = opened("heads")
    plan = make_plan(analysis, width=0.5, importance="obs", subspace=True, calibration=data)
    assert {c.kind: c.subspace for c in plan.cuts} == {"value dims": True, "query-key dims": True}


def test_value_dims_are_chosen_head_by_head() -> None:
    analysis, data = opened("heads")
    (cut,) = make_plan(analysis, width=0.4, importance="obs", calibration=data).cuts
    assert cut.batch == (3,) and cut.count == 2 and len(cut.kept) == 3
    own = seen(analysis, "o.weight", data)
    group = analysis.group("v.weight[0].value-dims")
    assert torch.equal(cut.mask(), eliminate([problem(analysis, *own, group)], (3, 5), 2).mask)


@pytest.mark.parametrize("subspace", [True, False])
def test_options_of_a_plan_say_how_it_was_made(subspace: bool) -> None:
    analysis, data = opened("bottleneck")
    plan, _ = compress(analysis, 0.6, importance="obs", subspace=subspace, budget="global", calibration=data)
    wanted = {"keep": 0.6, "importance": "obs", "subspace": subspace, "budget": "global", "width": None}
    assert {k: plan.options[k] for k in wanted} == wanted


@pytest.mark.parametrize("importance", ["magnitude", "random"])
def test_weights_alone_may_choose_beside_subspaces(importance: Importance) -> None:
    analysis, data = opened("bottleneck")
    plan = make_plan(analysis, width=0.5, importance=importance, subspace=True, calibration=data)
    assert {c.kind: c.subspace for c in plan.cuts} == {"rank": True, "neurons": False}


@pytest.mark.parametrize(("by", "refits"), [("none", 0), ("bias", 0), ("least-squares", 1)])
def test_a_plan_is_refitted_only_where_it_is_to_be_restored_so(
    by: Any, refits: int, pair: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve, solved = restore.refit, []
    monkeypatch.setattr(restore, "refit", lambda *args: solved.append(args) or solve(*args))
    plan, _ = compress(pair, width=0.5, importance="fasp", calibration=batches(), restore=by)
    assert len(plan.cuts) == 1 and len(solved) == refits


def test_a_restoration_that_there_is_not_is_refused(pair: Analysis) -> None:
    with pytest.raises(InputError, match="unknown restoration 'Bias'"):
        compress(pair, width=0.5, importance="fasp", calibration=batches(), restore="Bias")  # type: ignore[arg-type]
