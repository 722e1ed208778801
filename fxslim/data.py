"""Calibration and evaluation data: files or objects become batches of a program's inputs, checked against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fxslim.generated import generated_windows
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.inputs import InputSpec, check, input_specs
from fxslim.passes.statistics import digest
from fxslim.sources import Source
from fxslim.text import DEFAULT_WINDOW, inputs_of, read_texts, token_windows

__all__ = ["GENERATED", "LABELS", "Batches", "load_batches"]

LABELS = "labels"
"""Name of the array that holds what the model should answer."""

GENERATED, GENERATED_ROWS = "self", 64
"""What to say instead of a file for data that the model writes itself, and how many windows it writes."""

_TEXT, _NUMPY, _TENSORS = (".txt", ".jsonl"), (".npz", ".npy"), ".safetensors"


@dataclass(frozen=True, eq=False)
class Batches:
    """Inputs of a program, batch by batch, in the order of its `input_names`."""

    input_names: tuple[str, ...]
    inputs: tuple[tuple[torch.Tensor, ...], ...]
    labels: tuple[torch.Tensor, ...] | None
    rows: int  # windows of text, images, ...: what a batch counts
    tokens: int  # of text; 0 where the data is not text
    source: str  # the file, or `memory`
    sha256: str  # of the file, or of the values
    description: str

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """The flat inputs, batch by batch."""
        return iter(self.inputs)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.inputs)


@dataclass(frozen=True)
class _Options:
    limit: int | None
    window: int | None
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("window", self.window), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}", remedy=f"give a {name} of at least 1")

    def choose(self, rows: int) -> torch.Tensor:
        """Indices of the rows to use, in order: all, or `limit` of them drawn without replacement."""
        if self.limit is None or self.limit >= rows:
            return torch.arange(rows)
        drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(self.seed))[: self.limit]
        return drawn.sort().values


def load_batches(
    data: str | Path | Iterable[Any],
    target: Source | Program,
    *,
    tokenizer: Any = None,
    max_positions: int | None = None,
    limit: int | None = None,
    window: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> Batches:
    """Batches of `data` for `target`, every one checked against the program's inputs.

    Text (`.txt`, or `.jsonl` with a field `text`) is cut into windows of `window` tokens that do not overlap (at most
    256 and what the model takes, unless given; the rest is dropped). `.npz`, `.npy` and `.safetensors` hold arrays
    [rows, ...] by input name, and `labels`. An iterable holds whole batches: a tensor, a tuple, or a dict by name.
    `"self"` has a causal language model write its own text (64 windows, or `limit`).
    `limit` draws that many rows without replacement (of an iterable: batches, until they hold as many rows). The
    tokenizer and the longest sequence are a Source's own unless given.

    Raises:
        InputError: the data is missing, empty, too short, not finite, or does not fit the program's inputs.
    """
    program = target.program if isinstance(target, Source) else target
    if isinstance(target, Source):
        tokenizer = target.tokenizer if tokenizer is None else tokenizer
        max_positions = max_positions or target.max_positions
    options = _Options(limit, window, batch_size, seed)
    specs = input_specs(program)
    if not isinstance(data, str | Path):
        return _from_objects(data, specs, options)
    if str(data) == GENERATED:
        return _generated(program, specs, options, max_positions)
    path = Path(data).expanduser()
    _refuse_unreadable(path)
    if path.suffix in _TEXT:
        arrays, tokens = _text_arrays(path, specs, options, tokenizer, max_positions), True
    elif path.suffix in _NUMPY or path.suffix == _TENSORS:
        arrays, tokens = _read_arrays(path, specs), False
    else:
        raise InputError(
            f"data of the kind {path.suffix or '(no suffix)'} is unknown",
            at=str(path),
            remedy="give .txt, .jsonl, .npz, .npy or .safetensors",
        )
    return _batched(arrays, specs, options, path, tokens)


def _generated(program: Program, specs: tuple[InputSpec, ...], options: _Options, max_positions: int | None) -> Batches:
    """Windows that the model writes itself."""
    rows = options.limit or GENERATED_ROWS
    window = _window(Path(GENERATED), specs, options.window, max_positions)
    windows = generated_windows(program, specs, rows, window, options.seed)
    arrays = inputs_of(windows, specs)
    starts = range(0, rows, options.batch_size)
    inputs = tuple(tuple(arrays[s.name][i : i + options.batch_size] for s in specs) for i in starts)
    for number, batch in enumerate(inputs):
        check(batch, specs, f"generated batch {number}")
    described = f"{rows} windows of {window} tokens that the model wrote with seed {options.seed}"
    hashed = digest(inputs)
    return Batches(tuple(s.name for s in specs), inputs, None, rows, rows * window, GENERATED, hashed, described)


def _refuse_unreadable(path: Path) -> None:
    if not path.is_file():
        raise InputError("there is no such data file", at=str(path))
    if not path.stat().st_size:
        raise InputError("the data file is empty", at=str(path))


def _text_arrays(
    path: Path, specs: tuple[InputSpec, ...], options: _Options, tokenizer: Any, max_positions: int | None
) -> dict[str, torch.Tensor]:
    if tokenizer is None:
        raise InputError(
            "text needs a tokenizer, and the model came without one",
            at=str(path),
            remedy="put the tokenizer's files beside the model, or give arrays (.npz) by input name",
        )
    window = _window(path, specs, options.window, max_positions)
    return token_windows(read_texts(path), tokenizer, window, specs, str(path))


def _window(path: Path, specs: tuple[InputSpec, ...], asked: int | None, max_positions: int | None) -> int:
    """Tokens in a window: what was asked for, within what the program takes."""
    fixed = {s.shape[1] for s in specs if not s.cache and len(s.shape) > 1 and s.shape[1] is not None}
    if len(fixed) == 1 and (size := fixed.pop()) is not None:
        if asked not in (None, size):
            raise InputError(
                f"windows of {asked} tokens do not fit: the program takes sequences of exactly {size}", at=str(path)
            )
        return size
    window = asked or min(DEFAULT_WINDOW, max_positions or DEFAULT_WINDOW)
    if max_positions and window > max_positions:
        raise InputError(
            f"windows of {window} tokens do not fit: the model takes at most {max_positions}", at=str(path)
        )
    return window


def _read_arrays(path: Path, specs: tuple[InputSpec, ...]) -> dict[str, torch.Tensor]:
    try:
        arrays = _parse_arrays(path, specs)
    except (OSError, ValueError, EOFError, KeyError, SafetensorError, TypeError, BadZipFile) as error:
        raise InputError(
            f"the file cannot be read as arrays: {error}",
            at=str(path),
            remedy="write it with numpy.savez (no object arrays) or safetensors.torch.save_file",
        ) from error
    _refuse_unknown(arrays, specs, str(path))
    for name, array in arrays.items():
        if not array.ndim:
            raise InputError("an array has no dimension of rows", at=f"{path}, {name}")
    if len({len(a) for a in arrays.values()}) != 1:
        counts = ", ".join(f"{name} {len(a)}" for name, a in arrays.items())
        raise InputError(f"the arrays have different numbers of rows: {counts}", at=str(path))
    if not len(next(iter(arrays.values()))):
        raise InputError("the arrays hold no rows", at=str(path))
    return arrays


def _parse_arrays(path: Path, specs: tuple[InputSpec, ...]) -> dict[str, torch.Tensor]:
    if path.suffix == _TENSORS:
        return dict(load_file(path))
    with path.open("rb") as file:  # ours to close: the reader forgets to where the file is damaged
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                return {name: _tensor(loaded[name]) for name in loaded.files}
    if len(specs) != 1:
        raise ValueError(f"one array without a name for {len(specs)} inputs")
    return {specs[0].name: _tensor(loaded)}


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C"))


def _refuse_unknown(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...], at: str) -> None:
    names = [s.name for s in specs]
    problems = [f"there is no input {name!r}" for name in sorted(set(arrays) - {*names, LABELS})]
    problems += [f"the input {name!r} is missing" for name in names if name not in arrays]
    if problems:
        raise InputError("; ".join(problems), at=at, remedy=f"the program's inputs are {', '.join(names)}")


def _batched(
    arrays: dict[str, torch.Tensor], specs: tuple[InputSpec, ...], options: _Options, path: Path, text: bool
) -> Batches:
    """Cuts arrays [rows, ...] into batches. Where the program's batch size is fixed, the rest is dropped."""
    available = len(arrays[specs[0].name])
    chosen = options.choose(available)
    fixed = next((s.shape[0] for s in specs if s.shape and s.shape[0] is not None), None)
    size = fixed or options.batch_size
    rows = len(chosen) // fixed * fixed if fixed else len(chosen)
    if not rows:
        raise InputError(f"there are {len(chosen)} rows, fewer than the program's batch of {fixed}", at=str(path))
    parts = chosen[:rows].split(size)  # type: ignore[no-untyped-call]
    inputs = tuple(tuple(arrays[s.name][part] for s in specs) for part in parts)
    for number, batch in enumerate(inputs):
        check(batch, specs, f"{path}, batch {number}")
    labels = tuple(arrays[LABELS][part] for part in parts) if LABELS in arrays else None
    tokens = rows * arrays[specs[0].name].shape[1] if text else 0
    kind = f"windows of {tokens // rows} tokens" if text else "rows"
    drawn = f" drawn with seed {options.seed}" if len(chosen) < available else ""
    dropped = f", {len(chosen) - rows} dropped to fill batches of {size}" if rows < len(chosen) else ""
    return Batches(
        tuple(s.name for s in specs),
        inputs,
        labels,
        rows,
        tokens,
        str(path),
        hashlib.sha256(path.read_bytes()).hexdigest(),
        f"{rows} of {available} {kind} of {path.name}{drawn}{dropped}",
    )


