"""Text as token windows: what a language model is calibrated and measured on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fxslim.graph.errors import InputError
from fxslim.inputs import InputSpec

__all__ = [
    "DEFAULT_WINDOW",
    "TEXT_FIELD",
    "inputs_of",
    "read_texts",
    "record_text",
    "refuse_other_inputs",
    "token_windows",
]

DEFAULT_WINDOW = 256
"""Tokens in a window unless the user or the model says otherwise."""

TEXT_FIELD = "text"
"""The field of a record that holds its text unless the user says otherwise."""

_SEPARATOR = "\n\n"  # between records

# How each input of a text model follows from the windows of ids [n, window].
_FROM_IDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "input_ids": lambda ids: ids,
    "attention_mask": torch.ones_like,
    "token_type_ids": torch.zeros_like,
    "position_ids": lambda ids: torch.arange(ids.shape[1]).expand_as(ids),
    "decoder_input_ids": lambda ids: ids,  # the decoder is calibrated on the text that the encoder reads
}


def read_texts(path: Path, field: str = TEXT_FIELD) -> list[str]:
    """The text of a `.txt` file as one record, or that of every record of a `.jsonl` file.

    Raises:
        InputError: the file is not UTF-8, a line is not an object with a text, or there is no text at all.
    """
    try:
        raw = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the text is not UTF-8: {error}", at=str(path), remedy="convert it to UTF-8") from error
    texts = [raw] if path.suffix == ".txt" else _records(raw, path, field)
    if not any(text.strip() for text in texts):
        raise InputError("the file holds no text", at=str(path))
    return texts


def _records(raw: str, path: Path, field: str) -> list[str]:
    texts = []
    for number, line in enumerate(raw.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"a line is not JSON: {error}", at=f"{path}:{number}") from error
        texts.append(record_text(record, field, f"{path}:{number}"))
    return texts


def record_text(record: Any, field: str, at: str) -> str:
    """The text of a record: itself where it is a text, else its field.

    Raises:
        InputError: it has no such field, or another type stands there.
    """
    if isinstance(record, str):
        return record
    text = record.get(field) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        names = ", ".join(map(str, record)) if isinstance(record, Mapping) else type(record).__name__
        raise InputError(
            f"a record has no field `{field}` with a string",
            at=at,
            remedy=f"name the field with --text-field (text_field=); there is: {names or 'nothing'}",
        )
    return text


def token_windows(
    texts: Iterable[str], tokenizer: Any, window: int, at: str, enough: int | None = None
) -> tuple[torch.Tensor, bool]:
    """Windows of token ids [n, window] int64 of texts joined with blank lines, without overlap, the rest dropped; and
    whether these are all. Stops reading when there are `enough` windows.

    Raises:
        InputError: the text is shorter than one window.
    """
    taken: list[str] = []
    length, wanted = 0, 0 if enough is None else enough * window  # in characters: a token has at least about one
    for text in texts:
        taken.append(text)
        length += len(text)
        if enough is None or length < wanted:
            continue
        ids = _ids(taken, tokenizer)
        if len(ids) >= enough * window:
            return _windows(ids, window, at), False
        wanted = int(length * max(1.5, 1.1 * enough * window / max(len(ids), 1)))  # the tries are few
    return _windows(_ids(taken, tokenizer), window, at), True


def _ids(texts: Sequence[str], tokenizer: Any) -> torch.Tensor:
    ids: torch.Tensor = torch.tensor(tokenizer(_SEPARATOR.join(texts), verbose=False)["input_ids"], dtype=torch.long)
    return ids


def _windows(ids: torch.Tensor, window: int, at: str) -> torch.Tensor:
    if len(ids) < window:
        raise InputError(
            f"the text has {len(ids)} tokens, fewer than one window of {window}",
            at=at,
            remedy="give more text or a smaller window",
        )
    return ids[: len(ids) // window * window].view(-1, window)


def inputs_of(windows: torch.Tensor, specs: Sequence[InputSpec], at: str | None = None) -> dict[str, torch.Tensor]:
    """Arrays [n, window] by input name for windows of token ids [n, window]; caches [n, ...] are empty.

    Raises:
        InputError: an input does not follow from text.
    """
    refuse_other_inputs(specs, at)
    return {s.name: _empty(s, len(windows)) if s.cache else _FROM_IDS[s.name](windows).to(s.dtype) for s in specs}


def _empty(spec: InputSpec, rows: int) -> torch.Tensor:
    """A cache at first: no position where it grows, zeros where its size is fixed."""
    return torch.zeros(rows, *(size or 0 for size in spec.shape[1:]), dtype=spec.dtype)


def refuse_other_inputs(specs: Sequence[InputSpec], at: str | None) -> None:
    """Returns if every input of the program follows from text.

    Raises:
        InputError: one does not.
    """
    unknown = [s.name for s in specs if s.name not in _FROM_IDS and not s.cache]
    if unknown:
        raise InputError(
            f"the input {unknown[0]!r} does not follow from text", at=at, remedy="give arrays (.npz) by input name"
        )
