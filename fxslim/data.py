"""Calibration and evaluation data: files or objects become batches of a program's inputs, checked against it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sized
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from fxslim.arrays import NUMPY, TENSORS, read_arrays
from fxslim.batches import LABELS, Batches, DataPart, Options, Rows, cut, fixed_batch
from fxslim.generated import generated_windows
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.inputs import InputSpec, input_specs
from fxslim.mixtures import GENERATED, Mixture, apportion, largest_total, mixed
from fxslim.objects import MEMORY, Items, array_rows, holds_text, items_of, read_items, texts_of
from fxslim.passes.statistics import digest
from fxslim.sources import Source
from fxslim.text import DEFAULT_WINDOW, TEXT_FIELD, inputs_of, read_texts, refuse_other_inputs, token_windows

__all__ = ["GENERATED", "LABELS", "TEXT_SUFFIXES", "Batches", "DataPart", "Mixture", "load_batches"]

GENERATED_ROWS = 64
"""What to say instead of a file for data that the model writes itself, and how many windows it writes."""

TEXT_SUFFIXES = (".txt", ".jsonl")
"""Suffixes of files that hold text."""


@dataclass(frozen=True, eq=False)
class _Target:
    """What the data is for."""

    program: Program
    specs: tuple[InputSpec, ...]
    tokenizer: Any
    max_positions: int | None
    options: Options


def load_batches(
    data: str | Path | Mixture | Iterable[Any],
    target: Source | Program,
    *,
    tokenizer: Any = None,
    max_positions: int | None = None,
    limit: int | None = None,
    window: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    text_field: str | None = None,
) -> Batches:
    """Batches of `data` for `target`, every row checked against the program's inputs.

    Text (`.txt`, `.jsonl`, an iterable of strings or of records) is cut into windows of `window` tokens that do not
    overlap (at most 256 and what the model takes, unless given; the rest is dropped); `text_field` names the field of
    the records, `text` unless given. Arrays [rows, ...] by input name, and `labels`, come from `.npz`, `.npy` and
    `.safetensors`, or as they are. Other iterables hold tensors, tuples (in the order of the inputs, the labels behind
    them), or dicts by name: whole batches, or rows, which have one dimension less. Data loaders and the tables of
    `datasets` are such iterables; a table may have columns that are no inputs. `"self"` has a causal language model
    write its own text (64 windows, or `limit`). A `Mixture` holds any of these, in shares that are met within one row.

    `limit` draws that many rows without replacement: of files and of what can be indexed at random, of a stream those
    that come first (whole batches, until they hold as many rows; of texts, drawn from a few more). The tokenizer and
    the longest sequence are a Source's own unless given.

    Raises:
        InputError: the data is missing, empty, too short, not finite, or does not fit the program's inputs.
    """
    program = target.program if isinstance(target, Source) else target
    if isinstance(target, Source):
        tokenizer = target.tokenizer if tokenizer is None else tokenizer
        max_positions = max_positions or target.max_positions
    options = Options(limit, window, batch_size, seed, text_field)
    asked = _Target(program, input_specs(program), tokenizer, max_positions, options)
    if isinstance(data, Mixture):
        return _mixture(data, asked)
    if _is_generated(data):
        return _cut(_generated(asked, limit or GENERATED_ROWS), asked)
    found = _read(data, asked)
    if isinstance(found, Items) and found.whole:
        return _as_they_are(found, asked)
    return _cut(_rows(found).draw(limit, seed), asked)


def _cut(rows: Rows, asked: _Target, parts: tuple[DataPart, ...] = ()) -> Batches:
    rows.refuse_misfits(asked.specs)
    return cut(rows, asked.specs, asked.options.batch_size, parts)


def _rows(found: Rows | Items) -> Rows:
    return found.stacked() if isinstance(found, Items) else found


def _is_generated(data: Any) -> bool:
    return isinstance(data, str | Path) and str(data) == GENERATED


def _mixture(mixture: Mixture, asked: _Target) -> Batches:
    """Parts of files and objects are read first: how many rows they hold bounds what the model has to write."""
    limit, shares = asked.options.limit, mixture.shares
    read = [None if _is_generated(data) else _rows(_read(data, asked)) for data, _ in mixture.parts]
    held = [None if rows is None else len(rows) for rows in read]
    total = largest_total(limit or (None if any(held) else GENERATED_ROWS), shares, held, fixed_batch(asked.specs) or 1)
    parts = []
    for place, (rows, count) in enumerate(zip(read, apportion(total, shares), strict=True)):
        if not count:
            raise InputError(
                f"a share of {shares[place]:.1%} is less than one of {total} rows",
                at=str(mixture.parts[place][0])[:80],
                remedy="ask for more rows (--samples), or leave the part out",
            )
        part = _generated(asked, count) if rows is None else rows.draw(count, asked.options.seed + place)
        part.refuse_misfits(asked.specs)
        parts.append(part)
    batches = _cut(mixed(parts), asked, tuple(part.part(share) for part, share in zip(parts, shares, strict=True)))
    fewer = f" (asked for {limit}: a part holds no more of its share)" if limit is not None and total < limit else ""
    described = "; ".join(f"{part.description()}, share {share:.0%}" for part, share in zip(parts, shares, strict=True))
    tokens = sum(part.tokens for part in batches.parts)
    return replace(batches, tokens=tokens, description=f"{total} rows{fewer}: {described}")


def _read(data: str | Path | Iterable[Any], asked: _Target) -> Rows | Items:
    """All rows of a file, or as many of an object as the limit needs."""
    if isinstance(data, str | Path):
        return _read_file(Path(data).expanduser(), asked)
    if (rows := array_rows(data, asked.specs)) is not None:
        return rows
    options, length = asked.options, len(data) if isinstance(data, Sized) else None
    items = items_of(data, options)
    first = next(items, None)
    if first is None:
        raise InputError("the data holds no batch", at=MEMORY, remedy="give at least one")
    items = chain([first], items)
    if holds_text(first[1], asked.specs, options):
        return _text_rows(texts_of(items, options), MEMORY, asked, options.limit)
    table = hasattr(data, "column_names")  # of `datasets`: an attribute of tables in memory, on disk, and streamed
    return read_items(items, asked.specs, options.limit, available=length, table=table)


def _read_file(path: Path, asked: _Target) -> Rows:
    kinds = "give a file of text (.txt, .jsonl) or arrays (.npz, .npy, .safetensors)"
    if not path.is_file():
        what = "this is a directory, not a data file" if path.is_dir() else "there is no such data file"
        raise InputError(what, at=str(path), remedy=kinds)
    if not path.stat().st_size:
        raise InputError("the data file is empty", at=str(path), remedy=kinds)
    if path.suffix in TEXT_SUFFIXES:
        _refuse_without_tokenizer(asked, str(path))
        rows = _text_rows(read_texts(path, asked.options.text_field or TEXT_FIELD), str(path), asked)
    elif path.suffix in NUMPY or path.suffix == TENSORS:
        rows = Rows.every(read_arrays(path, asked.specs), str(path))
    else:
        raise InputError(
            f"data of the kind {path.suffix or '(no suffix)'} is unknown",
            at=str(path),
            remedy="give .txt, .jsonl, .npz, .npy or .safetensors",
        )
    return replace(rows, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def _text_rows(texts: Iterable[str], at: str, asked: _Target, enough: int | None = None) -> Rows:
    _refuse_without_tokenizer(asked, at)
    refuse_other_inputs(asked.specs, at)
    window = _window(at, asked)
    windows, complete = token_windows(texts, asked.tokenizer, window, at, enough)
    rows = Rows.every(inputs_of(windows, asked.specs, at), at, window)
    return rows if complete else replace(rows, available=None)


def _refuse_without_tokenizer(asked: _Target, at: str) -> None:
    if asked.tokenizer is None:
        raise InputError(
            "text needs a tokenizer, and the model came without one",
            at=at,
            remedy="put the tokenizer's files beside the model, or give arrays (.npz) by input name",
        )


def _generated(asked: _Target, count: int) -> Rows:
    """Windows that the model writes itself."""
    window, seed = _window(GENERATED, asked), asked.options.seed
    arrays = inputs_of(generated_windows(asked.program, asked.specs, count, window, seed), asked.specs)
    rows = Rows.every(arrays, GENERATED, window)
    return replace(rows, available=None, note=f" that the model wrote with seed {seed}")


def _window(at: str, asked: _Target) -> int:
    """Tokens in a window: what was asked for, within what the program takes."""
    wanted, most = asked.options.window, asked.max_positions
    fixed = {s.shape[1] for s in asked.specs if not s.cache and len(s.shape) > 1 and s.shape[1] is not None}
    if len(fixed) == 1 and (size := fixed.pop()) is not None:
        if wanted not in (None, size):
            raise InputError(
                f"windows of {wanted} tokens do not fit: the program takes sequences of exactly {size}", at=at
            )
        return size
    window = wanted or min(DEFAULT_WINDOW, most or DEFAULT_WINDOW)
    if most and window > most:
        raise InputError(
            f"windows of {window} tokens do not fit: the model takes at most {most}", at=at,
            remedy=f"ask for windows of at most {most} (--window, window=)",
        )  # fmt: skip
    return window


def _as_they_are(found: Items, asked: _Target) -> Batches:
    """Batches as the user cut them."""
    inputs = tuple(tuple(item[s.name] for s in asked.specs) for item in found.items)
    labels = tuple(item[LABELS] for item in found.items) if LABELS in found.items[0] else None
    known = f" of {found.available}" if found.available is not None else ""
    return Batches(
        tuple(s.name for s in asked.specs),
        inputs,
        labels,
        found.rows,
        0,
        MEMORY,
        digest((*inputs, labels or ())),
        f"{len(inputs)}{known} batches from memory, {found.rows} rows",
        (DataPart(MEMORY, 1.0, found.rows, 0, found.rows if found.available == len(inputs) else None),),
    )
