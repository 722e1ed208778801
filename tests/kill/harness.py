"""Runs that are killed at a chosen moment, and what is found afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fxslim import outputs
from fxslim.export import export_onnx
from fxslim.opening import open_model
from fxslim.outputs import verify_manifest
from fxslim.pipeline import slim
from fxslim.recipe import Recipe
from fxslim.run_steps import Unwatched
from fxslim.slim_options import SlimOptions
from fxslim.targets import run_recipe
from tests.fxslim.factories import CLASSIFIER, write_data
from tests.fxslim.hf import tiny_llama
from tests.translations import share_translations

__all__ = ["OLD", "SCENARIOS", "Finding", "Point", "count_points", "options_of", "prepare", "try_point"]

NEVER = 1 << 30
OLD, NEW = 0.9, 0.5  # shares that are kept: they tell the earlier result from the new one
SCENARIOS = ("fresh", "overwrite", "targets", "streamed")
LAYERS = 4  # of the model that stays on disk: two restored calls in each
_EXCHANGE = outputs._exchange
_WRITES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Point:
    """A moment of a run: the n-th change of the file system below the folder, or the n-th sign of life of a step."""

    scenario: str
    kind: str  # write, step
    number: int


@dataclass(frozen=True)
class Finding:
    """What a killed run left, and how the next one went. `problem` is empty where all is as promised."""

    point: Point
    left: str  # nothing, old, new
    resumed: bool  # the next run had something to go on from
    problem: str


class _Killer(Unwatched):
    """Counts moments, and ends the process at the one that is asked for."""

    def __init__(self, folder: Path, point: Point | None) -> None:
        self.folder, self.point = str(folder), point
        self.counts = {"write": 0, "step": 0}

    def step(self, name: str) -> None:
        self._moment("step")

    def progress(self, what: str, done: int, total: int) -> None:
        self._moment("step")

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event in _WRITES or (event == "open" and isinstance(args[2], int) and args[2] & _WRITING)
        if writes and str(args[0]).startswith(self.folder):
            self._moment("write")

    def exchange(self, one: Path, other: Path) -> bool:
        """Exchanging two names is a call of the system that no audit event tells: it counts before and after."""
        self._moment("write")
        done = _EXCHANGE(one, other)
        self._moment("write")
        return done

    def _moment(self, kind: str) -> None:
        self.counts[kind] += 1
        if self.point is not None and self.point.kind == kind and self.counts[kind] == self.point.number:
            os.kill(os.getpid(), signal.SIGKILL)


def options_of(data: Path, keep: float) -> SlimOptions:
    return SlimOptions(
        CLASSIFIER, keep=keep, calibration=str(data), evaluation=str(data), provider="cpu", latency_seconds=0.05
    )


def _streamed_options(data: Path, keep: float) -> SlimOptions:
    return SlimOptions(
        str(data.with_name("llama")), keep=keep, method="fasp", calibration=str(data.with_name("tokens.npz")),
        provider="cpu", stream=True, offload_activations=True,
    )  # fmt: skip


def prepare(folder: Path) -> Path:
    """The data of all runs. What children of this process would each load anew is loaded before they are forked."""
    share_translations()
    program = open_model(CLASSIFIER).program
    export_onnx(program, folder / "warm.onnx")
    (folder / "warm.onnx").unlink()
    ids = np.random.default_rng(0).integers(0, 64, (24, 16))
    np.savez(folder / "tokens.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    tiny_llama(folder / "llama", LAYERS)
    return write_data(folder / "data.npz")


def count_points(folder: Path, data: Path, scenario: str) -> list[Point]:
    """All moments of a run that comes to its end in the empty `folder`, and there what it made."""
    _before(folder, data, scenario)
    counts = _forked(lambda killer: _run(folder, data, scenario, killer), folder, None)
    assert counts is not None, "the run that is not killed must end well"
    return [Point(scenario, kind, i + 1) for kind, n in counts.items() for i in range(n)]


def try_point(folder: Path, data: Path, point: Point, expected: dict[str, str]) -> Finding:
    """Kills a run at a point, looks at what is there, runs it again, and looks once more."""
    _before(folder, data, point.scenario)
    if _forked(lambda killer: _run(folder, data, point.scenario, killer), folder, point) is not None:
        return Finding(point, "new", False, "the run was not killed: it took another way than when it was counted")
    left, problem = _state(folder, point.scenario)
    again = _forked(lambda killer: _run(folder, data, point.scenario, killer, again=True), folder, None)
    if again is None:
        return Finding(point, left, False, problem or "the next run failed")
    found = hashes(folder, point.scenario)
    if not problem and found != expected:
        changed = [k for k in expected if found.get(k) != expected[k]]
        problem = f"the next run made something else: {', '.join(changed)}"
    if not problem and (rest := sorted(f.name for f in folder.iterdir() if f.name.startswith("."))):
        problem = f"left behind: {', '.join(rest)}"
    return Finding(point, left, _resumed(folder, point.scenario), problem)


def hashes(folder: Path, scenario: str) -> dict[str, str]:
    """What must not depend on whether a run was killed: plan, weights and the ONNX file of each result."""
    found = {}
    for result in _results(folder, scenario):
        for name in ("plan.json", "model.onnx", "slim/weights.safetensors", "slim/graph.json"):
            file = result / name
            found[f"{result.name}/{name}"] = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    return found


def _results(folder: Path, scenario: str) -> list[Path]:
    out = folder / "out"
    return [out / "half", out / "int8"] if scenario == "targets" else [out]


def _before(folder: Path, data: Path, scenario: str) -> None:
    """An earlier result, where there is one: made once, and copied."""
    folder.mkdir(parents=True)
    if scenario != "overwrite":
        return
    earlier = data.with_name("earlier")
    if not earlier.exists():
        made = _forked(lambda killer: slim(options_of(data, OLD), earlier, watcher=killer), earlier, None)
        assert made is not None
    shutil.copytree(earlier, folder / "out")


def _run(folder: Path, data: Path, scenario: str, killer: _Killer, *, again: bool = False) -> None:
    options, out = (_streamed_options if scenario == "streamed" else options_of)(data, NEW), folder / "out"
    if scenario == "targets":
        targets = {"half": options, "int8": replace(options, quantize="dynamic")}
        outcomes = run_recipe(Recipe(options, targets), out, watcher=killer)
        assert all(o.error is None for o in outcomes.values())
    else:
        # Where the killed run had come to its end, the next one meets its result.
        slim(options, out, overwrite=again or scenario == "overwrite", watcher=killer)


def _forked(action: Callable[[_Killer], object], folder: Path, point: Point | None) -> dict[str, int] | None:
    """The counts of a run in a child process, None if it was killed or failed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            killer = _Killer(folder, point)
            sys.addaudithook(killer.audit)
            outputs._exchange = killer.exchange
            action(killer)
            os.write(write, json.dumps(killer.counts).encode())
            os._exit(0)
        except BaseException:  # a child must not go on as if it were the parent
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if status and not (killed and point is not None):
        return None
    return json.loads(text) if text and not killed else None


def _state(folder: Path, scenario: str) -> tuple[str, str]:
    """What is at the results' names: nothing, the old, or the new; and what is wrong with it."""
    states = [_state_of(result) for result in _results(folder, scenario)]
    problems = [problem for _, problem in states if problem]
    if scenario == "overwrite" and states[0][0] == "nothing":
        problems.append("the earlier result is gone")
    return "+".join(dict.fromkeys(state for state, _ in states)), "; ".join(problems)


def _state_of(result: Path) -> tuple[str, str]:
    if not result.exists():
        return "nothing", ""
    if problems := verify_manifest(result):
        return "mixed", f"not whole: {problems[0]}"
    report = json.loads((result / "report.json").read_text())
    return ("old" if f"--keep {OLD}" in report["command"] else "new"), ""


def _resumed(folder: Path, scenario: str) -> bool:
    first = _results(folder, scenario)[0]  # of several targets the later ones take the first one's plan anyway
    return bool(json.loads((first / "report.json").read_text())["resumed"])
