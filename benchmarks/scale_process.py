"""A measurement in a process of its own: its seconds by phase, and the most memory up to then."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

COLUMNS = ("what", "seconds", "CPU seconds", "own memory, MiB", "with files, MiB", "nodes", "groups", "note")
_EVERY = 0.01  # seconds between looks at the memory


class Phases:
    """Seconds of what is done one after the other, and the most memory so far. Prints one line of JSON each. With a
    limit (MiB) the process ends as soon as it holds more that belongs to no file."""

    def __init__(self, limit_mib: int | None = None) -> None:
        self._peak, self._limit = 0, limit_mib
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, anonymous())
            if self._limit is not None and self._peak > self._limit << 20:
                print(f"{self._peak >> 20} MiB of memory, {self._limit} are allowed", file=sys.stderr, flush=True)
                os._exit(1)
            time.sleep(_EVERY)

    @contextmanager
    def phase(self, what: str, **more: Any) -> Iterator[dict[str, Any]]:
        """One phase; what is put into the dictionary is printed with it."""
        facts: dict[str, Any] = dict(more)
        self._peak, start, busy = anonymous(), time.perf_counter(), time.process_time()
        yield facts
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            json.dumps({
                "what": what, "seconds": round(seconds, 1), "CPU seconds": round(busy, 1),
                "own memory, MiB": max(self._peak, anonymous()) >> 20, "with files, MiB": highest >> 10, **facts,
            }), flush=True,
        )  # fmt: skip


def anonymous() -> int:
    """Bytes of this process that are in memory and belong to no file."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def allow_mapping(size: int) -> None:
    """Raises this process's own limit by the size of a file that a library is about to map as private and writable:
    RLIMIT_DATA counts such a mapping, though it takes no memory of its own until it is written to. `Phases` goes on
    watching what does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (soft + size, hard))


def measured(module: str, arguments: Sequence[str], limit_mib: int | None = None) -> list[dict[str, Any]]:
    """What `python -m module arguments` printed as phases, run with a limit to its memory. One thread.

    Raises:
        SystemExit: it failed; its errors are on standard error.
    """

    def limited() -> None:
        if limit_mib is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit_mib << 20, resource.RLIM_INFINITY))

    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    # One arena for all threads: the memory that glibc reserves for each further one counts as taken.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=limited, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as a table in Markdown; columns that no row has anything for are left out."""
    columns = [column for column in COLUMNS if any(column in row for row in rows)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*lines, *(f"| {' | '.join(str(row.get(column, '')) for column in columns)} |" for row in rows)]
