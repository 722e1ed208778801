"""Runs seeds in worker processes: one that dies or takes too long is a finding of its own, the rest go on."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["Job", "Record", "done_already", "run_all"]

Record = dict[str, Any]
"""One line of the results."""

Job = dict[str, Any]
"""What a worker is asked: at least `key`, which its record repeats."""


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: Job | None = None
    since: float = 0.0


def serve(connection: Connection, work: Callable[[Job], Record]) -> None:
    """The loop of a worker: a job comes, a record goes; None ends it."""
    import torch

    torch.set_num_threads(1)
    while (job := connection.recv()) is not None:
        try:
            record = work(job)
        except Exception:  # a finding like any other: the next job is served
            record = {"key": job["key"], "crash": f"in the fuzzer: {traceback.format_exc(limit=-3)}"}
        connection.send(record)


def run_all(jobs: Sequence[Job], work: Callable[[Job], Record], *, workers: int, seconds: float) -> Iterator[Record]:
    """The records of all jobs, as they come; `crash` says how a worker ended that returned none."""
    waiting = list(reversed(jobs))
    pool = [_start(work) for _ in range(min(workers, len(jobs)))]
    try:
        while waiting or any(w.job for w in pool):
            for index, worker in enumerate(pool):
                if worker.job is None and waiting:
                    pool[index] = _hand_over(worker, waiting.pop(), work)
            yield from _collect(pool, work, seconds)
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()


def _start(work: Callable[[Job], Record]) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, work), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _hand_over(worker: _Worker, job: Job, work: Callable[[Job], Record]) -> _Worker:
    if not worker.process.is_alive():
        worker = _start(work)
    worker.connection.send(job)
    worker.job, worker.since = job, time.monotonic()
    return worker


def _collect(pool: list[_Worker], work: Callable[[Job], Record], seconds: float) -> Iterator[Record]:
    """What is there within a second; workers that died or are late are replaced when they are needed."""
    busy = [w for w in pool if w.job is not None]
    ready = wait([w.connection for w in busy], timeout=1.0)
    for worker in busy:
        job = worker.job
        assert job is not None
        if worker.connection in ready:
            try:
                record = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                record = {"key": job["key"], "crash": f"the process ended with {worker.process.exitcode}"}
        elif time.monotonic() - worker.since > seconds:
            worker.process.kill()
            worker.process.join()
            record = {"key": job["key"], "crash": f"not done after {seconds:.0f} s"}
        else:
            continue
        worker.job = None
        yield record


def done_already(path: Path) -> dict[Any, Record]:
    """The records of a results file by key, none where there is no file."""
    if not path.exists():
        return {}
    records = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {record["key"]: record for record in records}
