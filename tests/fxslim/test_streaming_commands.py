"""Commands on models whose weights stay on disk: what they make, what they refuse, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fxslim.cli import app
from fxslim.forecast import forecast
from fxslim.graph.errors import InputError
from fxslim.graph.stores import FileTensor, Spill
from fxslim.passes.enough import FEWEST
from fxslim.pipeline import SlimOptions, slim
from fxslim.recipe import Pinned
from fxslim.run_steps import Unwatched
from fxslim.streaming import scratch_beside
from tests.fxslim.hf import tiny_llama, token_data

WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("hf") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_data(tmp_path_factory.mktemp("data") / "data.npz", 8 * FEWEST)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of weights that were read one by one."""
    found: list[str] = []
    read = FileTensor.read

    def noted(self: FileTensor) -> torch.Tensor:
        found.append(self.path.name)
        return read(self)

    monkeypatch.setattr(FileTensor, "read", noted)
    return found


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def changed(model: Path, place: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a model in one file with other weights."""
    tensors: dict[str, torch.Tensor] = {}
    place.mkdir()
    for file in model.glob("*.safetensors"):
        tensors |= load_file(file)
    change(tensors)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text((model / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    return place


def test_a_plan_is_proven_and_its_program_exported_and_checked_off_disk(
    model: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan, made, file = tmp_path / "plan.json", tmp_path / "slim", tmp_path / "model.onnx"
    assert run("plan", model, "--keep", "0.8", "--stream", "-o", plan).exit_code == 0
    reads.clear()
    assert run("prove", model, plan, "--stream").exit_code == 0 and reads
    assert run("apply", model, plan, "--stream", "-o", made).exit_code == 0
    reads.clear()
    assert run("export", made, "--stream", "-o", file).exit_code == 0 and "weights.safetensors" in reads
    assert run("export", made, "-o", tmp_path / "whole.onnx").exit_code == 0
    assert file.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    reads.clear()
    found = run("check", made, file, "--stream", "--original", model, "--provider", "cpu")
    assert found.exit_code == 0 and "ok on" in found.output and "weights.safetensors" in reads
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "plan.json", "slim", "whole.onnx"]


@pytest.mark.parametrize("command", ["plan", "plan with data", "apply", "prove"])
def test_a_weight_that_is_not_finite_is_named(model: Path, data: Path, tmp_path: Path, command: str) -> None:
    bad = changed(model, tmp_path / "bad", lambda t: t[WEIGHT].view(-1)[:3].fill_(float("nan")))
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    assert run("plan", model, "--keep", "0.8", "--stream", "-o", plan).exit_code == 0
    words: list[str | Path] = {
        "plan": ["plan", bad, "--keep", "0.8"], "apply": ["apply", bad, plan, "--restore", "none", "-o", out],
        "prove": ["prove", bad, plan],
        "plan with data": ["plan", bad, "--keep", "0.8", "--method", "fasp", "--calibration", data],
    }[command]  # fmt: skip
    found = run(*words, "--stream")
    assert found.exit_code == 2 and "3 of 2048 values of a weight are NaN or Inf" in found.output
    assert WEIGHT in found.output and not out.exists()


def test_bfloat16_that_no_check_could_follow_is_refused_before_the_work(
    model: Path, data: Path, tmp_path: Path
) -> None:
    def halved(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: value.bfloat16() for name, value in tensors.items()})

    narrow, out = changed(model, tmp_path / "narrow", halved), tmp_path / "out"
    asked = {"keep": 0.8, "method": "fasp", "calibration": str(data), "provider": "cpu", "stream": True}
    with pytest.raises(InputError, match=r"could not be checked(.|\n)*--dtype float32"):
        slim(SlimOptions(str(narrow), **asked), out)  # type: ignore[arg-type]
    assert not out.exists()
    report = slim(SlimOptions(str(narrow), dtype="float32", **asked), out)  # type: ignore[arg-type]
    assert report["verdict"] == "ok"
    plan, made = tmp_path / "plan.json", tmp_path / "made"
    assert run("plan", narrow, "--keep", "0.8", "--stream", "-o", plan).exit_code == 0
    assert run("apply", narrow, plan, "--stream", "--restore", "none", "-o", made).exit_code == 0
    assert {w.dtype for w in load_file(made / "weights.safetensors").values() if w.dim() == 2} == {torch.bfloat16}


def test_a_weight_of_integers_is_named(model: Path, tmp_path: Path) -> None:
    def quantised(tensors: dict[str, torch.Tensor]) -> None:
        tensors[WEIGHT] = (tensors[WEIGHT] * 1000).to(torch.int8)

    bad = changed(model, tmp_path / "bad", quantised)
    found = run("plan", bad, "--keep", "0.8", "--stream")
    assert found.exit_code == 2 and "is stored as int8" in found.output and WEIGHT in found.output


def test_what_killed_runs_have_spilled_goes(tmp_path: Path) -> None:
    dead, busy = tmp_path / ".fxslim-dead", tmp_path / ".fxslim-busy"
    for folder in (dead, busy):
        folder.mkdir()
        (folder / "1.bin").write_bytes(b"x")
    (tmp_path / ".fxslim-dead.lock").touch()
    with FileLock(tmp_path / ".fxslim-busy.lock"), scratch_beside(tmp_path / "out", wanted=True) as scratch:
        assert scratch is not None and scratch.parent == tmp_path and scratch.is_dir()
        assert not dead.exists() and (busy / "1.bin").is_file()
        with scratch_beside(tmp_path / "other", wanted=True) as second:
            assert second is not None and scratch.is_dir() and second != scratch
    assert sorted(f.name for f in tmp_path.iterdir() if f.suffix != ".lock") == [".fxslim-busy"]
    assert not (tmp_path / ".fxslim-dead.lock").exists()


def test_a_dry_run_spills_beside_the_result_and_says_what_was_predicted(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: set[Path] = set()

    def noted(self: Spill, folder: Path, *more: Any) -> None:
        folders.add(folder)
        made(self, folder, *more)

    made = Spill.__init__
    monkeypatch.setattr(Spill, "__init__", noted)
    monkeypatch.setattr("fxslim.forecast.own_peak_bytes", lambda: 0)
    monkeypatch.setattr("fxslim.forecast.predicted_bytes", lambda *_: 12345)
    asked = SlimOptions(str(model), keep=0.8, method="fasp", calibration=str(data), stream=True, provider="cpu")
    found = forecast(asked, Pinned(), Unwatched(), tmp_path / "out")
    assert found.peak_bytes == 12345 and "latency" not in found.seconds
    assert folders and all(tmp_path in folder.parents for folder in folders)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("slim", "--stream", "-o", "."), "cannot be the name of a result"),
        (("slim", "--stream", "-o", ".."), "cannot be the name of a result"),
        (("plan", "--stream", "--memory", "-o", "plan.json"), "no effect with --memory"),
        (("plan", "--stream", "--samples", "0"), "--samples is 0"),
        (("slim", "--stream", "--window", "0", "-o", "x"), "--window is 0"),
    ],
)
def test_mistakes_are_told(anywhere: Path, model: Path, words: tuple[str, ...], said: str) -> None:
    command, *more = words
    found = run(command, model, "--keep", "0.8", *more)
    assert found.exit_code == 2 and said in found.output
