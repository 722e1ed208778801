"""Models larger than memory: where their weights and activations wait on disk, and what cannot be done with them."""

from __future__ import annotations

import ctypes
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock

from fxslim.graph.errors import InputError, LocalError
from fxslim.graph.program import Program
from fxslim.graph.stores import Placement, Spill
from fxslim.outputs import release
from fxslim.slim_options import SlimOptions

__all__ = ["device_of", "place", "refuse_unstreamable", "scratch_beside"]

_WHOLE = {
    "taylor": "the gradients of all weights are needed at once",
}
"""Importances for which every weight has to be in memory, and why."""

_SCRATCH, _LOCK = ".fxslim-", ".lock"
_FRESH = 60.0  # seconds that a lock may be there before its folder is
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt
_LARGE = 1 << 20  # bytes


def device_of(name: str | None) -> torch.device | None:
    """The device on which pieces run; None for the CPU.

    Raises:
        InputError: there is no such device here.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        unknown = "Expected one of" in str(error)
        reason = "there is no such kind" if unknown else (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(
            f"--device {name} cannot be used: {reason}", remedy="give cuda or cuda:N, or cpu (which it is without)"
        ) from error
    if device.type == "meta":
        raise InputError("--device meta computes nothing", remedy="leave it out to run on the CPU")
    return None if device.type == "cpu" else device


def place(program: Program, folder: Path | None, options: SlimOptions) -> None:
    """Has a program run as the options say: what replaces its weights goes to `folder` where it is streamed.

    Raises:
        InputError: there is no such device here.
    """
    device = device_of(options.device)
    if options.stream and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        _return_freed_memory()
        program.weights.spill = Spill(folder)
    program.weights.placement = Placement(device=device, offload=options.offload_activations)


def _return_freed_memory() -> None:
    """Has glibc give freed blocks of a megabyte or more back to the system at once. It would keep those of up to 32 MB
    for the next that fits, and with blocks of many sizes hold half as much again as is in use."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def refuse_unstreamable(options: SlimOptions) -> None:
    """Returns if everything that the options ask for can be done weight by weight, or nothing is streamed.

    Raises:
        InputError: it cannot; what, and why.
    """
    if not options.stream:
        return
    measured = "both models would have to run whole to be timed"
    narrow = "the file in another type is made in memory"
    refused = {
        "--of latency": (options.of == "latency", measured),
        "--min-speedup": (options.min_speedup is not None, measured),
        "--quantize": (options.quantize is not None, narrow),
        "--onnx-dtype": (options.onnx_dtype is not None, narrow),
        "--loader-compatible": (options.loader_compatible, "the loader holds the whole model"),
        f"--importance {options.importance}": (options.importance in _WHOLE, _WHOLE.get(options.importance or "", "")),
    }
    for flag, (asked, why) in refused.items():
        if asked:
            raise InputError(f"--stream cannot be used with {flag}: {why}", remedy="leave one of them out")


@contextmanager
def scratch_beside(out: Path | None, *, wanted: bool) -> Iterator[Path | None]:
    """A folder for the time of a block, if it is wanted, on the disk of the result (or of the current directory): a
    temporary folder of the system may be in memory. What killed runs left there goes.

    Raises:
        InputError: it cannot be made.
    """
    if not wanted:
        yield None
        return
    where = Path.cwd() if out is None else out.expanduser().absolute().parent
    made = where / f"{_SCRATCH}{secrets.token_hex(4)}"
    lock = FileLock(made.with_suffix(_LOCK), timeout=0)
    try:
        where.mkdir(parents=True, exist_ok=True)
        _tidy(where)
        lock.acquire()  # before the folder is there: one without a lock is nobody's
        made.mkdir()
    except OSError as error:
        release(lock)
        raise LocalError(f"weights cannot be spilled to disk: {error.strerror}", at=str(where)) from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        release(lock)


def _tidy(where: Path) -> None:
    """Removes the folders whose process is no more: its lock is free."""
    for left in where.glob(f"{_SCRATCH}*"):
        lock = FileLock(left.with_suffix(_LOCK), timeout=0)
        try:
            if left.suffix == _LOCK and (left.with_suffix("").is_dir() or time.time() - left.stat().st_mtime < _FRESH):
                continue  # goes with its folder, or has none yet
            lock.acquire()
        except OSError:
            continue  # at work, or somebody else's
        shutil.rmtree(left.with_suffix(""), ignore_errors=True)
        release(lock)
