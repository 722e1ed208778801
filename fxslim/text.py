"""Text as token windows: what a language model is calibrated and measured on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fxslim.graph.errors import InputError
from fxslim.inputs import InputSpec

__all__ = ["DEFAULT_WINDOW", "inputs_of", "read_texts", "token_windows"]

DEFAULT_WINDOW = 256
"""Tokens in a window unless the user or the model says otherwise."""

_SEPARATOR = "\n\n"  # between the records of a .jsonl file

# How each input of a text model follows from the windows of ids [n, window].
_FROM_IDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "input_ids": lambda ids: ids,
    "attention_mask": torch.ones_like,
    "token_type_ids": torch.zeros_like,
    "position_ids": lambda ids: torch.arange(ids.shape[1]).expand_as(ids),
    "decoder_input_ids": lambda ids: ids,  # the decoder is calibrated on the text that the encoder reads
}


def read_texts(path: Path) -> str:
    """The text of a `.txt` file, or the fields `text` of a `.jsonl` file joined with blank lines.

    Raises:
        InputError: the file is not UTF-8, a line is not an object with a text, or there is no text at all.
    """
    try:
        raw = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the text is not UTF-8: {error}", at=str(path), remedy="convert it to UTF-8") from error
    text = raw if path.suffix == ".txt" else _SEPARATOR.join(_records(raw, path))
    if not text.strip():
        raise InputError("the file holds no text", at=str(path))
    return text


def _records(raw: str, path: Path) -> list[str]:
    texts = []
    for number, line in enumerate(raw.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"a line is not JSON: {error}", at=f"{path}:{number}") from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise InputError(
                "a line has no field `text` with a string", at=f"{path}:{number}", remedy='write {"text": "..."}'
            )
        texts.append(text)
    return texts


def token_windows(
    text: str, tokenizer: Any, window: int, specs: Sequence[InputSpec], at: str
) -> dict[str, torch.Tensor]:
    """Arrays [n, window] by input name: the text's windows without overlap, the rest dropped.

    Raises:
        InputError: the text is shorter than one window, or an input does not follow from text.
    """
    _refuse_others(specs, at)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
    if len(ids) < window:
        raise InputError(
            f"the text has {len(ids)} tokens, fewer than one window of {window}",
            at=at,
            remedy="give more text or a smaller window",
        )
    windows = ids[: len(ids) // window * window].view(-1, window)
    return inputs_of(windows, specs, at)


def inputs_of(windows: torch.Tensor, specs: Sequence[InputSpec], at: str | None = None) -> dict[str, torch.Tensor]:
    """Arrays [n, window] by input name for windows of token ids [n, window]; caches [n, ...] are empty.

    Raises:
        InputError: an input does not follow from text.
    """
    _refuse_others(specs, at)
    return {s.name: _empty(s, len(windows)) if s.cache else _FROM_IDS[s.name](windows).to(s.dtype) for s in specs}


def _empty(spec: InputSpec, rows: int) -> torch.Tensor:
    """A cache at first: no position where it grows, zeros where its size is fixed."""
    return torch.zeros(rows, *(size or 0 for size in spec.shape[1:]), dtype=spec.dtype)


def _refuse_others(specs: Sequence[InputSpec], at: str | None) -> None:
    unknown = [s.name for s in specs if s.name not in _FROM_IDS and not s.cache]
    if unknown:
        raise InputError(
            f"the input {unknown[0]!r} does not follow from text", at=at, remedy="give arrays (.npz) by input name"
        )
