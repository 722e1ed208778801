from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn

import fxslim
from fxslim import report_facts
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.program import Program
from fxslim.passes.plan import Plan
from fxslim.report_facts import curve_facts, group_facts, identity, uncut_facts, weight_facts
from tests.fxslim.factories import bottleneck, classifier


def captured(factory: Any = classifier) -> Analysis:
    model, inputs, _, shapes = factory()
    return fxslim.analyze(fxslim.capture(model, inputs, dynamic_shapes=shapes))


@pytest.fixture(scope="module")
def cut() -> tuple[Analysis, Plan, Program]:
    torch.manual_seed(0)
    analysis = captured()
    plan = fxslim.make_plan(analysis, keep=0.6)
    return analysis, plan, fxslim.apply(analysis, plan)


def test_every_weight_is_there_and_their_sum_is_the_model(cut: tuple[Analysis, Plan, Program]) -> None:
    analysis, plan, slim = cut
    facts = weight_facts(analysis.program, slim)
    rows = {row["name"]: row for row in facts["rows"]}
    kept = {c.group: c.count for c in plan.cuts}
    assert rows["first.weight"]["shape"] == [[32, 8], [kept["first.weight[0]"], 8]]
    totals = [sum(row["params"][i] for row in facts["rows"]) for i in (0, 1)]
    assert totals == [analysis.program.parameters(), slim.parameters()]
    modules = list(dict.fromkeys(row["name"].rpartition(".")[0] for row in facts["rows"]))
    assert modules == ["first", "second", "head"], "in the order in which the model reads them"
    assert facts["rest"] == {"weights": 0, "params": [0, 0]}


def test_a_weight_that_became_a_pair_is_gone_and_the_pair_is_new() -> None:
    analysis = captured()
    pair = fxslim.api.prepare(analysis, ["factorise{weights=second.weight}"])
    rows = {row["name"]: row for row in weight_facts(analysis.program, pair)["rows"]}
    assert rows["second.weight"]["shape"] == [[32, 32], None] and rows["second.weight"]["params"] == [1024, 0]
    assert rows["second.weight_in"]["shape"] == [None, [32, 32]]
    assert list(rows).index("first.weight") < list(rows).index("second.weight_in") < list(rows).index("head.weight")


