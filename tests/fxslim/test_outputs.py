"""Result directories: whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fxslim import outputs
from fxslim.graph.errors import InputError
from fxslim.outputs import MANIFEST, OutputDirectory, verify_manifest, write_json_atomic, write_text_atomic


def fill(directory: Path, text: str = "new") -> None:
    (directory / "sub").mkdir()
    (directory / "model.onnx").write_text(text)
    (directory / "sub" / "data.bin").write_bytes(bytes(range(256)))


def earlier(path: Path) -> Path:
    with OutputDirectory(path) as directory:
        fill(directory, "old")
    return path


def text_of(path: Path) -> str:
    return (path / "model.onnx").read_text()


def names(path: Path) -> list[str]:
    return sorted(f.name for f in path.iterdir())


def test_a_result_appears_whole_with_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with OutputDirectory(path, facts={"seed": 3}) as directory:
        fill(directory)
        assert not path.exists()
        assert directory.parent == path.parent
    assert names(path) == [MANIFEST, "model.onnx", "sub"]
    assert names(path.parent) == ["out"]
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["seed"] == 3
    assert [(e["path"], e["bytes"]) for e in manifest["files"]] == [("model.onnx", 3), ("sub/data.bin", 256)]
    assert verify_manifest(path) == []


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert verify_manifest(earlier(tmp_path / "out")) == []


def test_a_directory_with_content_is_left_alone(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    with pytest.raises(InputError, match="not empty"), OutputDirectory(path):
        pytest.fail("the block must not run")
    assert text_of(path) == "old"


def test_overwrite_keeps_the_old_result_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    with OutputDirectory(path, overwrite=True) as directory:
        fill(directory)
        assert text_of(path) == "old"
    assert text_of(path) == "new"
    assert names(tmp_path) == ["out"]


def test_overwrite_replaces_results_only(tmp_path: Path) -> None:
    tmp_path.joinpath("thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no earlier result"), OutputDirectory(tmp_path, overwrite=True):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_ends_badly_leaves_nothing_new(tmp_path: Path, error: type[BaseException]) -> None:
    path = earlier(tmp_path / "out")

    def run(where: Path) -> None:
        with OutputDirectory(where, overwrite=True) as directory:
            fill(directory)
            raise error

    with pytest.raises(error):
        run(path)
    with pytest.raises(error):
        run(tmp_path / "other")
    assert text_of(path) == "old"
    assert verify_manifest(path) == []
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_every_failure_of_a_rename_leaves_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The renames are, where names cannot be exchanged: the manifest, the old result away, the new one into place."""
    monkeypatch.setattr(outputs, "_exchange", lambda *_: False)
    path = earlier(tmp_path / "out")
    replace, calls = os.replace, []

    def counted(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", counted)
    with pytest.raises((OSError, InputError), match="disk full"), OutputDirectory(path, overwrite=True) as directory:
        fill(directory)
    assert text_of(path) == "old"
    assert verify_manifest(path) == []
    assert names(tmp_path) == ["out"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux exchanges two names")
def test_the_new_result_changes_places_with_the_old_one_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = earlier(tmp_path / "out")
    replaced: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append(Path(b).name), replace(a, b)))
    with OutputDirectory(path, overwrite=True) as directory:
        fill(directory)
    assert replaced == [MANIFEST]
    assert text_of(path) == "new" and names(tmp_path) == ["out"]


def test_a_second_run_into_the_same_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with OutputDirectory(path) as directory:
        with pytest.raises(InputError, match="another run is writing"), OutputDirectory(path):
            pytest.fail("the block must not run")
        fill(directory)
    assert names(tmp_path) == ["out"]
    with OutputDirectory(path, overwrite=True) as directory:
        fill(directory)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".out.123.abcd.tmp"
    stale.mkdir()
    (stale / "model.onnx").write_text("half")
    (tmp_path / ".out.lock").write_text("")
    (tmp_path / ".other.123.abcd.tmp").mkdir()
    earlier(tmp_path / "out")
    assert names(tmp_path) == [".other.123.abcd.tmp", "out"]


