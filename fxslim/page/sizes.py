"""How large each part of a model is, before and after: rows of bars, by module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Bar", "Bars", "module_bars", "module_of"]

ROWS = 48  # modules that a reader can take in; beyond that they are summed up by what holds them
_FEW = 6  # fewer rows than this say too little: then there may be many
_MOST = 1000
_SMALL = 1.0  # % of the largest part


@dataclass(frozen=True)
class Bar:
    """One part of the model: scalars before and after, and bars from 0 to 100 beside the largest part."""

    name: str
    before: int
    after: int
    width_before: float
    width_after: float

    @property
    def share(self) -> float | None:
        """What remains of it; None where it is new."""
        return self.after / self.before if self.before else None


@dataclass(frozen=True)
class Bars:
    """The parts of a model in its order; `more` are shown when they are asked for. `quiet` says that those are small,
    and as large as before."""

    inside: str  # what holds all of them, which their names leave out
    bars: tuple[Bar, ...]
    more: tuple[Bar, ...]
    quiet: bool


def module_of(weight: str) -> tuple[str, ...]:
    """The path of the module that holds a weight: `("layers", "0", "fc1")`."""
    return tuple(weight.split(".")[:-1])


def module_bars(weights: dict[str, Any]) -> Bars:
    """The modules with their sizes, in the order of the model, at the finest depth that gives few enough of them."""
    sums = _chosen(weights["rows"])
    inside = _common(list(sums))
    sums = {path[len(inside) :]: pair for path, pair in sums.items()}
    rest = weights["rest"]
    if rest["weights"]:
        sums[(f"{rest['weights']:,} small weights",)] = (rest["params"][0], rest["params"][1])
    most = max((max(pair) for pair in sums.values()), default=0) or 1
    bars = [
        Bar(".".join(path) or "(the model itself)", before, after, 100 * before / most, 100 * after / most)
        for path, (before, after) in sums.items()
    ]
    shown = [b for b in bars if not _quiet(b)][:ROWS] or bars[:ROWS]
    names = {b.name for b in shown}
    more = tuple(b for b in bars if b.name not in names)
    return Bars(".".join(inside), tuple(shown), more, all(map(_quiet, more)))


def _quiet(bar: Bar) -> bool:
    """Whether a part says nothing: it did not change, and next to others it is small."""
    return bar.before == bar.after and bar.width_before < _SMALL


def _chosen(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], tuple[int, int]]:
    deepest = max((len(module_of(row["name"])) for row in rows), default=0)
    finer, sums = {}, _sums(rows, deepest)
    for depth in range(deepest - 1, -1, -1):
        if len(sums) <= ROWS:
            break
        finer, sums = sums, _sums(rows, depth)
    return finer if len(sums) < _FEW and 0 < len(finer) <= _MOST else sums


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The modules that hold all of several, at least one short of each."""
    if len(paths) < 2:
        return ()
    shortest = min(len(path) for path in paths) - 1
    length = next((n for n in range(shortest) if len({path[n] for path in paths}) > 1), max(0, shortest))
    return paths[0][:length]


def _sums(rows: Sequence[dict[str, Any]], depth: int) -> dict[tuple[str, ...], tuple[int, int]]:
    sums: dict[tuple[str, ...], tuple[int, int]] = {}
    for row in rows:
        path = module_of(row["name"])[:depth]
        before, after = sums.get(path, (0, 0))
        sums[path] = (before + row["params"][0], after + row["params"][1])
    return sums
