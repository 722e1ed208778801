"""Journals: what a restoring walk has finished, step by step on disk, so that a run that was killed goes on from there.

A step is one file, whole or not there, with a hash. The walk runs again up to the first step that is missing, without
statistics and solves, and what follows is what would have followed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxslim.graph.axes.select import Selection
from fxslim.graph.errors import InputError, LocalError
from fxslim.graph.files import sync
from fxslim.graph.program import Program
from fxslim.graph.stores import FileTensor, WeightStore, read_header, write_safetensors
from fxslim.passes.statistics import digest

__all__ = ["Finished", "Journal", "KeptSteps", "RestoredConsumer", "RestoredNorm"]

_FACTS, _WEIGHT, _MASK = "facts", "weight:", "mask:"


@dataclass(frozen=True)
class RestoredConsumer:
    """What happened to one consumer."""

    node: str
    weight: str
    columns: int
    kept: int
    tokens: int
    accepted: bool
    ridge: float | None
    before: float  # relative residual of plain slicing, held-out
    after: float
    reason: str = ""
    fitted: int = 0  # columns that were solved for, the constant included


@dataclass(frozen=True)
class RestoredNorm:
    """What happened to the running statistics of one batch norm whose input changed."""

    node: str
    mean: str  # the name of its running mean
    channels: int
    values: int  # of each channel that were seen
    changed: str  # "mean", "mean and variance", or nothing
    before: float  # squared error of its output, relative to the original's variance, held-out
    after: float
    reason: str = ""


@dataclass(frozen=True)
class Finished:
    """What one step of a restoring walk came to."""

    weights: Mapping[str, Tensor | FileTensor] = field(default_factory=dict)  # new ones, by name
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # [*batch, size] of the groups that it decided, by name
    row: RestoredConsumer | None = None
    norm: RestoredNorm | None = None
    warnings: Sequence[str] = ()  # of too few tokens
    said: Sequence[str] = ()  # what else could not be done


class Journal:
    """A folder for the finished steps of the walks of one run, which come in the same order every time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = 0  # steps that were there
        self._numbers = itertools.count()

    def walk(self, program: Program, selection: Selection, asked: Sequence[Any]) -> KeptSteps:
        """The steps of the next walk: those of a walk over another program or other weights (bases come out in other
        signs on another processor), or with another selection at its start, or that was asked for something else, are
        not taken for them."""
        cut = [(str(kept.mask.shape), digest([[kept.mask]])) for kept in selection.kept.values()]
        text = repr((program.fingerprint(), _origin(program), cut, list(asked)))
        name = f"{next(self._numbers):02}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        return KeptSteps(self, name, on_disk=program.weights.spill is not None)


class KeptSteps:
    """The finished steps of one walk. With `on_disk` their weights stay in the files."""

    def __init__(self, journal: Journal, name: str, *, on_disk: bool) -> None:
        self._journal, self._name, self._on_disk = journal, name, on_disk

    def find(self, number: int) -> Finished | None:
        """What a step came to, if it was kept whole."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            entries = read_header(path)
            facts = json.loads(bytes(entries.pop(_FACTS).read().numpy()))
            if facts.pop("sha256") != _sealed(facts, WeightStore(entries)):
                return None
            found = self._finished(facts, entries)
        except (InputError, KeyError, ValueError, TypeError, AttributeError):
            return None  # whatever is wrong with it, doing it again is right
        self._journal.found += 1
        return found

    def _finished(self, facts: dict[str, Any], entries: Mapping[str, FileTensor]) -> Finished:
        row, norm = facts.pop("row"), facts.pop("norm")
        weights = {n.removeprefix(_WEIGHT): e for n, e in entries.items() if n.startswith(_WEIGHT)}
        return Finished(
            weights if self._on_disk else {n: e.read() for n, e in weights.items()},
            {n.removeprefix(_MASK): e.read() for n, e in entries.items() if n.startswith(_MASK)},
            None if row is None else RestoredConsumer(**row), None if norm is None else RestoredNorm(**norm), **facts,
        )  # fmt: skip

    def keep(self, number: int, finished: Finished) -> Finished:
        """The same step, which is on disk then.

        Raises:
            InputError: it cannot be written.
        """
        tensors = {_WEIGHT + n: w for n, w in finished.weights.items()}
        store = WeightStore({**tensors, **{_MASK + n: m for n, m in finished.masks.items()}})
        facts: dict[str, Any] = {
            "row": None if finished.row is None else asdict(finished.row),
            "norm": None if finished.norm is None else asdict(finished.norm),
            "warnings": list(finished.warnings), "said": list(finished.said),
        }  # fmt: skip
        facts["sha256"] = _sealed(facts, store)
        store[_FACTS] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        path = self._path(number)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            self._journal.folder.mkdir(parents=True, exist_ok=True)
            write_safetensors(draft, store)
            sync(draft)
            os.replace(draft, path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            reason = error.strerror or error
            raise LocalError(f"what the run has found so far cannot be written: {reason}", at=str(path)) from error
        if not self._on_disk:
            return finished
        entries = read_header(path)
        weights = {n: entries[_WEIGHT + n] for n in finished.weights}
        return Finished(weights, finished.masks, finished.row, finished.norm, finished.warnings, finished.said)

    def _path(self, number: int) -> Path:
        return self._journal.folder / f"{self._name}-{number:05}.safetensors"


def _sealed(facts: Mapping[str, Any], store: WeightStore) -> str:
    """A hash of a step: what it says, and its tensors with their names."""
    names = sorted(store)
    text = json.dumps([facts, names], sort_keys=True)
    return hashlib.sha256(f"{text} {digest([store[n]] for n in names)}".encode()).hexdigest()


def _origin(program: Program) -> str:
    """A hash of the weights that a walk starts from. Those that are still in the model's files stand for themselves:
    whoever keeps a journal knows the model by its hash."""
    result = hashlib.sha256()
    spilled = program.weights.spill
    for name in sorted(program.weights):
        entry = program.weights.entry(name)
        if isinstance(entry, FileTensor) and (spilled is None or entry.path.parent != spilled.folder):
            result.update(f"{name} {entry.path.name} {entry.offset} {entry.shape} {entry.dtype}".encode())
        else:
            result.update(f"{name} {digest([[program.weights[name]]])}".encode())
    return result.hexdigest()
