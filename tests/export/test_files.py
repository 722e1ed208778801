from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fxslim.export.files import data_name, replace_model
from fxslim.graph.errors import InputError


def write_both(text: bytes, path: Path) -> None:
    path.write_bytes(text)
    path.with_name(data_name(path)).write_bytes(text)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_crash_while_moving_never_leaves_a_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    path = tmp_path / "m.onnx"
    write_both(b"old", path)
    real, calls = os.replace, [0]

    def replace(a: Path, b: Path) -> None:
        calls[0] += 1
        if calls[0] == failing:
            raise OSError("power cut")
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="power cut"):
        replace_model(path, lambda staged: write_both(b"new", staged))
    data = path.with_name(data_name(path))
    assert not path.exists() or path.read_bytes() == data.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_crash_while_writing_leaves_the_old_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    write_both(b"old", path)

    def write(staged: Path) -> None:
        staged.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_model(path, write)
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx_data"]


def test_a_link_is_replaced_and_what_it_points_to_is_not_written(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "m.onnx"
    target.write_bytes(b"mine")
    path.symlink_to(target)
    replace_model(path, lambda staged: write_both(b"new", staged))
    assert target.read_bytes() == b"mine"
    assert path.read_bytes() == b"new" and not path.is_symlink()


def test_a_missing_directory_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        replace_model(tmp_path / "none" / "m.onnx", lambda p: write_both(b"", p))


def test_a_directory_as_target_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory"):
        replace_model(tmp_path, lambda p: write_both(b"", p))


def test_a_full_disk_is_an_input_error_and_leaves_the_old_model(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "model.onnx"
    target.write_bytes(b"old")
    with pytest.raises(InputError, match=r"cannot be written: No space left(.|\n)*free space"):
        replace_model(target, full)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
