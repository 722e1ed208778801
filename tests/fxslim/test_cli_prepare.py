"""Preparation through the command line: the plan carries it, and every command that takes the plan repeats it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxslim.graph.serialize import load
from fxslim.passes.plan import Plan
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
