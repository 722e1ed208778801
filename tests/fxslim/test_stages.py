"""What a run has finished so far: whole or not there, and found by what it depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxslim.graph.errors import InputError
from fxslim.stages import Stages


def test_a_stage_is_there_once_its_block_has_ended(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "work")
    assert stages.find("a") is None and stages.names() == []
    with stages.keep("a") as folder:
        (folder / "x").write_text("1")
        assert stages.find("a") is None
    found = stages.find("a")
    assert found is not None and (found / "x").read_text() == "1"
    with stages.keep("a") as folder:
        (folder / "x").write_text("2")
    assert (tmp_path / "work" / "a" / "x").read_text() == "2"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_ends_badly_leaves_no_stage(tmp_path: Path, error: type[BaseException]) -> None:
    stages = Stages(tmp_path / "work")

    def run() -> None:
        with stages.keep("a") as folder:
            (folder / "x").write_text("1")
            raise error

    with pytest.raises(error):
        run()
    assert list((tmp_path / "work").iterdir()) == []


def test_a_damaged_stage_is_made_again(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "work")
    with stages.keep("a") as folder:
        (folder / "x").write_text("1")
    (tmp_path / "work" / "a" / "x").write_text("2")
    assert stages.find("a") is None
    assert stages.names() == []


def test_tidying_removes_drafts_and_an_empty_folder(tmp_path: Path) -> None:
    stages = Stages(tmp_path / "work")
    (tmp_path / "work" / ".a.0123").mkdir(parents=True)
    stages.tidy()
    assert not (tmp_path / "work").exists()
    with stages.keep("a") as folder:
        (folder / "x").write_text("1")
    stages.tidy()
    assert stages.names() == ["a"]
    stages.close()
    assert not (tmp_path / "work").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"), Stages(tmp_path / "work").keep("a"):
        pytest.fail("the block must not run")
