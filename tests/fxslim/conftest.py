"""Tiny Hugging Face models, made once: a causal language model with its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fxslim.samples import save_opt


@pytest.fixture(scope="session")
def pristine_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that no test writes to."""
    return save_opt(tmp_path_factory.mktemp("models") / "opt")


@pytest.fixture
def tiny_opt(pristine_opt: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine_opt, tmp_path / "opt"))