def test_a_disk_that_is_full_leaves_the_old_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = earlier(tmp_path / "out")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(InputError, match="No space left on device"),
        OutputDirectory(path, overwrite=True) as directory,
    ):
        fill(directory)
    assert text_of(path) == "old" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_disk_that_is_full_while_files_are_written_is_told_as_that(tmp_path: Path, number: int) -> None:
    with pytest.raises(InputError, match="cannot be written"), OutputDirectory(tmp_path / "out"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match="Connection refused"), OutputDirectory(tmp_path / "out"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
    assert names(tmp_path) == []


def test_a_crash_between_the_renames_is_mended_by_the_next_run(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    path.rename(tmp_path / ".out.previous")
    with pytest.raises(InputError, match="not empty"), OutputDirectory(path):
        pytest.fail("the block must not run")
    assert text_of(path) == "old"


def test_a_crash_after_the_renames_leaves_the_new_result(tmp_path: Path) -> None:
    path = earlier(tmp_path / "out")
    earlier(tmp_path / ".out.previous")
    with OutputDirectory(path, overwrite=True) as directory:
        fill(directory)
    assert text_of(path) == "new"
    assert names(tmp_path) == ["out"]


def test_what_others_put_there_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(InputError, match="not empty"), OutputDirectory(path) as directory:
        fill(directory)
        path.mkdir()
        fill(path, "old")
    assert text_of(path) == "old"
    assert names(tmp_path) == ["out"]


def test_a_name_taken_by_a_file_or_a_link_is_refused(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("x")
    tmp_path.joinpath("link").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "link"):
        with pytest.raises(InputError, match="taken by a file or a link"), OutputDirectory(tmp_path / name):
            pytest.fail("the block must not run")
    for name in (".", "..", "/"):
        with pytest.raises(InputError, match="cannot be the name"), OutputDirectory(name):
            pytest.fail("the block must not run")


def test_a_parent_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("file").write_text("x")
    with pytest.raises(InputError, match="cannot be written here"), OutputDirectory(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(InputError, match="Permission denied"), OutputDirectory(tmp_path / "out"):
        pytest.fail("the block must not run")


def test_a_result_without_files_or_with_links_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without files"), OutputDirectory(tmp_path / "out"):
        pass
    with pytest.raises(InputError, match="links"), OutputDirectory(tmp_path / "out") as directory:
        (directory / "weights").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda p: (p / "model.onnx").unlink(), "model.onnx: missing"),
        (lambda p: (p / "model.onnx").write_text("newer"), "model.onnx: 5 bytes instead of 3"),
        (lambda p: (p / "model.onnx").write_text("nEw"), "model.onnx: its content has changed"),
        (lambda p: (p / "more").write_text(""), "more: not listed"),
        (lambda p: (p / MANIFEST).unlink(), MANIFEST),
        (lambda p: (p / MANIFEST).write_text("{"), MANIFEST),
        (lambda p: (p / MANIFEST).write_text('{"files": 3}'), MANIFEST),
    ],
)
def test_damage_is_found(tmp_path: Path, damage: Any, problem: str) -> None:
    with OutputDirectory(tmp_path / "out") as directory:
        fill(directory)
    damage(tmp_path / "out")
    (found,) = verify_manifest(tmp_path / "out")
    assert problem in found


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname"])
def test_a_manifest_that_points_outside_is_found(tmp_path: Path, name: str) -> None:
    tmp_path.joinpath(MANIFEST).write_text(json.dumps({"files": [{"path": name, "bytes": 1, "sha256": ""}]}))
    assert verify_manifest(tmp_path) == [f"{name}: points outside the directory or is a link"]


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "plan.json"
    write_json_atomic(file, {"keep": [1, 2]})
    assert json.loads(file.read_text()) == {"keep": [1, 2]}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_text_atomic(file, "half")
    assert json.loads(file.read_text()) == {"keep": [1, 2]}
    assert names(tmp_path) == ["plan.json"]


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(tmp_path / "report.json", {"ppl": float("nan")})
    assert names(tmp_path) == []


def test_a_missing_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_text_atomic(tmp_path / "nothing" / "plan.json", "x")
