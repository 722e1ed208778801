"""Distributions as an installer leaves them: modules and a dist-info with entry points, in a folder of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fxslim import plugins

TINY = Path(__file__).parents[1] / "plugin" / "fxslim_tiny.py"
ENTRIES = {
    "fxslim.rules": "tiny-gate = fxslim_tiny:register_rules",
    "fxslim.passes": "unfold-gates = fxslim_tiny:UnfoldGates",
    "fxslim.importances": "first-come = fxslim_tiny:register_importances",
    "fxslim.methods": "first-come = fxslim_tiny:FIRST_COME",
}


def install(
    folder: Path, name: str, module: str | Path, entries: Mapping[str, str] = ENTRIES, version: str = "1.2"
) -> Path:
    """`folder` with a module (a file, or its text under the distribution's name) and what an installer writes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(module, Path):
        shutil.copyfile(module, folder / module.name)
    else:
        (folder / f"{name.replace('-', '_')}.py").write_text(module, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [f"[{group}]\n{entry}\n" for group, entry in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def fxslim(folder: Path, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own, with the distributions of `folder`."""
    env = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "80", "FXSLIM_DEBUG": "0", **environment}
    command = [sys.executable, "-m", "fxslim", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=folder)


class _Undo(Exception):
    pass


@contextmanager
def forgotten() -> Iterator[None]:
    """What is registered in a block is gone after it."""
    with suppress(_Undo), plugins._undone_on_error():
        yield
        raise _Undo
