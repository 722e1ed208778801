"""Plans as text: what a person may edit, and what is refused when the edit is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError, PlanError
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.planner import make_plan
from fxslim.passes.prune import Prune
from tests.models.nets import captured


def edited(plan: Plan, change: Callable[[dict[str, Any]], object]) -> Plan:
    """The plan after a person's edit of its JSON text."""
    data = json.loads(plan.to_json())
    change(data)
    return Plan.from_json(json.dumps(data))


@pytest.fixture
def plan(pair: Analysis) -> Plan:
    return make_plan(pair, width=0.5)


@pytest.mark.parametrize("name", ["mlp", "attention", "grouped"])
def test_json_gives_the_same_plan_back(name: str) -> None:
    analysis = captured(name).analysis
    plan = make_plan(analysis, width=0.5, importance="random")
    again = Plan.from_json(plan.to_json())
    assert again == plan
    for axis, kept in plan.selection(analysis).kept.items():
        assert torch.equal(again.selection(analysis).kept[axis].mask, kept.mask)


def test_a_plan_in_a_file(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json(), encoding="utf-8")
    assert Plan.load(file) == plan
    with pytest.raises(InputError, match=r"absent\.json.*cannot be read"):
        Plan.load(tmp_path / "absent.json")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text"):
        Plan.load(file)
    with pytest.raises(InputError, match="cannot be read"):
        Plan.load(tmp_path)


def test_an_edited_plan_is_what_is_applied(pair: Analysis, plan: Plan) -> None:
    def change(data: dict[str, Any]) -> None:
        data["cuts"][0].update(count=3, kept=[0, 4, 9])

    slim = Prune(edited(plan, change))(pair).program
    assert torch.equal(slim.weights["up.weight"], pair.program.weights["up.weight"][[0, 4, 9]])
    assert torch.equal(slim.weights["down.weight"], pair.program.weights["down.weight"][:, [0, 4, 9]])


def cut(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["cuts"][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(fingerprint="0" * 64), "made for another model"),
        (cut(group="nobody.weight[0]"), r"no group 'nobody\.weight\[0\]'"),
        (cut(group="up.weight[1]", size=4, count=2, kept=[0, 1]), r"'up\.weight\[1\]' is fixed: dimension 1 of `x`"),
        (cut(kept=[0, 1, 2, 3, 10]), r"positions must lie in 0\.\.9"),
        (cut(kept=[-1, 1, 2, 3, 4]), r"positions must lie in 0\.\.9"),
        (cut(kept=[0, 1, 1, 3, 4]), "must ascend, without repetition"),
        (cut(kept=[0, 3, 2, 4, 5]), "must ascend, without repetition"),
        (cut(kept=[0, 1, 2]), "must hold 5 positions"),
        (cut(count=4), "must hold 4 positions"),
        (cut(kept=[[0, 1, 2], [3, 4]]), "must hold 5 positions"),
        (cut(count=0, kept=[]), "0 of 10 positions cannot remain"),
        (cut(count=11, kept=list(range(11))), "11 of 10 positions cannot remain"),
        (cut(size=12), r"the plan has sizes \(12,\), the program \(10,\)"),
        (cut(batch=[2], count=2, kept=[[0, 1], [2, 3]]), r"the plan has sizes \(2, 10\), the program \(10,\)"),
    ],
)
def test_wrong_edits_are_named(
    pair: Analysis, plan: Plan, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    wrong = edited(plan, change)
    with pytest.raises(PlanError, match=message):
        wrong.selection(pair)
    with pytest.raises(PlanError, match=message):
        Prune(wrong)(pair)


def test_a_group_named_twice_is_refused(pair: Analysis, plan: Plan) -> None:
    twice = edited(plan, lambda d: d["cuts"].append(dict(d["cuts"][0], kept=[5, 6, 7, 8, 9])))
    with pytest.raises(PlanError, match=r"up\.weight\[0\].*twice"):
        twice.selection(pair)


@pytest.mark.parametrize("kept", [[0, 1.5, 2, 3, 4], [0, True, 2, 3, 4], [0, "1", 2, 3, 4], [0, None, 2, 3, 4]])
def test_positions_are_whole_numbers(pair: Analysis, plan: Plan, kept: list[Any]) -> None:
    with pytest.raises((PlanError, InputError), match=r"kept|position"):
        edited(plan, cut(kept=kept)).selection(pair)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "[]",
        "3",
        "null",
        '{"format": 1}',
        '{"format": 1, "fingerprint": "", "cuts": [{}]}',
        '{"format": 2}',
    ],
)
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="plan"):
        Plan.from_json(text)


def test_the_same_positions_for_every_head_may_be_written_once() -> None:
    analysis = captured("attention").analysis
    group = analysis.group("v.weight[0].value-dims")
    plan = Plan(analysis.program.fingerprint(), (Cut(group.name, group.kind, 5, 2, (), (1, 3)),))
    slim = Prune(plan)(analysis).program
    rows = torch.arange(15).view(3, 5)[:, [1, 3]].flatten()
    assert torch.equal(slim.weights["v.weight"], analysis.program.weights["v.weight"][rows])


def test_heads_must_keep_equally_many(pair: Analysis) -> None:
    group = captured("attention").analysis.group("v.weight[0].value-dims")
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 0] = False
    with pytest.raises(PlanError, match="same number of positions"):
        Cut.from_mask(group, mask)


def test_a_plan_prints_what_remains(plan: Plan) -> None:
    assert str(plan).splitlines()[1:] == ["up.weight[0]: 5 of 10 neurons"]
    per_head = make_plan(captured("attention").analysis, width=0.4, groups=["value dims"])
    assert str(per_head).splitlines()[1:] == ["v.weight[0].value-dims: 2 of 5 value dims for each of (3,)"]


def test_plans_are_immutable(plan: Plan) -> None:
    with pytest.raises(AttributeError):
        plan.fingerprint = "x"  # type: ignore[misc]
    assert replace(plan, fingerprint="x") != plan
