"""A few moments of those that `make kill` goes through: one of each kind of write, and around the costly step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kill.harness import SCENARIOS, Point, count_points, hashes, prepare, try_point

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are killed in children made by os.fork")


@pytest.mark.parametrize("scenario", ["fresh", *(pytest.param(s, marks=pytest.mark.slow) for s in SCENARIOS[1:])])
def test_a_killed_run_leaves_the_old_or_the_new_and_the_next_one_goes_on(scenario: str, tmp_path: Path) -> None:
    data = prepare(tmp_path)
    points = count_points(tmp_path / "whole", data, scenario)
    writes = max(p.number for p in points if p.kind == "write")
    expected = hashes(tmp_path / "whole", scenario)
    assert all(expected.values()) and writes > 10
    for i, number in enumerate((writes // 2, writes - 2)):
        found = try_point(tmp_path / str(i), data, Point(scenario, "write", number), expected)
        assert found.problem == ""
        late = number == writes - 2 and scenario != "overwrite"
        assert not late or found.resumed or "new" in found.left  # the plan was there long before


@pytest.mark.slow
def test_the_harness_notices_a_result_that_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the temporary directory a kill in the middle would be found."""
    from fxslim.outputs import OutputDirectory

    def enter(self: OutputDirectory) -> Path:
        self.path.mkdir(parents=True, exist_ok=True)
        return self.path

    monkeypatch.setattr(OutputDirectory, "__enter__", enter)
    monkeypatch.setattr(OutputDirectory, "__exit__", lambda *args: None)
    data = prepare(tmp_path)
    points = [p for p in count_points(tmp_path / "whole", data, "fresh") if p.kind == "write"]
    found = try_point(tmp_path / "killed", data, points[-1], hashes(tmp_path / "whole", "fresh"))
    assert "not whole" in found.problem
