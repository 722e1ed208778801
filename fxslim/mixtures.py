"""Mixtures: rows of several sources in given shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxslim.batches import Rows
from fxslim.graph.errors import InputError

__all__ = ["GENERATED", "Mixture", "apportion", "largest_total", "mixed"]

GENERATED = "self"  # in the place of a file: the model writes the text


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data with weights: `Mixture([("code.txt", 0.7), (texts, 0.3)])`. A share is a weight divided by the sum of all.

    Raises:
        InputError: there is no part, a weight is not positive, or a file is named twice.
    """

    parts: Sequence[tuple[str | Path | Iterable[Any], float]]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("a mixture of nothing", remedy="give at least one part")
        for data, weight in self.parts:
            if not (math.isfinite(weight) and weight > 0):
                raise InputError(f"the weight of a part is {weight}", at=str(data), remedy="give a number above 0")
        named = [_place(data) for data, _ in self.parts if isinstance(data, str | Path)]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise InputError(
                "a part is given twice, so that its rows could be drawn twice",
                at=Path(twice[0]).name,
                remedy="give it once, with the sum of its weights",
            )

    @staticmethod
    def parse(words: Sequence[str]) -> Mixture:
        """The mixture that the command line names: `code.txt=0.7 wiki.jsonl=0.3`; a part without a weight weighs 1.

        Raises:
            InputError: as the class.
        """
        return Mixture([_parsed(word) for word in words])

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of every part, between 0 and 1."""
        total = math.fsum(weight for _, weight in self.parts)
        return tuple(weight / total for _, weight in self.parts)


def _place(data: str | Path) -> str:
    """The same for all spellings of a file's name."""
    return str(data) if str(data) == GENERATED else str(Path(data).expanduser().resolve())


def _parsed(word: str) -> tuple[str, float]:
    path, found, weight = word.rpartition("=")
    if not found or Path(word).expanduser().exists():  # a name may contain the sign
        return word, 1.0
    try:
        return path, float(weight)
    except ValueError as error:
        raise InputError(
            f"{weight!r} is not a weight", at=word, remedy="write PATH=WEIGHT, such as code.txt=0.7"
        ) from error


def apportion(total: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Whole rows for every share, which add up to `total`: each within one row of total · share (largest remainders,
    Hamilton 1792)."""
    exact = [total * share for share in shares]
    counts = [math.floor(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return tuple(counts)


def largest_total(limit: int | None, shares: Sequence[float], available: Sequence[int | None], step: int = 1) -> int:
    """The most rows, at most `limit` and a multiple of `step`, of which every part can give its share. None in
    `available`: any number.

    Raises:
        InputError: nothing bounds it.
    """
    bounds = [math.floor((n + 1) / share) for n, share in zip(available, shares, strict=True) if n is not None]
    if limit is not None:
        bounds.append(limit)
    if not bounds:
        raise InputError("nothing says how many rows the mixture has", remedy="give a limit (--samples)")
    total = min(bounds) // step * step
    while any(n is not None and c > n for c, n in zip(apportion(total, shares), available, strict=True)):
        total -= step
    return total


def mixed(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts as one, each part spread evenly: any stretch of rows holds the parts in their shares, as
    the batches must by which refits are judged. Labels stay where all parts have them.

    Raises:
        InputError: the parts have rows of different shapes.
    """
    names = [name for name in parts[0].arrays if all(name in part.arrays for part in parts)]
    arrays = {}
    for name in names:
        shapes = {tuple(part.arrays[name].shape[1:]): part.source for part in parts}
        if len(shapes) > 1:
            said = ", ".join(f"{list(shape)} in {source}" for shape, source in shapes.items())
            raise InputError(
                f"the parts of a mixture have rows of different shapes: {said}",
                at=f"input {name}",
                remedy="give a window (--window) that all parts have",
            )
        arrays[name] = torch.cat([part.arrays[name] for part in parts])
    places = torch.cat([(torch.arange(len(part), dtype=torch.float64) + 0.5) / len(part) for part in parts])
    order = places.sort(stable=True).indices
    numbers = torch.cat([part.numbers for part in parts])
    tokens = parts[0].tokens if all(part.tokens == parts[0].tokens for part in parts) else 0
    source = " + ".join(part.source for part in parts)
    return Rows(arrays, numbers, source, tokens).take(order)
