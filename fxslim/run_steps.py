"""Steps of a run: who watches them, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Run", "Unwatched", "Watcher"]


class Watcher(Protocol):
    """Is told what the pipeline does."""

    def step(self, name: str) -> None:
        """A step begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Within a step: `done` of `total` are finished, `what` comes next."""


class Unwatched:
    """A watcher that shows nothing."""

    def step(self, name: str) -> None:
        """A step begins."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Within a step."""


@dataclass
class Run:
    """Steps as they happen, with their times in seconds; those whose results an earlier run left are `resumed`."""

    watcher: Watcher
    seconds: dict[str, float] = field(default_factory=dict)
    resumed: list[str] = field(default_factory=list)
    estimated: dict[str, float] = field(default_factory=dict)  # seconds that were said before

    def expect(self, name: str, seconds: float) -> None:
        """Says how long the step `name`, which has begun, will take."""
        self.estimated[name] = seconds
        self.watcher.progress(f"about {seconds:.0f} s", 0, 1)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A block that is the step `name`."""
        self.watcher.step(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
