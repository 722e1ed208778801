"""Versions of what decides a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import fxslim
from fxslim import plugins

__all__ = ["versions"]

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of what decided the result, plug-ins among them, by name; packages that are missing are left out."""
    found = {"fxslim": fxslim.__version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for plugin in plugins.active():
        if plugin.distribution is not None:
            found[plugin.distribution] = plugin.version or "unknown"
    return found
