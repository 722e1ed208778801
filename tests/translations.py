"""Exports in tests, a second faster each."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["share_translations"]


def share_translations() -> None:
    """From now on the exporter's table of translations to ONNX is read once for each opset and copied for every export;
    it reads it anew each time otherwise. Where this version has no such table, each export makes its own as ever."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return
    read, known = ONNXRegistry.from_torchlib.__func__, {}

    def from_torchlib(cls: type[ONNXRegistry], *args: Any, **kwargs: Any) -> ONNXRegistry:
        key = (args, tuple(sorted(kwargs.items())))
        if key not in known:
            known[key] = read(cls, *args, **kwargs)
        found = copy.copy(known[key])
        found.functions = {target: list(entries) for target, entries in known[key].functions.items()}
        return found

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)
