"""The workflow for GitHub Actions: well formed, with commands and flags that fxslim has, and a gate that can close."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from fxslim.cli import app

FILE = Path(__file__).parents[2] / "examples" / "github-actions" / "slim.yml"
PINNED = re.compile(r"[\w-]+/[\w-]+@v\d+")


@pytest.fixture(scope="module")
def steps() -> list[dict[str, Any]]:
    workflow = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert set(workflow) == {"name", True, "permissions", "env", "jobs"}  # YAML 1.1 reads `on` as true
    (job,) = workflow["jobs"].values()
    assert job["runs-on"] and job["timeout-minutes"]
    found: list[dict[str, Any]] = job["steps"]
    return found


def commands(steps: list[dict[str, Any]]) -> list[list[str]]:
    lines = [line for step in steps for line in str(step.get("run", "")).split("EOF")[0].splitlines()]
    return [shlex.split(line) for line in lines if line.strip().startswith("fxslim")]


def test_every_step_runs_something_or_uses_a_pinned_action(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        assert ("run" in step) != ("uses" in step)
        assert "uses" not in step or PINNED.fullmatch(step["uses"])


def test_every_command_and_flag_is_one_of_fxslims(steps: list[dict[str, Any]]) -> None:
    root: Any = typer.main.get_command(app)
    found = commands(steps)
    assert [words[1] for words in found] == ["doctor", "slim", "check"]
    for _, name, *words in found:
        known = {option for parameter in root.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_shells_accept_what_is_run(steps: list[dict[str, Any]]) -> None:
    for step in steps:
        if "run" in step:
            subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"quality": {"name": "accuracy", "higher_is_better": True, "before": 0.9, "after": 0.8}}, "11.1% lost"),
        ({"latency": {"ratio": {"value": 1.2, "low": 1.0, "high": 1.4}}}, "at least 1.00x is certain"),
        ({"failures": ["proof: it differs"]}, "proof: it differs"),
    ],
)
def test_the_gate_closes(change: dict[str, Any], said: str | None, steps: list[dict[str, Any]], tmp_path: Path) -> None:
    report = {
        "failures": [],
        "quality": {"name": "perplexity", "higher_is_better": False, "before": 13.3, "after": 13.4},
        "latency": {"ratio": {"value": 1.3, "low": 1.2, "high": 1.4}},
        **change,
    }
    (tmp_path / "slim").mkdir()
    (tmp_path / "slim" / "report.json").write_text(json.dumps(report))
    (script,) = [step["run"].split("EOF'\n")[1].split("EOF")[0] for step in steps if "Gate" in step.get("name", "")]
    env = {"MOST_LOST": "0.02", "LEAST_SPEEDUP": "1.1"}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == (0 if said is None else 1), ran.stderr
    assert said is None or said in ran.stderr
