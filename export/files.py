"""Writes ONNX files so that a crash leaves the old model, the new one, or none: never a mix."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fxslim.graph.errors import InputError
from fxslim.graph.files import sync

__all__ = ["data_name", "replace_model"]


def data_name(path: Path) -> str:
    """The name of the external data beside `path`: `<name>.onnx_data`, the one that Hub downloads look for."""
    return f"{path.name}_data"


def replace_model(path: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with a path of the same name in a temporary directory, then moves what it wrote into place.

    Raises:
        InputError: the directory of `path` does not exist or cannot be written, or `path` is a directory.
    """
    _refuse_unusable(path)
    with _staging(path) as staged:
        write(staged)
        new_data, old_data = staged.with_name(data_name(staged)), path.with_name(data_name(path))
        for file in (new_data, staged):
            if file.exists():
                sync(file)
        if new_data.exists():
            # An old model over new data would be a mix, so the old model goes first.
            path.unlink(missing_ok=True)
            os.replace(new_data, old_data)
            sync(path.parent)
            os.replace(staged, path)
        else:
            os.replace(staged, path)
            old_data.unlink(missing_ok=True)  # it belonged to the model that was just replaced
        sync(path.parent)


def _refuse_unusable(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a directory", remedy="name a file, such as model.onnx")
    if not path.parent.is_dir():
        raise InputError(f"the directory {path.parent} does not exist", remedy="create it, or name another one")


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise InputError(f"the directory {path.parent} cannot be written: {error.strerror}") from error
    try:
        yield folder / path.name
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"the model cannot be written: {error.strerror or error}", at=str(path),
            remedy="free space there, or name a file on another disk",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
