"""Journals: a walk that was killed goes on where it was, and comes to the same, to the last bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from fxslim.api import Applied, compress
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError
from fxslim.graph.stores import WeightStore, read_header, write_safetensors
from fxslim.passes import restore
from fxslim.passes.journal import Finished, Journal
from fxslim.passes.plan import Plan
from tests.models.stored import stored
from tests.passes.residual import batches, layered

MANY = 16  # batches: with so many each runs through one upstream


class Killed(Exception):
    """What ends a walk."""


def run(analysis: Analysis, folder: Path | None, end: int | None = None, *, kill: bool = False) -> tuple[Plan, Applied]:
    def progress(what: str, done: int, total: int) -> None:
        if done == end:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed

    journal = None if folder is None else Journal(folder)
    return compress(
        analysis, 0.8, calibration=batches(MANY), importance="fasp", progress=progress, journal=journal,
    )  # fmt: skip


def same(a: tuple[Plan, Applied], b: tuple[Plan, Applied]) -> bool:
    first, second = a[1].program.weights, b[1].program.weights
    assert a[1].restoration is not None and b[1].restoration is not None
    rows = a[1].restoration.rows == b[1].restoration.rows and a[1].restoration.warnings == b[1].restoration.warnings
    return rows and a[0].to_json() == b[0].to_json() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.fixture
def solves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each refit that was solved."""
    found: list[int] = []
    solve = restore.refit

    def counted(*args, **kwargs):  # type: ignore[no-untyped-def]
        found.append(1)
        return solve(*args, **kwargs)

    monkeypatch.setattr(restore, "refit", counted)
    return found


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("end", [0, 1, 3])
def test_a_walk_goes_on_where_it_was(end: int, on_disk: bool, tmp_path: Path, solves: list[int]) -> None:
    expected, whole = run(layered(), None), len(solves)
    analysis = stored(layered(), tmp_path / "stored", offload=on_disk) if on_disk else layered()
    with pytest.raises(Killed):
        run(analysis, tmp_path / "steps", end)
    solves.clear()
    again = run(analysis, tmp_path / "steps")
    assert whole > 3 and len(solves) == whole - end
    assert same(again, expected)


def test_a_killed_process_leaves_steps_that_are_whole(tmp_path: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("a child is made by os.fork")
    child = os.fork()
    if child == 0:
        try:
            run(layered(), tmp_path, 2, kill=True)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert len([f for f in tmp_path.iterdir() if not f.name.startswith(".")]) == 2
    assert same(run(layered(), tmp_path), run(layered(), None))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_step_is_done_again(damage: str, tmp_path: Path, solves: list[int]) -> None:
    expected = run(layered(), tmp_path)
    first = min(tmp_path.iterdir())
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes({"cut": data[:-9], "flipped": data, "empty": b""}[damage])
    solves.clear()
    assert same(run(layered(), tmp_path), expected)
    assert len(solves) == 1


def test_steps_of_another_walk_are_not_taken(tmp_path: Path, solves: list[int]) -> None:
    run(layered(), tmp_path)
    solves.clear()
    compress(layered(), 0.69, calibration=batches(MANY), importance="fasp", journal=Journal(tmp_path))
    assert len(solves) > 3


def test_steps_of_other_weights_are_not_taken(tmp_path: Path, solves: list[int]) -> None:
    """As they are where another processor gave a basis another sign: the same plan, in other coordinates."""

    def turned() -> Analysis:
        analysis = layered()
        weights = analysis.program.weights
        for name, sign in (("branches.0.1.weight", -1), ("branches.0.1.bias", -1)):
            weights[name] = weights[name] * sign
        return analysis

    run(layered(), tmp_path)
    expected = run(turned(), None)
    solves.clear()
    assert same(run(turned(), tmp_path), expected)
    assert len(solves) > 3


@pytest.mark.parametrize("change", [("row", "rov"), ('"warnings": []', '"warnings": [7]'), ("sha256", "sha512")])
def test_a_step_whose_facts_were_changed_is_done_again(
    change: tuple[str, str], tmp_path: Path, solves: list[int]
) -> None:
    expected = run(layered(), tmp_path)
    first = min(tmp_path.iterdir())
    entries = {name: entry.read() for name, entry in read_header(first).items()}
    facts = bytes(entries["facts"].numpy()).decode()
    assert change[0] in facts
    entries["facts"] = torch.frombuffer(bytearray(facts.replace(*change).encode()), dtype=torch.uint8)
    write_safetensors(first, WeightStore(entries))
    solves.clear()
    assert same(run(layered(), tmp_path), expected)
    assert len(solves) == 1


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    analysis = layered()
    steps = Journal(tmp_path / "file" / "steps").walk(analysis.program, restore.Selection(), [])
    with pytest.raises(InputError, match="found so far cannot be written"):
        steps.keep(0, Finished({"a": torch.ones(3)}))
