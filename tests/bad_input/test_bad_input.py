"""Bad input of every kind: the exit code, what is said, no traceback, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxslim.cli import app
from tests.bad_input.cases import CASES, Case
from tests.bad_input.place import Place, whole


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return whole(tmp_path_factory.mktemp("bad") / "place")


def contents(place: Place) -> dict[Path, bytes]:
    files = (f for f in place.root.rglob("*") if f.is_file())
    return {f.relative_to(place.root): f.read_bytes() for f in files}


def test_every_case_says_what_is_expected() -> None:
    assert all(case.says for case in CASES)


def test_there_are_a_hundred_of_them_and_no_two_alike() -> None:
    assert len({(c.area, c.name) for c in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.area}-{c.name}".replace(" ", "_"))
def test_bad_input(case: Case, good: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # so that a message of the command line's own is on one line
    place = good.copy(tmp_path / "place")
    words = case.make(place)
    before = contents(place)
    found = CliRunner().invoke(app, words)
    assert found.exit_code == case.exit_code, found.output
    assert case.says in found.output
    assert "Traceback" not in found.output and len(found.output.strip()) > 20
    assert contents(place) == before