def _from_objects(data: Iterable[Any], specs: tuple[InputSpec, ...], options: _Options) -> Batches:
    items = [_named(item, specs, f"batch {number}") for number, item in enumerate(data)]
    if not items:
        raise InputError("the data holds no batch")
    chosen = _choose_batches(items, specs[0].name, options)
    inputs = tuple(tuple(item[s.name] for s in specs) for item in chosen)
    for number, batch in enumerate(inputs):
        check(batch, specs, f"batch {number}")
    with_labels = [LABELS in item for item in chosen]
    if any(with_labels) != all(with_labels):
        raise InputError("some batches have labels and some have none", remedy="give labels with every batch, or none")
    labels = tuple(item[LABELS] for item in chosen) if all(with_labels) else None
    rows = sum(_rows(batch[0]) for batch in inputs)
    described = f"{len(chosen)} of {len(items)} batches from memory, {rows} rows"
    hashed = digest((*inputs, labels or ()))
    return Batches(tuple(s.name for s in specs), inputs, labels, rows, 0, "memory", hashed, described)


def _named(item: Any, specs: tuple[InputSpec, ...], at: str) -> dict[str, torch.Tensor]:
    """The batch as tensors by name."""
    names = [s.name for s in specs]
    if isinstance(item, torch.Tensor | np.ndarray):
        item = (item,)
    if isinstance(item, list | tuple):
        if len(item) != len(names):
            raise InputError(
                f"a batch of {len(item)} tensors for {len(names)} inputs", at=at, remedy=f"inputs: {', '.join(names)}"
            )
        item = dict(zip(names, item, strict=True))
    if not isinstance(item, Mapping):
        raise InputError(
            f"a batch of the type {type(item).__name__}", at=at, remedy="give a tensor, a tuple, or a dict"
        )
    _refuse_unknown(item, specs, at)
    named = {k: _tensor(v) if isinstance(v, np.ndarray) else v for k, v in item.items()}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name!r} is a {type(value).__name__}, not a tensor", at=at)
    return named


def _choose_batches(
    items: list[dict[str, torch.Tensor]], first: str, options: _Options
) -> list[dict[str, torch.Tensor]]:
    if options.limit is None:
        return items
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(options.seed)).tolist()
    taken, rows = [], 0
    for index in order:
        if rows >= options.limit:
            break
        taken.append(index)
        rows += _rows(items[index][first])
    return [items[index] for index in sorted(taken)]


def _rows(tensor: torch.Tensor) -> int:
    return len(tensor) if tensor.ndim else 1
