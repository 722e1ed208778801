from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fxslim import pipeline, subject
from fxslim.cli import app
from fxslim.graph.errors import FxslimError, InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.made import plan_key
from fxslim.opening import open_model, saved_program
from fxslim.outputs import verify_manifest
from fxslim.passes.methods import Settings, settings
from fxslim.pipeline import slim
from fxslim.run_steps import Run, Unwatched
from fxslim.slim_options import SlimOptions
from fxslim.sources import load_model
from tests.fxslim.factories import CLASSIFIER, FEATURES, write_data

STEPS = [
    "load", "capture", "analyze", "data", "export", "plan", "apply", "prove", "evaluate", "export slim", "check",
    "latency",
]  # fmt: skip


class Recorder(Unwatched):
    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, name: str) -> None:
        self.steps.append(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_data(tmp_path_factory.mktemp("data") / "data.npz"))


def test_the_steps_in_order_and_a_whole_result(data: str, tmp_path: Path) -> None:
    watcher = Recorder()
    options = SlimOptions(CLASSIFIER, width=0.5, calibration=data, latency_seconds=0.1)
    report = slim(options, tmp_path / "out", watcher=watcher)
    assert watcher.steps == STEPS and list(report["seconds"]) == STEPS
    assert report["quality"] is None  # nothing to measure it on: it says so instead of inventing a number
    assert verify_manifest(tmp_path / "out") == []


def test_the_saved_program_computes_what_the_report_measured(data: str, tmp_path: Path) -> None:
    slim(SlimOptions(CLASSIFIER, width=0.5, calibration=data, latency_seconds=0.1), tmp_path / "out")
    program = open_model(str(tmp_path / "out")).program
    module = program.module()
    x = torch.randn(3, FEATURES)
    assert torch.equal(module(x), Evaluator(program).run([x])[0])
    assert module.first.weight.shape == (16, FEATURES)


def test_the_original_is_left_as_it_was(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_model(CLASSIFIER)
    before = {name: tensor.clone() for name, tensor in source.program.weights.items()}
    fingerprint = source.program.fingerprint()
    monkeypatch.setattr(subject, "open_model", lambda *args, **kwargs: source)
    slim(SlimOptions(CLASSIFIER, width=0.5, calibration=data, latency_seconds=0.1), tmp_path / "out")
    assert source.program.fingerprint() == fingerprint
    assert all(torch.equal(source.program.weights[name], tensor) for name, tensor in before.items())


def test_a_run_that_ends_early_leaves_no_result_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    options = SlimOptions(CLASSIFIER, width=0.5, latency_seconds=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "measure_latency", interrupt)
        with pytest.raises(KeyboardInterrupt):
            slim(options, tmp_path / "out")
    assert [f.name for f in tmp_path.iterdir()] == [".out.work"]
    assert slim(options, tmp_path / "out")["resumed"] == ["plan"]
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    whole = slim(options, tmp_path / "whole")
    assert whole["resumed"] == []
    for name in ("plan.json", "model.onnx", "slim/weights.safetensors", "slim/graph.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_page_that_cannot_be_drawn_does_not_cost_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(report: dict[str, Any]) -> str:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(pipeline, "render_page", fail)
    report = slim(SlimOptions(CLASSIFIER, width=0.5, latency_seconds=0.1), tmp_path / "out")
    assert report["verdict"] == "ok" and "report.html could not be drawn: RuntimeError: no fonts" in report["notes"]
    assert verify_manifest(tmp_path / "out") == [] and not (tmp_path / "out" / "report.html").exists()


def test_a_run_that_fails_before_its_plan_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FxslimError):
        slim(SlimOptions(CLASSIFIER, keep=0.001), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_run_left_is_used_only_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = SlimOptions(CLASSIFIER, width=0.5, latency_seconds=0.1)
    subject_of = keyed(options, tmp_path)
    assert plan_key(options, subject_of) == plan_key(replace(options, provider="cpu", opset=21), subject_of)
    for other in (replace(options, width=0.6), replace(options, seed=1), replace(options, loader_compatible=True)):
        assert plan_key(other, subject_of) != plan_key(options, subject_of)
    timed = replace(options, width=None, keep=0.5, of="latency")
    assert plan_key(timed, subject_of) != plan_key(replace(timed, threads=2), subject_of)
    before = plan_key(options, subject_of)
    monkeypatch.setattr("fxslim.identity.code_digest", lambda: "another state of the code")
    assert plan_key(options, subject_of) != before


def keyed(options: SlimOptions, scratch: Path) -> subject.Subject:
    return subject.open_subject(options, scratch, Run(Unwatched()))


@pytest.mark.parametrize(
    "options",
    [
        SlimOptions(
            CLASSIFIER, keep=0.5, groups=("neurons",), keep_fixed=("a*", "b"), inexact=True, round_to=8, seed=3
        ),
        SlimOptions("a model", width=0.25, of="macs", calibration="some data.npz", trust_pt2=True, latency_seconds=2.5),
        SlimOptions("a model", keep=0.5, calibration=("code.txt=0.7", "self=0.3"), text_field="body"),
    ],
)
def test_the_command_says_what_was_asked(options: SlimOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SlimOptions] = []

    def record(given: SlimOptions, *args: Any, **kwargs: Any) -> None:
        seen.append(given)
        raise InputError("enough")

    monkeypatch.setattr(pipeline, "slim", record)
    words = shlex.split(options.command(Path("out dir")))
    assert words[0] == "fxslim"
    CliRunner().invoke(app, words[1:])
    assert seen == [options]


def test_the_default_method_depends_on_the_data() -> None:
    assert settings(data=True) == settings("best", data=True)
    assert settings(data=False) == Settings("magnitude", False, "uniform", None)


def test_a_saved_program_is_found_in_a_result(tmp_path: Path) -> None:
    assert saved_program(tmp_path) is None
    (tmp_path / "slim").mkdir()
    (tmp_path / "slim" / "graph.json").write_text("{}")
    assert saved_program(tmp_path) == tmp_path / "slim" == saved_program(tmp_path / "slim")


def test_a_saved_program_keeps_its_type(tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text("{}")
    with pytest.raises(InputError, match="keeps its type"):
        open_model(str(tmp_path), dtype="float16")
