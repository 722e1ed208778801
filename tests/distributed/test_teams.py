"""Several processes: the same plans as one alone makes, and the same weights up to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fxslim.graph.errors import InputError
from fxslim.passes.consumers import find_consumers
from fxslim.passes.team import ALONE, Team, current_team
from fxslim.passes.upstream import choose_upstream
from tests.distributed.worker import METHODS, data, images, model, work

ROUNDING = 1e-8  # of a weight, relative: sums in another order, through a solve in float64
SIZES = (pytest.param(2, marks=pytest.mark.slow), 3)  # of two, each has half of every part


def launch(size: int, script: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """What `torchrun` makes of a script with so many processes."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={size}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *script.split(), *arguments], env=environment, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip


class Results(dict[int, Path]):
    """Folders by the number of processes, filled when they are asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory

    def __missing__(self, size: int) -> Path:
        folder = self[size] = self._factory.mktemp(f"team-{size}")
        if size == 1:
            work(folder)
            return folder
        done = launch(size, "-m tests.distributed.worker", str(folder))
        assert done.returncode == 0, done.stderr[-3000:]
        return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory)


def _plan(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found["predicted"].pop("loss", None)  # a sum of curves: it differs in its last digits
    return found


def test_the_data_is_plenty_and_run_in_turn() -> None:
    """Else the teams below would not show what they are for."""
    assert choose_upstream(model(), find_consumers(model().axes)[0], data()) == "in turn"
    assert choose_upstream(images(), find_consumers(images().axes)[0], data()) == "both"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_a_team_makes_what_one_process_makes(results: dict[int, Path], method: str, size: int) -> None:
    alone = load_file(results[1] / f"{method}.0.st")
    for rank in range(size):
        assert _plan(results[size] / f"{method}.{rank}.json") == _plan(results[1] / f"{method}.0.json")
        own = load_file(results[size] / f"{method}.{rank}.st")
        assert own.keys() == alone.keys()
        for name, weight in own.items():
            _assert_close(weight, alone[name], f"{method} {name}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_all_processes_of_a_team_have_the_same_bits(results: dict[int, Path], method: str, size: int) -> None:
    first, *others = (load_file(results[size] / f"{method}.{rank}.st") for rank in range(size))
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.parametrize("size", [1, *SIZES])
def test_weights_on_disk_make_no_difference(results: dict[int, Path], size: int) -> None:
    kept, streamed = (load_file(results[size] / f"{method}.0.st") for method in ("best", "best on disk"))
    assert kept.keys() == streamed.keys() and all(torch.equal(kept[name], streamed[name]) for name in kept)


@pytest.mark.parametrize("size", SIZES)
def test_norms_are_judged_by_the_data_of_all(results: dict[int, Path], size: int) -> None:
    alone, *team = (
        json.loads((results[of] / f"fasp of images.{rank}.norms").read_text(encoding="utf-8"))
        for of, rank in ((1, 0), *((size, rank) for rank in range(size)))
    )
    (wanted,) = alone
    assert wanted[2] > 0.01  # there was something to judge
    for (found,) in team:
        assert found[:2] == wanted[:2] and found[2:] == pytest.approx(wanted[2:], rel=ROUNDING)


def _assert_close(found: Tensor, wanted: Tensor, what: str) -> None:
    scale = float(wanted.abs().max()) or 1.0
    assert float((found - wanted).abs().max()) <= ROUNDING * scale, what


def test_the_data_is_divided_without_rest_and_overlap() -> None:
    parts = [list(Team(rank, 3).share(11)) for rank in range(3)]
    assert sorted(i for part in parts for i in part) == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert [list(Team(rank, 3).share(2, few=True)) for rank in range(3)] == [[0], [1], []]
    with pytest.raises(InputError, match=r"fewer batches \(2\) than there are processes \(3\)"):
        Team(0, 3).share(2)


def test_without_a_launcher_a_process_is_alone_and_nothing_is_sent() -> None:
    assert current_team() is ALONE
    statistic = torch.ones(2)
    assert ALONE.total(statistic) is statistic
    assert ALONE.handed("x") == "x" and ALONE.solved(5, lambda: 3) == 3 and ALONE.turn(7)
    assert ALONE.gathered({"a": 1}) == {"a": 1}
