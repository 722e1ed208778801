"""Commands in several processes: `torchrun --nproc-per-node 4 --module fxslim slim ...`, or `accelerate launch`.

The processes divide the calibration data, and the first one goes on alone from the plan to the report. A recipe with
targets is planned by all of them, and then each makes some of the targets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from fxslim.graph.errors import InputError

__all__ = ["SHARED", "follows", "joined", "spoken"]

SHARED = frozenset({"slim", "run", "plan"})
"""Commands that several processes do together; of all others the first process does everything."""

_PATIENCE = timedelta(hours=12)  # a process may have much to solve while the others wait for it
_MEETING = timedelta(minutes=10)  # until all have started
_LOOK = 0.05  # seconds between looks at who is there


def follows() -> bool:
    """Whether a launcher has started this process as another one than the first."""
    return _number("WORLD_SIZE", 1) > 1 and _number("RANK", 0) > 0


def spoken(text: str) -> str:
    """A message, with who says it where that is not the process that leads."""
    return f"process {_number('RANK', 0)}: {text}" if follows() else text


@contextlib.contextmanager
def joined(command: str) -> Iterator[bool]:
    """The team that a launcher has started this process in, for the time of a block; whether it takes part.

    Without a launcher nothing happens. A team that the caller has made already is left as it is.

    Raises:
        InputError: the launcher's environment is incomplete, or the processes do not find each other.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1 or command not in SHARED:
        yield not follows()
        return
    import torch.distributed as dist  # heavy, and not needed by a process that is alone
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():
        yield True
        return
    try:
        with _signals_end_it():
            store, rank, _ = next(rendezvous("env://", timeout=_MEETING))
            _wait_for_all(store, size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:  # the store's errors are RuntimeErrors
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the {size} processes do not come together: {reason}",
            remedy="start them with torchrun, or unset WORLD_SIZE to run alone",
        ) from error
    try:
        with _silent() if follows() else contextlib.nullcontext():
            yield True
    finally:
        dist.destroy_process_group()


def _wait_for_all(store: Any, size: int) -> None:
    """Returns when so many processes have reached this place; the group itself would wait as long as for a solve.

    Raises:
        RuntimeError: some do not come.
    """
    key, deadline = f"fxslim-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", time.monotonic() + _MEETING.seconds
    there = store.add(key, 1)
    while there < size:
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {_MEETING.seconds // 60} minutes {there} are there")
        time.sleep(_LOOK)
        there = store.add(key, 0)


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """A block that waits outside of Python, where no handler written in it runs: SIGTERM ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit():
        raise InputError(f"the environment variable {variable} is {text!r}, no number", remedy="unset it")
    return int(text)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What the first process says is enough; errors go to standard error all the same."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
