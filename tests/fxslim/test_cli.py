from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fxslim import doctor, pipeline, targets
from fxslim.cli import app
from fxslim.passes.plan import Plan
from fxslim.passes.prove import Proof
from tests.fxslim.factories import BROKEN, CLASSIFIER, OTHER, write_data

FAST = ("--latency-seconds", "0.1")
LINE = 80  # columns of a terminal that nobody widened


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": str(LINE), "FXSLIM_DEBUG": "0"})


def refused(result: Result, *parts: str) -> None:
    """A user's mistake: exit code 2, one clear message, nothing on standard output, no traceback."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr and "defect" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.npz")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One whole run."""
    out = tmp_path_factory.mktemp("slim") / "out"
    words = (CLASSIFIER, "--keep", "0.6", "--calibration", data, "--evaluation", data, "--json", *FAST, "-o", out)
    return run("slim", *words), out


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    result = run("plan", CLASSIFIER, "--width", "0.5", "-o", path)
    assert result.exit_code == 0, result.output
    return path


def test_slim_writes_a_whole_result(finished: tuple[Result, Path]) -> None:
    result, out = finished
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert report["verdict"] == "ok" and report["format"] == 1
    names = {p.name for p in out.iterdir()}
    assert names == {"model.onnx", "slim", "plan.json", "report.json", "report.md", "report.html", "manifest.json"} | {
        "recipe.yaml"
    }


def test_check_accepts_the_result(finished: tuple[Result, Path]) -> None:
    result = run("check", finished[1], "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ok"] and found["manifest"] == [] and found["parity"]["shapes"]


