"""Results on disk, whole or not at all: a directory that moves into place when complete, with a manifest."""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from fxslim.graph.errors import InputError
from fxslim.graph.files import sync

__all__ = [
    "MANIFEST",
    "OutputDirectory",
    "release",
    "replace_whole",
    "verify_manifest",
    "write_json_atomic",
    "write_manifest",
    "write_text_atomic",
]

MANIFEST = "manifest.json"
"""Name of the file that lists all others of a result, with their hashes."""

_FORMAT = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_CHUNK = 1 << 20


class OutputDirectory:
    """A result directory as a context manager: `with OutputDirectory("out") as directory: ...` gives the Path to fill.

    The files are written beside `path` under a temporary name. When the block ends well, the manifest is written last
    and the directory moves into place; when it raises, or is interrupted, nothing of it stays and what was at `path` is
    as before. With `overwrite`, an earlier result at `path` is kept until the new one is whole. `facts` go into the
    manifest, and `after` is called once the result is in its place. One process at a time writes to `path`; what a
    killed one left is removed by the next.

    Raises:
        InputError: `path` is not empty (or, with `overwrite`, is no earlier result), cannot be written to, or another
            process is writing it.
    """

    def __init__(
        self, path: str | Path, *, overwrite: bool = False, facts: dict[str, Any] | None = None,
        after: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path).expanduser()
        refuse_nameless(self.path)
        self.overwrite = overwrite
        self.facts, self.after = dict(facts or {}), after
        self._temporary = self.path
        self._previous = self.path.with_name(f".{self.path.name}.previous")
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)

    def __enter__(self) -> Path:
        """The empty temporary directory to fill."""
        try:
            self._refuse_occupied()
        except OSError as error:  # a name that is too long, say
            raise InputError(f"the result cannot be written here: {error.strerror}", at=str(self.path)) from error
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        except OSError as error:
            raise InputError(
                f"the result cannot be written here: {error.strerror or error}",
                at=str(self.path),
                remedy="choose a directory whose parent is yours to write to",
            ) from error
        try:
            self._acquire()
            self._recover(temporary)
            self._refuse_occupied()
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            release(self._lock)
            raise
        self._temporary = temporary
        return temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Moves the finished directory into place, or removes it if the block raised."""
        try:
            if kind is None:
                write_manifest(self._temporary, self.facts)
                self._move_into_place()
                if self.after is not None:
                    self.after()
            elif isinstance(error, OSError) and self._is_own(error):
                raise error  # to be told as what it is
        except OSError as problem:  # a disk that is full, say
            raise InputError(
                f"the result cannot be written: {problem.strerror or problem}", at=str(self.path)
            ) from problem
        finally:  # after the move there is nothing left under the temporary name
            shutil.rmtree(self._temporary, ignore_errors=True)
            release(self._lock)

    def _is_own(self, error: OSError) -> bool:
        """Whether an error that the block raised is about the files that it writes."""
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return error.errno in _FULL or any(str(self._temporary) in name for name in named)

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(
                "another run is writing to this directory", at=str(self.path), remedy="wait for it, or choose another"
            ) from None

    def _recover(self, own: Path) -> None:
        """Removes what a killed run left, and finishes what one between the two renames of `replace_whole` began."""
        for stale in set(self.path.parent.glob(f".{glob.escape(self.path.name)}.*.tmp")) - {own}:
            shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
        if not self._previous.is_dir():
            return
        if _is_free(self.path):
            os.replace(self._previous, self.path)
        else:
            shutil.rmtree(self._previous)

    def _refuse_occupied(self) -> None:
        if _is_free(self.path):
            return
        if self.path.is_symlink() or not self.path.is_dir():
            raise InputError(
                "the result's name is taken by a file or a link", at=str(self.path), remedy="choose another"
            )
        if not self.overwrite:
            raise InputError(
                "the output directory is not empty", at=str(self.path), remedy="choose another, or give --overwrite"
            )
        if not self.path.joinpath(MANIFEST).is_file():
            raise InputError(
                f"the directory has no {MANIFEST}: it is no earlier result, so it is not replaced",
                at=str(self.path),
                remedy="choose another directory",
            )

    def _move_into_place(self) -> None:
        # Asked again: something may have been put here since the block began.
        self._refuse_occupied()
        replace_whole(self._temporary, self.path, self._previous)


def refuse_nameless(path: Path) -> None:
    """Returns if something beside `path` can be named after it.

    Raises:
        InputError: it is the current directory, or one above it.
    """
    if path.name in ("", ".."):
        raise InputError("this cannot be the name of a result", at=str(path), remedy="name a new directory")


def release(lock: FileLock) -> None:
    """Frees a lock, if it is held, and removes its file."""
    if not lock.is_locked:
        return
    file = Path(lock.lock_file)
    if os.name == "nt":  # an open file cannot be removed there
        lock.release()
        with suppress(OSError):
            file.unlink(missing_ok=True)
    else:
        file.unlink(missing_ok=True)  # before it is free: no one else can hold it now
        lock.release()


def replace_whole(new: Path, path: Path, previous: Path | None = None) -> None:
    """Moves the directory `new` to `path`. What is there goes once the new one is in its place: at `path` there is the
    old or the new at every moment where the system can exchange two names; elsewhere, for an instant, the old one is
    at `previous` alone.

    Raises:
        OSError: it cannot be moved; the old one is where it was.
    """
    if not path.is_dir() or not any(path.iterdir()):
        os.replace(new, path)
    elif _exchange(new, path):
        shutil.rmtree(new, ignore_errors=True)
    else:
        away = previous or path.with_name(f".{path.name}.previous")
        os.replace(path, away)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(away, path)
            raise
        shutil.rmtree(away)
    sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two names were exchanged at once: Linux can (renameat2, RENAME_EXCHANGE), most file systems too."""
    if not sys.platform.startswith("linux"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # a libc without it
        return False
    failed: int = call(here, os.fsencode(one), here, os.fsencode(other), exchange)
    return not failed


def verify_manifest(directory: str | Path) -> list[str]:
    """What is wrong with a result: missing, changed and unlisted files, one line each; empty if it is whole.

    A missing or unreadable manifest is a problem too, so an empty list always means that every file was hashed.
    """
    root = Path(directory)
    try:
        entries = json.loads(root.joinpath(MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {str(e["path"]): (int(e["bytes"]), str(e["sha256"])) for e in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be read: {type(error).__name__}: {error}"]
    problems = []
    for name, (size, digest) in sorted(listed.items()):
        relative = PurePosixPath(name)
        file = root / relative
        if relative.is_absolute() or ".." in relative.parts or file.is_symlink():
            problems.append(f"{name}: points outside the directory or is a link")
        elif not file.is_file():
            problems.append(f"{name}: missing")
        elif (found := file.stat().st_size) != size:
            problems.append(f"{name}: {found} bytes instead of {size}")
        elif _sha256(file) != digest:
            problems.append(f"{name}: its content has changed")
    present = {f.relative_to(root).as_posix() for f in root.rglob("*") if not f.is_dir() or f.is_symlink()}
    problems += [f"{name}: not listed" for name in sorted(present - {*listed, MANIFEST})]
    return problems


def write_text_atomic(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8 so that a reader, or a crash, finds the old file or the new one and nothing between.

    Raises:
        InputError: the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the file cannot be written: {error.strerror or error}", at=str(target)) from error


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and Inf are no JSON and raise ValueError.

    Raises:
        InputError: the file cannot be written.
    """
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _is_free(path: Path) -> bool:
    if path.is_symlink():
        return False
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def write_manifest(root: Path, facts: dict[str, Any]) -> None:
    """Writes the manifest of all files below a directory, with `facts`; what it lists is on the disk then.

    Raises:
        InputError: there is no file, or a link.
    """
    files = []
    for file in sorted(root.rglob("*")):
        if file.is_symlink():
            raise InputError("a result may not hold links", at=str(file.relative_to(root)), remedy="copy the file")
        if file.is_file():
            sync(file)
            name = file.relative_to(root).as_posix()
            files.append({"path": name, "bytes": file.stat().st_size, "sha256": _sha256(file)})
    if not files:
        raise InputError("a result without files is none", at=str(root))
    write_json_atomic(root / MANIFEST, {**facts, "format": _FORMAT, "files": files})
    sync(root)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
