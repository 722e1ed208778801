"""The processes that share a calibration: each runs its part of the data, sums are added up over all of them, and what
is solved from a sum is solved once and handed round.

A team is torch.distributed's default process group, whoever has started it (`torchrun`, `accelerate launch`, a
cluster). Without one a process is alone, and nothing of this costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fxslim.graph.errors import InputError, LocalError

__all__ = ["ALONE", "Team", "apart", "current_team", "nothing_of", "others_at_work"]

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """One process of `size`, the number `rank` of them. All must make the same calls in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes what comes out."""
        return self.rank == 0

    def share(self, count: int, *, few: bool = False) -> range:
        """Which of `count` batches this process runs: every `size`-th, so that all see some of what is learned from and
        of what is held out. With `few` there may be none for the last processes.

        Raises:
            InputError: there are fewer batches than processes.
        """
        if count < self.size and not few:
            raise InputError(
                f"the calibration data has fewer batches ({count}) than there are processes ({self.size})",
                remedy="start fewer processes, or give more data (--samples)",
            )
        return range(self.rank, count, self.size)

    def total(self, statistic: T) -> T:
        """A tensor, a number, or a dataclass of them, added up over all processes: the same bits everywhere."""
        if self.size == 1:
            return statistic
        if isinstance(statistic, Tensor):
            return self._summed(statistic)  # type: ignore[return-value]
        if isinstance(statistic, int | float):
            kind = torch.int64 if isinstance(statistic, int) else torch.float64
            return type(statistic)(self._summed(torch.tensor(statistic, dtype=kind)).item())
        assert is_dataclass(statistic) and not isinstance(statistic, type)
        return replace(statistic, **{f.name: self.total(getattr(statistic, f.name)) for f in fields(statistic)})

    def total_of_few(self, statistic: T | None, parts: int) -> T:
        """The same where only the first `parts` processes have a statistic, at least the one that leads."""
        if parts < self.size:
            outline = self.handed(_outline(statistic) if self.leads else None)
            statistic = nothing_of(outline) if statistic is None else statistic
        assert statistic is not None
        return self.total(statistic)

    def handed(self, value: T, source: int = 0) -> T:
        """What the process `source` has as `value`."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.rank == source else None]
        with _together():
            dist.broadcast_object_list(box, src=source, device=_device())
        return box[0]  # type: ignore[no-any-return]

    def solved(self, number: int, solve: Callable[[], T]) -> T:
        """What `solve` returns where it is the turn of a process to run it, which goes by `number`."""
        if self.size == 1:
            return solve()
        return cast("T", self.handed(solve() if self.turn(number) else None, number % self.size))

    def gathered(self, mine: dict[str, T]) -> dict[str, T]:
        """What all processes have together, in the order of their numbers."""
        if self.size == 1:
            return mine
        everyone: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(everyone, mine)
        return {name: value for part in everyone for name, value in part.items()}

    def turn(self, number: int) -> bool:
        """Whether work that goes by `number` is this process's."""
        return number % self.size == self.rank

    @staticmethod
    def _summed(tensor: Tensor) -> Tensor:
        held = tensor.to(_device(), copy=True).contiguous()
        with _together():
            dist.all_reduce(held)
        return held.to(tensor.device)


ALONE = Team()
_apart: ContextVar[bool] = ContextVar("apart", default=False)


def current_team() -> Team:
    """The team that this process is in."""
    if _apart.get() or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    return Team(dist.get_rank(), dist.get_world_size())


@contextmanager
def apart() -> Iterator[None]:
    """A block in which this process works on something of its own, as if it were alone."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def others_at_work() -> int:
    """How many other processes of the team work on something of their own, as this one does."""
    return dist.get_world_size() - 1 if _apart.get() and dist.is_available() and dist.is_initialized() else 0


def nothing_of(statistic: T) -> T:
    """The statistic of no data at all, shaped like another one, or like the outline of one."""
    return _empty(statistic, lambda t: torch.zeros_like(t, device="cpu" if t.is_meta else t.device))


def _outline(statistic: T) -> T:
    """A statistic without its values, as `nothing_of` takes it."""
    return _empty(statistic, lambda t: torch.empty_like(t, device="meta"))


def _empty(statistic: T, make: Callable[[Tensor], Tensor]) -> T:
    if isinstance(statistic, Tensor):
        return make(statistic)  # type: ignore[return-value]
    if isinstance(statistic, int | float):
        return type(statistic)(0)
    assert is_dataclass(statistic) and not isinstance(statistic, type)
    return replace(statistic, **{f.name: _empty(getattr(statistic, f.name), make) for f in fields(statistic)})


@contextmanager
def _together() -> Iterator[None]:
    """A block in which all processes take part.

    Raises:
        LocalError: another process does not any more.
    """
    try:
        yield
    except RuntimeError as error:  # of the transport: each backend has words of its own
        raise LocalError(
            "another process of the team has ended, or cannot be reached any more",
            rule="all processes make the same calls, and wait for each other",
            remedy="look for what that process has said; else start them again",
        ) from error


def _device() -> torch.device:
    """Where the backend of the team takes tensors from: NCCL takes them from the GPU alone."""
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
