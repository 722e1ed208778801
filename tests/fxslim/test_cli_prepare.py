"""Preparation through the command line: the plan carries it, and every command that takes the plan repeats it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxslim.graph.serialize import load
from fxslim.opening import open_model, prepared
from fxslim.passes.plan import Plan
from fxslim.passes.planner import make_plan
from tests.fxslim.factories import CLASSIFIER
from tests.fxslim.test_cli import FAST, refused, run

FUSED = "tests.fxslim.factories:fused"


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    result = run("plan", FUSED, "--width", "0.5", "--groups", "value dims", "--split-fused", "-o", path)
    assert result.exit_code == 0, result.output
    return path


def test_values_alone_need_the_split() -> None:
    refused(run("plan", FUSED, "--width", "0.5", "--groups", "value dims"), "'value dims' matches no kind")


def test_groups_show_what_the_split_opens() -> None:
    whole = json.loads(run("groups", FUSED, "--json").stdout)
    parts = json.loads(run("groups", FUSED, "--split-fused", "--json").stdout)
    assert "value dims" not in whole["counts"]
    assert parts["counts"]["value dims"] == 1
    assert parts["params"] == whole["params"]
    assert whole["unknown_operators"] == {}


def test_a_plan_names_what_prepared_its_model_and_proves(plan_file: Path) -> None:
    plan = Plan.load(plan_file)
    assert plan.prepare == ("fold-constants", "split-fused")
    assert [c.kind for c in plan.cuts] == ["value dims"]
    result = run("prove", FUSED, plan_file)
    assert result.exit_code == 0, result.output
    assert "proven (exact)" in result.stdout


def test_apply_repeats_the_preparation(plan_file: Path, tmp_path: Path) -> None:
    result = run("apply", FUSED, plan_file, "-o", tmp_path / "slim")
    assert result.exit_code == 0, result.output
    program = load(tmp_path / "slim")
    assert program.info["qkv.weight_2"].shape == (4, 8)
    assert program.info["qkv.weight_0"].shape == (8, 8)


def test_slim_with_a_split_is_compared_with_the_model_as_it_came(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("slim", FUSED, "--width", "0.5", "--split-fused", *FAST, "--json", "-o", out)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["verdict"] == "ok"
    assert "--split-fused" in report["command"]
    again = run("slim", FUSED, "--plan", out / "plan.json", *FAST, "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert run("check", out).exit_code == 0


def test_a_plan_with_an_unknown_preparation_is_refused(plan_file: Path, tmp_path: Path) -> None:
    data = json.loads(plan_file.read_text())
    data["prepare"] = ["melt"]
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(data))
    refused(run("prove", FUSED, changed), "there is no preparation 'melt'", "fold-constants")


def test_a_plan_for_a_factorised_model_is_applied_to_the_model_as_it_came(tmp_path: Path) -> None:
    steps = ("fold-constants", "factorise{weights=first.weight+second.weight}")
    analysis = prepared(open_model(CLASSIFIER).program, steps)
    path = tmp_path / "plan.json"
    path.write_text(make_plan(analysis, width=0.5, groups=["rank"]).to_json())
    assert json.loads(path.read_text())["prepare"] == [steps[1]]  # folding changed nothing
    result = run("apply", CLASSIFIER, path, "-o", tmp_path / "slim")
    assert result.exit_code == 0, result.output
    program = load(tmp_path / "slim")
    shapes = {name: w.shape for name, w in program.info.items() if name.startswith(("first.weight", "second.weight"))}
    assert shapes == {
        "first.weight_in": (4, 8), "first.weight_out": (32, 4),
        "second.weight_in": (16, 32), "second.weight_out": (32, 16),
    }  # fmt: skip
    more = tmp_path / "more.json"  # a plan for the slim program names what it went through: that is not done twice
    assert run("plan", tmp_path / "slim", "--width", "0.5", "-o", more).exit_code == 0
    assert Plan.load(more).prepare == (steps[1],)
    assert run("prove", tmp_path / "slim", more).exit_code == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("factorise", "factorise needs weights"),
        ("factorise{weights=first.weight", "malformed"),
        ("factorise{weights=third.weight}", "these can be: first.weight, second.weight, head.weight"),
    ],
)
def test_a_plan_with_a_malformed_preparation_is_refused(text: str, why: str, tmp_path: Path) -> None:
    plan = make_plan(prepared(open_model(CLASSIFIER).program), width=0.5)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(plan.to_json()), "prepare": [text]}))
    refused(run("prove", CLASSIFIER, path), why)
