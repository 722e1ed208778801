"""The examples and the code of the README run as they are printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LONGEST = 80  # lines: an example is read in one go


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / name))


def test_prune_mlp(capsys: pytest.CaptureFixture[str]) -> None:
    example("01_prune_mlp.py")["main"]()
    assert "proven (exact)" in capsys.readouterr().out


def test_heads_and_kv_groups(capsys: pytest.CaptureFixture[str]) -> None:
    example("02_heads_and_kv_groups.py")["main"]()
    assert "2 of 4 key-value heads" in capsys.readouterr().out


def test_calibrate_and_restore(capsys: pytest.CaptureFixture[str]) -> None:
    example("03_calibrate_and_restore.py")["main"](samples=128)
    assert "restored" in capsys.readouterr().out


def test_export_and_check(capsys: pytest.CaptureFixture[str]) -> None:
    example("04_export_and_check.py")["main"](seconds=0.1)
    assert "computes what the program computes: True" in capsys.readouterr().out


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102
    assert (tmp_path / "slim.onnx").is_file()


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("0*.py")), ids=lambda f: f.name)
def test_an_example_is_short(file: Path) -> None:
    assert file.read_text(encoding="utf-8").count("\n") < LONGEST
