"""A place to make mistakes in: a model directory, data, a plan and a result, whole until a case damages its copy."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fxslim.cli import app
from tests.fxslim.factories import CLASSIFIER, write_data
from tests.fxslim.samples import TEXT, save_opt

__all__ = ["Place", "whole"]


@dataclass(frozen=True)
class Place:
    """Paths in one folder."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "opt"

    @property
    def data(self) -> Path:
        return self.root / "data.npz"

    @property
    def text(self) -> Path:
        return self.root / "text.txt"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def result(self) -> Path:
        return self.root / "result"

    @property
    def out(self) -> str:
        return str(self.root / "out")

    def copy(self, root: Path) -> Place:
        """The same elsewhere, to be damaged."""
        return Place(Path(shutil.copytree(self.root, root)))

    def write(self, name: str, content: str | bytes) -> str:
        """The path of a file with this content."""
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(file)

    def arrays(self, name: str, **arrays: Any) -> str:
        """The path of an .npz file with these arrays."""
        np.savez(self.root / name, **arrays)
        return str(self.root / name)

    def edit(self, file: Path, **changes: Any) -> Path:
        """A JSON file with other values at its top."""
        found = json.loads(file.read_text())
        file.write_text(json.dumps({**found, **changes}))
        return file

    def weights(self, file: Path, change: Any) -> None:
        """A safetensors file whose dictionary of tensors `change` has changed."""
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    def slim(self, *words: str) -> list[str]:
        """The command that slims the classifier, with more words."""
        return ["slim", CLASSIFIER, "-o", self.out, *words]

    def recipe(self, *lines: str) -> list[str]:
        """The command that runs a recipe."""
        text = "\n".join(["recipe: 1", f"model: {CLASSIFIER}", *lines]) + "\n"
        return ["run", self.write("recipe.yaml", text), "-o", self.out]


def whole(root: Path) -> Place:
    """A place in which nothing is wrong."""
    root.mkdir(parents=True)
    place = Place(root)
    write_data(place.data)
    place.text.write_text(TEXT)
    save_opt(place.model)
    _run("plan", CLASSIFIER, "--width", "0.5", "-o", str(place.plan))
    _run("slim", CLASSIFIER, "--width", "0.5", "--latency-seconds", "0.05", "-o", str(place.result))
    return place


def _run(*words: str) -> None:
    found = CliRunner().invoke(app, list(words))
    assert found.exit_code == 0, found.output