def test_check_finds_a_changed_onnx_file(finished: tuple[Result, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", finished[1], copy], check=True)
    file = copy / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)
    result = run("check", copy)
    assert result.exit_code == 1
    assert "model.onnx: its content has changed" in result.stdout


def test_check_finds_an_onnx_file_of_another_model(finished: tuple[Result, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    assert run("export", CLASSIFIER, "-o", other).exit_code == 0
    result = run("check", finished[1], other)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout


def test_check_measures_the_distance_to_the_original(finished: tuple[Result, Path]) -> None:
    out = finished[1]
    result = run("check", out / "slim", out / "model.onnx", "--original", CLASSIFIER, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parity"]["quality"][0]["relative"] > 0


def test_a_result_is_a_model(finished: tuple[Result, Path], tmp_path: Path) -> None:
    result = run("groups", finished[1], "--json")
    assert result.exit_code == 0, result.output
    sizes = [g["size"] for g in json.loads(result.stdout)["groups"]]
    assert sizes and max(sizes) < 32
    again = run("slim", finished[1], "--width", "0.5", *FAST, "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output


def test_keep_1_is_the_identity(tmp_path: Path) -> None:
    result = run("slim", CLASSIFIER, "--keep", "1", "--json", *FAST, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["groups"] == [] and report["costs"]["params"][0] == report["costs"]["params"][1]


def test_a_failed_proof_is_written_and_returns_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pipeline.prove

    def wrong(*args: Any) -> Proof:
        proof = honest(*args)
        return replace(proof, outputs=tuple(replace(o, error=1.0) for o in proof.outputs))

    monkeypatch.setattr(pipeline, "prove", wrong)
    result = run("slim", CLASSIFIER, "--width", "0.5", *FAST, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "FAILED" in result.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.startswith(f"# {CLASSIFIER}: FAILED") and "NOT PROVEN" in text
    monkeypatch.undo()
    later = run("check", tmp_path / "out")  # its files are whole, and compute what the slim program does
    assert later.exit_code == 1 and "FAILED when it was made: proof" in later.stdout


def test_groups(finished: tuple[Result, Path]) -> None:
    result = run("groups", CLASSIFIER, "--all")
    assert result.exit_code == 0, result.output
    assert "2 neurons" in result.stdout and "operators without a rule: none" in result.stdout
    assert "head.weight[0] is fixed" in result.stdout
    assert "\x1b" not in result.stdout
    table = result.stdout.split("\n\n")[0]
    assert all(len(line) <= LINE for line in table.splitlines())


def test_groups_refuses_a_kind_that_is_not_there() -> None:
    refused(run("groups", CLASSIFIER, "--kind", "heads"), "no group of the kind 'heads'", "neurons")


def test_explain() -> None:
    result = run("explain", CLASSIFIER, "first.weight[0]", "second.weight[1]")
    assert result.exit_code == 0, result.output
    assert "are tied" in result.stdout and "linear" in result.stdout
    refused(run("explain", CLASSIFIER, "frist.weight[0]"), "did you mean first.weight[0]")


def test_plan_apply_prove_export(plan_file: Path, data: Path, tmp_path: Path) -> None:
    proved = run("prove", CLASSIFIER, plan_file, "--json")
    assert proved.exit_code == 0, proved.output
    facts = json.loads(proved.stdout)
    assert facts["ok"] and facts["exact"] and facts["effect"] > 0
    applied = run("apply", CLASSIFIER, plan_file, "--calibration", data, "-o", tmp_path / "slim")
    assert applied.exit_code == 0, applied.output
    assert "weights were refitted" in applied.stdout
    exported = run("export", tmp_path / "slim", "-o", tmp_path / "model.onnx")
    assert exported.exit_code == 0, exported.output
    checked = run("check", tmp_path / "slim", tmp_path / "model.onnx")
    assert checked.exit_code == 0, checked.output


def test_too_little_data_is_said_once(data: Path, tmp_path: Path) -> None:
    """64 rows, all of them, for 29 columns: by `plan` before the work, by `apply` behind it, in the same words."""
    plan, words = tmp_path / "plan.json", ("--calibration", data)
    planned = run("plan", CLASSIFIER, "--width", "0.9", "--method", "fasp", *words, "-o", plan)
    applied = run("apply", CLASSIFIER, plan, *words, "-o", tmp_path / "slim")
    assert planned.exit_code == applied.exit_code == 0, planned.output + applied.output
    assert planned.stderr == applied.stderr
    assert planned.stderr.count("too little calibration data") == 1 and "data.npz holds 64" in planned.stderr


def test_prove_returns_1_if_it_does_not_hold(plan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Proof, "ok", property(lambda self: False))
    result = run("prove", CLASSIFIER, plan_file)
    assert result.exit_code == 1 and "NOT proven" in result.stdout


def test_plan_prints_one_json_document(plan_file: Path) -> None:
    result = run("plan", CLASSIFIER, "--width", "0.5", "--json")
    assert Plan.from_json(result.stdout) == Plan.load(plan_file)


def test_doctor() -> None:
    result = run("doctor", "--json")
    found = json.loads(result.stdout)
    states = {f["name"]: f["state"] for f in found["findings"]}
    assert states["self test"] == "ok" and states["torch"] == "ok"
    assert result.exit_code == (0 if found["ok"] else 1)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--keep", "0"), "keep must lie above 0"),
        (("--keep", "1.5"), "at most 1"),
        (("--keep", "0.001"), "cannot be met"),
        (("--keep", "nan"), "keep must lie"),
        (("--keep", "0.5", "--width", "0.5"), "exclude each other"),
        ((), "how much remains"),
        (("--keep", "0.5", "--provider", "abacus"), "no execution provider 'abacus'"),
        (("--keep", "0.5", "--keep-fixed", "tail*"), "'tail*' matches no group"),
        (("--keep", "0.5", "--groups", "heads"), "'heads' matches no kind"),
        (("--keep", "0.5", "--opset", "3"), "opset 3"),
        (("--keep", "0.5", "--restore", "least-squares"), "needs calibration data"),
        (("--keep", "0.5", "--importance", "fasp"), "needs calibration data"),
        (("--keep", "0.5", "--calibration", "nowhere.npz"), "no such data file"),
        (("--keep", "0.5", "--round-to", "0"), "round_to"),
        (("--keep", "0.5", "--threads", "0"), "--threads"),
        (("--keep", "0.5", "--samples", "0", "--calibration", "DATA"), "--samples is 0"),
        (("--plan", "nowhere.json"), "cannot be read"),
        (("--plan", "nowhere.json", "--round-to", "8"), "--round-to: no effect"),
    ],
)
def test_bad_options_of_slim(words: tuple[str, ...], part: str, data: Path, tmp_path: Path) -> None:
    given = (str(data) if w == "DATA" else w for w in words)
    refused(run("slim", CLASSIFIER, *given, *FAST, "-o", tmp_path / "out"), part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"x": np.zeros((0, 8), np.float32)}, "no rows"),
        ({"x": np.zeros((4, 7), np.float32)}, "x"),
        ({"x": np.full((4, 8), np.nan, np.float32)}, "NaN"),
        ({"y": np.zeros((4, 8), np.float32)}, "no input 'y'"),
    ],
)
def test_bad_calibration(arrays: dict[str, Any], part: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    out = tmp_path / "out"
    refused(run("slim", CLASSIFIER, "--keep", "0.5", "--calibration", tmp_path / "bad.npz", "-o", out), part)
    assert not out.exists()


def test_evaluation_without_labels_is_refused_before_the_work(tmp_path: Path) -> None:
    data = write_data(tmp_path / "plain.npz", labels=False)
    refused(run("slim", CLASSIFIER, "--keep", "0.5", "--evaluation", data, "-o", tmp_path / "out"), "labels")


def test_too_few_tokens(tiny_opt: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("the dog")
    refused(run("plan", tiny_opt, "--keep", "0.9", "--calibration", text), "fewer than one window")


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("bundled:nothing", "no bundled model"),
        (BROKEN, "NaN or Inf"),
        ("tests.fxslim.factories:nothing", "no function"),
    ],
)
def test_bad_models(model: str, part: str) -> None:
    refused(run("groups", model), part)


def test_a_corrupt_checkpoint(tiny_opt: Path) -> None:
    file = tiny_opt / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    refused(run("groups", tiny_opt), "model.safetensors")


def test_a_damaged_saved_program(finished: tuple[Result, Path], tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_text("{}")
    refused(run("groups", tmp_path), str(tmp_path))


def test_plans_that_do_not_fit(plan_file: Path, tmp_path: Path) -> None:
    refused(run("prove", OTHER, plan_file), "another model")
    refused(run("apply", OTHER, plan_file, "-o", tmp_path / "out"), "another model")
    bad = tmp_path / "bad.json"
    bad.write_text("keep the good ones")
    refused(run("prove", CLASSIFIER, bad), "not a plan")
    assert not (tmp_path / "out").exists()


def test_the_output_is_taken(finished: tuple[Result, Path], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for words in ((), ("--overwrite",)):
        refused(run("slim", CLASSIFIER, "--keep", "0.5", *words, *FAST, "-o", tmp_path), str(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_the_output_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("slim", CLASSIFIER, "--keep", "0.5", "-o", tmp_path / "file" / "out"), "cannot be written")


def test_check_of_what_is_no_result(tmp_path: Path) -> None:
    refused(run("check", tmp_path), "result of `fxslim slim`")


def test_usage_errors_are_2() -> None:
    assert run("slim").exit_code == 2
    assert run("slim", CLASSIFIER, "--keep", "much", "-o", "out").exit_code == 2
    assert run("nothing").exit_code == 2


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], Result]:
    def raised(error: BaseException) -> Result:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        # Where it is taken from there as well: what is imported while it is replaced would keep the replacement.
        monkeypatch.setattr(targets, "slim", fail)
        monkeypatch.setattr(pipeline, "slim", fail)
        return run("slim", CLASSIFIER, "--keep", "0.5", "-o", "never")

    return raised


def test_a_defect_says_that_it_is_one(raising: Callable[[BaseException], Result]) -> None:
    result = raising(ZeroDivisionError("division by zero"))
    assert result.exit_code == 70
    assert "a defect of fxslim" in result.stderr and "ZeroDivisionError: division by zero" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c(raising: Callable[[BaseException], Result]) -> None:
    result = raising(KeyboardInterrupt())
    assert result.exit_code == 130 and "Traceback" not in result.stderr


def test_debug_shows_the_traceback() -> None:
    result = CliRunner().invoke(app, ["groups", "bundled:nothing"], env={"FXSLIM_DEBUG": "1"})
    assert result.exit_code == 2 and "Traceback" in result.stderr


COMMANDS = "slim groups explain plan apply prove export check bench report compare doctor"


@pytest.mark.parametrize("command", COMMANDS.split())
def test_help_has_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0 and f"fxslim {command}" in result.stdout


def test_sigterm_leaves_what_the_next_run_goes_on_from(tmp_path: Path) -> None:
    """In a process of its own: stopped while it times, it keeps its plan and removes everything else."""
    words = [sys.executable, "-m", "fxslim", "slim", CLASSIFIER, "--width", "0.5", "--latency-seconds", "60"]
    process = subprocess.Popen([*words, "-o", tmp_path / "out"])
    try:
        deadline = time.monotonic() + 120
        while not any(tmp_path.glob(".out.work/plan-*")) and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it could be stopped"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert [p.name for p in tmp_path.iterdir()] == [".out.work"]
    assert [p.name.partition("-")[0] for p in (tmp_path / ".out.work").iterdir()] == ["plan"]


@pytest.mark.parametrize(
    ("found", "state"), [("2.13.0+cpu", "ok"), ("2.10.0", "ok"), ("2.9.1", "failed"), (None, "missing")]
)
def test_the_doctor_knows_old_versions(found: str | None, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda package: found if package == "torch" else "99.0")
    torch_finding = next(f for f in doctor.examine() if f.name == "torch")
    assert torch_finding.state == state
    assert torch_finding.ok == (state == "ok")
