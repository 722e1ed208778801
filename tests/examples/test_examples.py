"""The examples and the code of the README run as they are printed."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.fxslim.plugin_distribution import forgotten

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


STEP = ("--keep", "0.6", "--of", "macs", "--round-to", "8", "--latency-seconds", "0.1")


def test_pipeline_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = example("05_pipeline_step.py")
    code = step["main"]("bundled:digits-resnet", tmp_path / "out", *STEP)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [gate["name"] for gate in report["gates"]] == ["max_quality_loss", "min_speedup"]
    assert code == (1 if report["failures"] else 0) and ("  shipped" in capsys.readouterr().out) == (code == 0)
    assert step["main"]("bundled:none-such", tmp_path / "out") == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report, "what was there is as it was"


@pytest.mark.slow
def test_pipeline_step_ships_nothing_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = example("05_pipeline_step.py")
    assert step["main"]("bundled:digits-resnet", tmp_path / "out", *STEP, "--min-speedup", "1000") == 1
    assert "not shipped: min_speedup" in capsys.readouterr().out


def test_rule_and_pass_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    with forgotten():
        example("06_rule_and_pass_of_your_own.py")["main"]()
    said = capsys.readouterr().out
    assert "without a rule: {'example.gate.default': 1}" in said and "('unfold-gates',): proven, exported" in said


def test_edge_export(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    example("07_edge_export.py")["main"]("bundled:digits-resnet", tmp_path / "out", seconds=0.1)
    said = capfd.readouterr().out
    assert "float16: " in said and "dynamic: " in said
    assert said.count("neither torch nor fxslim") == 2


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
