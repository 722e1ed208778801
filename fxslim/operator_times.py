"""The times of single operators, kept between runs: one file for a machine, an execution provider, its version, and a
number of threads, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs
import torch

from fxslim.outputs import write_json_atomic

__all__ = ["OperatorTimes"]

_FORMAT = 2  # of how operators are timed: another one makes old times void
_CPU_INFO = Path("/proc/cpuinfo")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


class OperatorTimes:
    """The table [description of an operator -> ns] of this machine. A file that cannot be read counts as empty, and
    where none can be written, the next run measures again."""

    def __init__(self, provider: str, threads: int, folder: Path | None = None) -> None:
        self.facts = {
            "format": _FORMAT, "machine": machine_of(provider), "provider": provider, "threads": threads,
            "runtime": _runtime(),
        }  # fmt: skip
        name = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or Path(platformdirs.user_cache_dir("fxslim")) / "operator-times") / f"{name}.json"
        self.table: dict[str, float] = {}
        self.multiples: dict[str, int] = {}  # that sizes of a model should fall on, by a description of it
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            self._read()

    def _read(self) -> None:
        found: Any = json.loads(self.path.read_text(encoding="utf-8"))
        if found["facts"] == self.facts:
            times = {str(key): float(value) for key, value in found["times"].items()}
            self.multiples = {str(key): int(value) for key, value in found["multiples"].items()}
            self.table = times

    def save(self) -> None:
        """Writes the table for the next run."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            times, multiples = dict(sorted(self.table.items())), self.multiples
            write_json_atomic(self.path, {"facts": self.facts, "times": times, "multiples": multiples})


def machine_of(provider: str) -> str:
    """The processor, and the graphics card where that is what is measured."""
    names = [platform.machine(), platform.processor()]
    with suppress(OSError):
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
        names += [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")][:1]
    if provider != "CPUExecutionProvider" and torch.cuda.is_available():
        names.append(torch.cuda.get_device_name(0))
    return ", ".join(name for name in names if name)


def _runtime() -> str:
    for name in _RUNTIMES:
        with suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return "unknown"
