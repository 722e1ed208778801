"""What operators from elsewhere are in ONNX: functions over ONNX operators, by PyTorch operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fxslim.graph.errors import InputError

__all__ = ["TRANSLATIONS", "add_translation"]

TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""What is handed to `torch.onnx.export` as its `custom_translation_table`."""


def add_translation(op: torch._ops.OpOverload, translation: Callable[..., Any], *, replace: bool = False) -> None:
    """Makes an operator expressible in ONNX.

    `translation` takes the operator's arguments (tensors as ONNX values) and returns ONNX values, made with the
    operators of `onnxscript`. Operators outside the ONNX standard are refused when a program is exported.

    Raises:
        InputError: the operator is no `OpOverload`, or has a translation already (unless `replace`).
    """
    if not isinstance(op, torch._ops.OpOverload):
        raise InputError(
            f"a translation is for an OpOverload, not {op}", remedy="for example torch.ops.mine.gate.default"
        )
    if not callable(translation):
        raise InputError(f"the translation of {op} cannot be called: {translation!r}")
    if op in TRANSLATIONS and not replace:
        raise InputError(
            f"{op} has a translation already", at=TRANSLATIONS[op].__module__,
            remedy="say replace=True if yours is to be used instead",
        )  # fmt: skip
    TRANSLATIONS[op] = translation
