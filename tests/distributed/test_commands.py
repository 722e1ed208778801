"""Commands that a launcher starts in several processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fxslim.processes import _wait_for_all
from tests.distributed.test_teams import launch
from tests.fxslim.factories import CLASSIFIER, FEATURES, write_data
from tests.fxslim.test_cli import run

FLOAT32 = 1e-5  # of a weight, relative: sums of float32 products in another order, through a solve
OPTIONS = ("--method", "fasp", "--latency-seconds", "0.2", "--samples", "256")


def fxslim(*words: str) -> tuple[int, str, str]:
    done = launch(2, "--module fxslim", *words)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.npz", rows=256)


def test_slim_in_two_processes_writes_what_it_writes_in_one(tmp_path: Path, data: Path) -> None:
    words = ("slim", CLASSIFIER, "--width", "0.5", "--calibration", str(data), *OPTIONS)
    code, said, errors = fxslim(*words, "-o", str(tmp_path / "two"))
    assert code == 0, errors[-2000:]
    assert said.count("written to") == 1
    assert run(*words, "-o", str(tmp_path / "one")).exit_code == 0
    first, second = (json.loads((tmp_path / n / "plan.json").read_text(encoding="utf-8")) for n in ("one", "two"))
    assert first == second
    weights = [load_file(tmp_path / n / "slim" / "weights.safetensors") for n in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], rtol=0, atol=FLOAT32 * float(weight.abs().max())), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.slow
def test_two_processes_make_two_targets_side_by_side(tmp_path: Path, data: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"recipe: 1\nmodel: {CLASSIFIER}\nmethod: fasp\ncalibration: {data}\nlatency_seconds: 0.2\n"
        "targets:\n  wide: {width: 0.75}\n  none: {keep: 0.0001}\n  wrong: {width: 0.5, groups: [nonexistent]}\n"
        "  narrow: {width: 0.5}\n",
        encoding="utf-8",
    )
    code, said, errors = fxslim("run", str(recipe), "-o", str(tmp_path / "out"))
    assert code == 1, errors[-2000:]  # the launcher has one code for all failures
    summary = json.loads((tmp_path / "out" / "targets.json").read_text(encoding="utf-8"))["targets"]
    assert [summary[name]["exit_code"] for name in ("wide", "narrow", "none", "wrong")] == [0, 0, 2, 2]
    assert said.count("written to") == 2 and "cannot be met" in errors and "'nonexistent'" in errors
    report = json.loads((tmp_path / "out" / "narrow" / "report.json").read_text(encoding="utf-8"))
    assert any("other processes" in note for note in report["notes"])
    assert "plan" in report["resumed"]  # it was made by both before


def test_what_ends_one_process_ends_all(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((32, FEATURES)).astype(np.float32)
    rows[8:16] = 3e38  # the second batch, which the second process runs: squares overflow
    np.savez(tmp_path / "data.npz", x=rows)
    words = ("slim", CLASSIFIER, "--width", "0.5", "--calibration", str(tmp_path / "data.npz"), *OPTIONS)
    code, _, errors = fxslim(*words, "-o", str(tmp_path / "out"))
    assert code != 0
    assert "process 1: error:" in errors and ("overflow" in errors or "not finite" in errors)
    assert "a defect of fxslim" not in errors  # the other one may have said that it is alone now, and no more
    assert not (tmp_path / "out").exists()


def test_latency_is_measured_by_one_process(tmp_path: Path, data: Path) -> None:
    words = ("slim", CLASSIFIER, "--keep", "0.7", "--of", "latency", "--calibration", str(data))
    code, _, errors = fxslim(*words, "-o", str(tmp_path / "out"))
    assert code != 0
    assert "latency is measured by one process, and there are 2" in errors
    assert not (tmp_path / "out").exists()


def test_commands_that_know_nothing_of_teams_run_once(tmp_path: Path) -> None:
    code, said, _ = fxslim("doctor", "--json")
    assert code == 0
    assert isinstance(json.loads(said), dict)


def test_a_process_that_waits_in_vain_can_be_ended() -> None:
    """A launcher's environment without the others: it says nothing, but a signal ends it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [sys.executable, "-W", "ignore", "-m", "fxslim", "plan", CLASSIFIER, "--keep", "0.7"]
    waiting = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: _listens(port))
        assert waiting.poll() is None
        waiting.terminate()
        assert waiting.wait(30) == -signal.SIGTERM
    finally:
        waiting.kill()


def test_those_who_do_not_come_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxslim.processes._MEETING", timedelta(seconds=0))
    store = SimpleNamespace(add=lambda key, more: 1)
    _wait_for_all(store, 1)
    with pytest.raises(RuntimeError, match="1 are there"):
        _wait_for_all(store, 2)


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _until(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)
