"""The workflow for GitHub Actions: well formed, with commands and flags that fxslim has, and a gate that can close."""

from __future__ import annotations

import re
import shlex
import subprocess
from itertools import pairwise
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
    lines = [line for step in steps for line in str(step.get("run", "")).splitlines()]
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


def test_the_gates_of_fxslim_decide(steps: list[dict[str, Any]]) -> None:
    env = yaml.safe_load(FILE.read_text(encoding="utf-8"))["env"]
    words = next(words for words in commands(steps) if words[1] == "slim")
    given = dict(pairwise(words))
    assert (given["--max-quality-loss"], given["--min-speedup"]) == ("$MOST_LOST", "$LEAST_SPEEDUP")
    assert 0 < float(env["MOST_LOST"]) < 1 < float(env["LEAST_SPEEDUP"])
    assert given["--evaluation"]  # without it the gate on quality is refused
