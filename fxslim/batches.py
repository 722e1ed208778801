"""Rows of data, drawn with a seed and cut into batches of a program's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fxslim.graph.errors import InputError
from fxslim.inputs import InputSpec, check
from fxslim.passes.statistics import digest

__all__ = ["LABELS", "Batches", "DataPart", "Options", "Rows", "cut", "fixed_batch"]

LABELS = "labels"
"""Name of the array that holds what the model should answer."""


@dataclass(frozen=True)
class DataPart:
    """What one source gave to a set of batches. `share` is what was asked of it, between 0 and 1."""

    source: str
    share: float
    rows: int
    tokens: int  # of text; 0 where the data is not text
    available: int | None  # rows that the source holds; None where it was not read to its end, or has none


@dataclass(frozen=True, eq=False)
class Batches:
    """Inputs of a program, batch by batch, in the order of its `input_names`."""

    input_names: tuple[str, ...]
    inputs: tuple[tuple[torch.Tensor, ...], ...]
    labels: tuple[torch.Tensor, ...] | None
    rows: int  # windows of text, images, ...: what a batch counts
    tokens: int  # of text; 0 where the data is not text
    source: str  # the file, `memory`, `self`, or several of them
    sha256: str  # of the file, or of the values
    description: str
    parts: tuple[DataPart, ...] = ()  # one for each source

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """The flat inputs, batch by batch."""
        return iter(self.inputs)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.inputs)

    def digest(self) -> str:
        """A hash of the values of the inputs and the labels."""
        return digest((*self.inputs, self.labels or ()))


@dataclass(frozen=True)
class Options:
    """How data is drawn and cut. `text_field` None: `text`, where the data is text at all."""

    limit: int | None
    window: int | None
    batch_size: int
    seed: int
    text_field: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("window", self.window), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}", remedy=f"give a {name} of at least 1")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one source: arrays [n, ...] by input name, and `labels` [n, ...] where there are any."""

    arrays: Mapping[str, torch.Tensor]
    numbers: torch.Tensor  # [n] int64: which row of its source each one is
    source: str
    tokens: int = 0  # of text in each row; 0 where the data is not text
    available: int | None = None  # as in DataPart
    sha256: str | None = None  # of the file that they come from
    note: str = ""  # how they came about, behind their number

    @staticmethod
    def every(arrays: Mapping[str, torch.Tensor], source: str, tokens: int = 0, sha256: str | None = None) -> Rows:
        """All rows that a source holds."""
        count = len(next(iter(arrays.values())))
        return Rows(arrays, torch.arange(count), source, tokens, count, sha256)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.numbers)

    def take(self, index: torch.Tensor) -> Rows:
        """The rows at `index` [m], in that order."""
        arrays = {name: array[index] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, numbers=self.numbers[index])

    def draw(self, count: int | None, seed: int) -> Rows:
        """`count` rows drawn without replacement, in their order; all where there are no more than that."""
        if count is None or count >= len(self):
            return self
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return replace(self.take(drawn.sort().values), note=f"{self.note} drawn with seed {seed}")

    def refuse_misfits(self, specs: Sequence[InputSpec]) -> None:
        """Returns if every row fits the program's inputs.

        Raises:
            InputError: a row does not fit; the message names the source, the input and the row.
        """
        check([self.arrays[s.name] for s in specs], specs, self.source, self.numbers)

    def part(self, share: float = 1.0) -> DataPart:
        """What these rows are, without the rows."""
        return DataPart(self.source, share, len(self), len(self) * self.tokens, self.available)

    def description(self) -> str:
        """These rows in words: `64 of 120 windows of 256 tokens of code.txt drawn with seed 0`."""
        kind = f"windows of {self.tokens} tokens" if self.tokens else "rows"
        known = f" of {self.available}" if self.available is not None else ""
        return f"{len(self)}{known} {kind} of {Path(self.source).name}{self.note}"


def fixed_batch(specs: Sequence[InputSpec]) -> int | None:
    """Rows in every batch that the program takes; None where it takes any number."""
    return next((s.shape[0] for s in specs if s.shape and s.shape[0] is not None), None)


def cut(rows: Rows, specs: Sequence[InputSpec], size: int, parts: tuple[DataPart, ...] = ()) -> Batches:
    """Batches of `size` rows, or of as many as the program takes: then the rest is dropped.

    Raises:
        InputError: there are fewer rows than the program's fixed batch.
    """
    fixed = fixed_batch(specs)
    count = len(rows) // fixed * fixed if fixed else len(rows)
    if not count:
        raise InputError(f"there are {len(rows)} rows, fewer than the program's batch of {fixed}", at=rows.source)
    kept = rows.take(torch.arange(count)) if count < len(rows) else rows
    places = torch.arange(count).split(fixed or size)  # type: ignore[no-untyped-call]
    inputs = tuple(tuple(kept.arrays[s.name][place] for s in specs) for place in places)
    labels = tuple(kept.arrays[LABELS][place] for place in places) if LABELS in kept.arrays else None
    dropped = f", {len(rows) - count} dropped to fill batches of {fixed}" if count < len(rows) else ""
    return Batches(
        tuple(s.name for s in specs),
        inputs,
        labels,
        count,
        count * kept.tokens,
        kept.source,
        kept.sha256 or digest((*inputs, labels or ())),
        kept.description() + dropped,
        parts or (kept.part(),),
    )
