"""Runs the sweep: every model in a process of its own with a time limit, rows as they come."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import MISSING, fields
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.zoo.case import Build
from benchmarks.zoo.measure import COLUMNS, Row, measure

__all__ = ["LIBRARIES", "names_of", "read_csv", "read_rows", "run", "write_csv"]

LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "transformers": "hf"}
_MODULES = {**LIBRARIES, "tests": "selftest"}
_PRELOAD = ["torch", "onnxruntime", "onnxscript", "benchmarks.zoo.measure", "fxslim.export", "benchmarks.zoo.warm"]


def builds_of(library: str) -> dict[str, Build]:
    """The models of a library by name."""
    found: dict[str, Build] = import_module(f"benchmarks.zoo.{_MODULES[library]}").cases()
    return found


def names_of(library: str) -> list[str]:
    """The names of the models of a library, found in a process of its own: importing one may change another."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_names, (library,))


def _names(library: str) -> list[str]:
    return list(builds_of(library))


def run(
    library: str, names: Sequence[str], jobs: int, limit_s: float, done: Callable[[Row], None], *, static: bool = False
) -> None:
    """Measures models side by side; `done` is called with each row as it comes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOAD, f"benchmarks.zoo.{_MODULES[library]}"])
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_isolated, context, library, name, limit_s, static) for name in names]
        for future in as_completed(futures):
            done(future.result())


def _isolated(context: Any, library: str, name: str, limit_s: float, static: bool) -> Row:
    """The row of a model measured in a process of its own, or why there is none."""
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(library, name, static, theirs))
    process.start()
    theirs.close()
    row = Row(library, name)
    try:
        if ours.poll(limit_s):
            return Row(**ours.recv())
        row.ended("too slow", f"not done after {limit_s:.0f} s")
    except EOFError:
        process.join(10)
        row.ended("crashed", f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
        ours.close()
    return row


def _child(library: str, name: str, static: bool, out: Connection) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    out.send(measure(library, name, builds_of(library)[name], static=static).to_dict())
    out.close()


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """All rows as a table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.to_dict() for row in sorted(rows, key=lambda r: (r.library, r.model)))
    part.replace(path)


def read_csv(path: Path) -> list[Row]:
    """The rows of a table that `write_csv` wrote; none where there is no file."""
    if not path.exists():
        return []
    types = {f.name: type(f.default) if f.default is not MISSING else str for f in fields(Row)}
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


def read_rows(path: Path) -> Iterator[Row]:
    """Rows from a file of JSON lines; a line that was cut off by a crash ends it."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):
                yield Row(**json.loads(line))