def test_what_is_too_much_is_counted(cut: tuple[Analysis, Plan, Program], monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, plan, slim = cut
    monkeypatch.setattr(report_facts, "WEIGHTS", 2)
    monkeypatch.setattr(report_facts, "SITES", 3)
    monkeypatch.setattr(report_facts, "GROUPS", 1)
    facts = weight_facts(analysis.program, slim)
    assert [row["name"] for row in facts["rows"]] == ["first.weight", "second.weight"], "the largest, in their order"
    assert facts["rest"]["weights"] == 4
    both = [sum(r["params"][i] for r in facts["rows"]) + facts["rest"]["params"][i] for i in (0, 1)]
    assert both == [analysis.program.parameters(), slim.parameters()]
    groups = group_facts(analysis, plan)
    listed = [sum(len(g["sites"][r]) for r in ("produces", "consumes", "carries")) for g in groups]
    assert sum(listed) == 3
    assert sum(g["sites"]["left_out"] for g in groups) == sum(len(analysis.group(g["group"]).sites) for g in groups) - 3
    uncut = uncut_facts(analysis, plan)
    assert len(uncut["rows"]) == 1 and uncut["left_out"] == len(analysis.groups) - len(plan.cuts) - 1


def test_groups_name_the_weights_that_they_tie(cut: tuple[Analysis, Plan, Program]) -> None:
    analysis, plan, _ = cut
    first = next(g for g in group_facts(analysis, plan) if g["group"] == "first.weight[0]")
    assert first["sites"]["produces"][0] == "first.weight[0]" and first["sites"]["consumes"] == ["second.weight[1]"]
    assert first["kind"] == "neurons" and first["kept"] < first["size"] == 32


def test_what_stays_whole_says_why(cut: tuple[Analysis, Plan, Program]) -> None:
    analysis, _, _ = cut
    plan = fxslim.make_plan(analysis, keep=0.8, groups=["first.weight[0]"])
    rows = {row["group"]: row for row in uncut_facts(analysis, plan)["rows"]}
    assert rows["second.weight[0]"]["fixed"] is None
    assert rows["head.weight[0]"]["fixed"], "the classes are an output"
    noted = Plan(plan.fingerprint, plan.cuts, notes=("second.weight[0] (neurons) stays whole: why", "second.weight"))
    rows = {row["group"]: row for row in uncut_facts(analysis, noted)["rows"]}
    assert rows["second.weight[0]"]["notes"] == ["second.weight[0] (neurons) stays whole: why"]


def test_an_original_is_told_from_another() -> None:
    first, again = identity(captured().program), identity(captured().program)
    assert first == again
    model, inputs, _, shapes = classifier()
    with torch.no_grad():
        model.head.bias += 1
    changed = identity(fxslim.capture(model, inputs, dynamic_shapes=shapes))
    assert changed["fingerprint"] == first["fingerprint"] and changed["weights_sha256"] != first["weights_sha256"]


def test_curves_have_what_was_kept_and_the_ends() -> None:
    analysis = captured()
    name = "first.weight[0]"
    losses = torch.linspace(1, 0, 33)
    losses[0] = math.inf
    plan = fxslim.make_plan(analysis, keep=0.8, groups=[name])
    kept = plan.cuts[0].count
    facts = curve_facts({name: losses, "unknown": losses}, analysis, plan, analysis.program, analysis.program)
    assert facts is not None
    (row,) = facts["rows"]
    assert (row["kept"], row["size"], row["kind"]) == (kept, 32, "neurons")
    assert {kept, 32} <= set(row["sizes"]) and 0 not in row["sizes"], "of 0 nothing is known"
    assert row["sizes"] == sorted(row["sizes"]) and len(row["sizes"]) <= report_facts.POINTS + 2
    assert row["losses"][-1] == 0 and json.dumps(facts, allow_nan=False)
    assert curve_facts({}, analysis, plan, analysis.program, analysis.program) is None


def test_the_planner_tells_the_curves_of_a_global_budget() -> None:
    model, inputs, _, shapes = bottleneck()
    batches = [(torch.randn(32, *inputs[0].shape[1:]),) for _ in range(3)]
    analysis = fxslim.analyze(fxslim.capture(model, inputs, dynamic_shapes=shapes))
    curves: dict[str, torch.Tensor] = {}
    told: Any = {"importance": "obs", "budget": "global", "subspace": True, "curves": curves}
    plan, applied = fxslim.compress(analysis, 0.6, calibration=batches, **told)
    facts = curve_facts(curves, applied.analysis, plan, analysis.program, applied.program)
    assert facts is not None
    rows = {row["name"]: row for row in facts["rows"]}
    for cut in plan.cuts:
        assert rows[cut.group]["kept"] == cut.count and rows[cut.group]["size"] == cut.size
    untold: Any = {k: v for k, v in told.items() if k != "curves"}
    assert fxslim.make_plan(analysis, 0.6, calibration=batches, **untold).cuts == plan.cuts, "telling changes nothing"


def test_every_group_that_a_global_budget_cut_has_its_curve_also_where_weights_became_pairs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 48), nn.Tanh(), nn.Linear(48, 8))
    with torch.no_grad():  # half of the neurons are dead, and what makes the others has a low rank
        model[0].weight.copy_(torch.randn(96, 4) @ torch.randn(4, 48) / 20)
        model[0].bias[48:] = -100.0
    batches = [(torch.randn(256, 48),) for _ in range(3)]
    analysis = fxslim.analyze(fxslim.capture(model, batches[0], dynamic_shapes=({0: "batch"},)))
    curves: dict[str, torch.Tensor] = {}
    told: Any = {"importance": "obs", "budget": "global", "subspace": True, "ranks": True, "curves": curves}
    plan, applied = fxslim.compress(analysis, 0.4, calibration=batches, **told)
    found = fxslim.api.for_plan(analysis, plan)
    facts = curve_facts(curves, found, plan, analysis.program, applied.program)
    assert facts is not None
    rows = {row["name"]: row for row in facts["rows"]}
    cut = {c.group: c for c in plan.cuts}
    pairs = [name for name, row in rows.items() if row["kind"] == "rank" and row["kept"] < row["size"]]
    renamed = [name for name in cut if "_in[" in name or "_out[" in name]
    assert pairs and len(renamed) > len(pairs), "the case that is meant"
    for name, one in cut.items():
        weight = name.rpartition("_in[")[0]
        row = rows.get(name) or rows[weight]
        assert (row["kept"], row["size"]) == (one.count, one.size), name
