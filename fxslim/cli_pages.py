"""Pages and pictures that the command line writes."""

from __future__ import annotations

from pathlib import Path

from fxslim.graph.errors import InputError
from fxslim.outputs import MANIFEST, write_text_atomic

__all__ = ["refuse_taken", "write_page"]


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Returns if a page may be written to `path`; asked before the work, not after it.

    Raises:
        InputError: there is a file already, or no folder, or it would lie in a result, whose files are hashed.
    """
    target = path.expanduser()
    if not target.parent.is_dir():
        raise InputError("there is no such folder", at=str(target.parent), remedy="make it first")
    if target.is_dir() or (target.exists() and not overwrite):
        raise InputError("the file exists", at=str(path), remedy="choose another name, or give --overwrite")
    if target.parent.joinpath(MANIFEST).is_file():
        raise InputError(
            f"the folder is a result with a {MANIFEST}, which a new or another file would break", at=str(path),
            remedy="write it to another folder",
        )  # fmt: skip


def write_page(path: Path, text: str, *, overwrite: bool) -> None:
    """Writes a page or a picture whole or not at all.

    Raises:
        InputError: it cannot be written, or as `refuse_taken` says.
    """
    refuse_taken(path, overwrite=overwrite)
    write_text_atomic(path.expanduser(), text)
