"""What a person sees of a run while it goes on: on standard error, so that standard output is the answer alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fxslim.processes import follows
from fxslim.run_steps import Unwatched, Watcher

__all__ = ["Logged", "Shown", "plain", "watching"]


def plain(text: str) -> str:
    """Text in which `[0]` is no markup."""
    return text.replace("[", "\\[")


class Shown:
    """A watcher that shows each step, and how far it is, on standard error while that is a terminal."""

    def __init__(self, bar: Progress | None) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._name = ""

    def step(self, name: str) -> None:
        """A step begins."""
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.update(self._task, total=1, completed=1, description=self._name)
            self._bar.stop_task(self._task)
        self._name = name
        self._task = self._bar.add_task(name, total=None)

    def progress(self, what: str, done: int, total: int) -> None:
        """Within a step: `done` of `total` are finished, `what` comes next."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=f"{self._name} {plain(what[-40:])}")


class Logged:
    """A watcher that writes a line for each step, with the seconds that it took, on standard error."""

    def __init__(self) -> None:
        self._name, self._start = "", time.perf_counter()
        self._tenths = 0

    def step(self, name: str) -> None:
        """A step begins."""
        self.close()
        self._name, self._start, self._tenths = name, time.perf_counter(), 0
        typer.echo(f"{name} ...", err=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """Within a step: a line for each tenth of it."""
        if total and (tenths := 10 * done // total) > self._tenths:
            self._tenths = tenths
            typer.echo(f"{self._name}: {done} of {total}, {what}", err=True)

    def close(self) -> None:
        """The last step has ended."""
        if self._name:
            typer.echo(f"{self._name}: {time.perf_counter() - self._start:.1f} s", err=True)


@contextmanager
def watching(quiet: bool, verbose: bool = False) -> Iterator[Watcher]:
    """A watcher for the time of a block."""
    stderr = Console(stderr=True)
    if follows():
        yield Unwatched()
        return
    if verbose:
        logged = Logged()
        yield logged
        logged.close()
        return
    if quiet or not stderr.is_terminal:
        yield Shown(None)
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=stderr, transient=True) as bar:
        yield Shown(bar)
