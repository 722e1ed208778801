"""`fxslim bench`: what it prints and refuses, and which cases it makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from fxslim.bench import default_cases, share_of_ideal
from fxslim.export import LatencyReport
from fxslim.export.latency import Ratio
from fxslim.export.peak import peak_bytes
from fxslim.export.providers import resolve_provider
from fxslim.sources import load_model
from tests.fxslim.factories import CLASSIFIER, OTHER
from tests.fxslim.test_cli import FAST, refused, run

CPU = resolve_provider("cpu")
SHORT = ("--seconds", "0.2")
MAGNITUDE = ("--method", "magnitude", *FAST)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "out"
    made = run("slim", CLASSIFIER, "--width", "0.5", *FAST, "-o", out)
    assert made.exit_code == 0, made.output
    return out


def timed(result: Path, *words: str, original: str = CLASSIFIER) -> Result:
    """A report is no reason to run the code of a factory: it is named again."""
    return run("bench", result, "--original", original, *words)


def test_a_factory_is_not_opened_because_a_report_names_it(result: Path) -> None:
    refused(run("bench", result, *SHORT), "that is code", f"--original {CLASSIFIER}")


def test_a_case_of_chosen_sizes_is_timed_with_its_control_and_its_ideal(result: Path) -> None:
    done = timed(result, "--sizes", "batch=4", "--sizes", "batch=32", "--json", *SHORT)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [case["sizes"] for case in found["cases"]] == [{"batch": 4}, {"batch": 32}]
    first, second = (case["macs"] for case in found["cases"])
    assert second["original"] == 8 * first["original"] == 32 * (8 * 32 + 32 * 32 + 32 * 3)
    assert second["slim"] == 32 * (8 * 16 + 16 * 16 + 16 * 3)
    assert found["initializer_bytes"]["slim"] < found["initializer_bytes"]["original"]
    for case in found["cases"]:
        assert len(case["latency"]["rebuild_ratios"]) == 5
        assert case["latency"]["control"]["low"] <= case["latency"]["control"]["high"]
        assert case["ideal_ratio"] == pytest.approx(case["macs"]["original"] / case["macs"]["slim"])
        assert all(case["peak_bytes"][name] > 0 for name in ("original", "slim"))


def test_without_sizes_those_of_the_report_are_timed_and_printed(result: Path) -> None:
    done = timed(result, *SHORT)
    assert done.exit_code == 0, done.output
    assert "sizes of the report" in done.stdout and "control" in done.stdout and "rebuilt sessions" in done.stdout
    assert f"{CLASSIFIER} on cpu" in done.stdout


def test_what_cannot_be_timed_is_refused(result: Path, tmp_path: Path) -> None:
    refused(run("bench", tmp_path), "there is no report here", "give a result of `fxslim slim`")
    refused(timed(result, "--sizes", "rows=3"), "no dynamic dimension 'rows'", "batch")
    refused(timed(result, "--sizes", "batch"), "no size of a dimension")
    refused(timed(result, original="bundled:opt-python"), "the slim model")
    broken = tmp_path / "broken"
    shutil.copytree(result, broken)
    (broken / "report.json").write_text("[]")
    refused(run("bench", broken), "no report")


def test_another_original_of_the_same_inputs_is_taken(result: Path) -> None:
    done = timed(result, "--json", *SHORT, original=OTHER)
    assert done.exit_code == 0, done.output
    (case,) = json.loads(done.stdout)["cases"]
    assert case["macs"]["original"] > 2 * case["macs"]["slim"]


def test_decoders_with_caches_are_timed_at_prefill_and_at_a_step() -> None:
    program = load_model("bundled:opt-python", task="text-generation").program
    prefill, decode = default_cases(program, {})
    assert (prefill.name, decode.name) == ("prefill", "decode")
    past = next(name for name, size in prefill.sizes.items() if size == 0)
    assert decode.sizes[past] == 256
    new = next(name for name, size in prefill.sizes.items() if size == 256)
    assert decode.sizes[new] == 1
    assert past != new and set(prefill.sizes) == set(decode.sizes)


def test_the_share_of_the_ideal_is_of_the_time_that_arithmetic_saves() -> None:
    calm = Ratio(1.0, 1.0, 1.0)
    report = LatencyReport("a", "b", {}, Ratio(1.6, 1.5, 1.7), calm, "cpu", 1, 8, 1.0)
    assert share_of_ideal(report, {"original": 100, "slim": 50}) == pytest.approx((1 - 1 / 1.6) / 0.5)
    assert share_of_ideal(report, {"original": 100, "slim": 100}) is None


@pytest.mark.parametrize("words", [("--seconds", "inf"), ("--threads", "0")])
def test_measurements_that_would_not_end_or_mean_nothing_are_refused(result: Path, words: tuple[str, str]) -> None:
    refused(timed(result, *words), words[0])


def test_a_bundled_model_is_found_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("slim", "bundled:digits-resnet", "--width", "0.5", *MAGNITUDE, "-o", out).exit_code == 0
    done = run("bench", out, "--json", *SHORT)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model"] == "digits-resnet"


@pytest.mark.slow
def test_a_decoder_with_its_cache_is_timed_within_its_positions(pristine_opt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--width", "0.5", *MAGNITUDE, "--task", "text-generation")
    assert run("slim", pristine_opt, *words, "-o", out).exit_code == 0
    done = run("bench", out, "--json", *SHORT)
    assert done.exit_code == 0, done.output
    prefill, decode = json.loads(done.stdout)["cases"]
    assert (prefill["name"], decode["name"]) == ("prefill", "decode")
    assert max(prefill["sizes"].values()) == max(decode["sizes"].values()) < 256  # it has fewer positions
    assert decode["macs"]["original"] < prefill["macs"]["original"]


def test_a_larger_model_has_a_larger_peak(tmp_path: Path) -> None:
    from fxslim.api import capture
    from fxslim.export import export_onnx

    peaks = []
    for width in (16, 4096):
        x = torch.randn(2, 1024)
        module = torch.nn.Sequential(torch.nn.Linear(1024, width), torch.nn.Linear(width, 1024))
        export_onnx(capture(module, (x,)), tmp_path / f"{width}.onnx")
        peaks.append(peak_bytes(tmp_path / f"{width}.onnx", [x], CPU, 1))
    assert peaks[0] is not None and peaks[1] is not None
    assert peaks[1] - peaks[0] > 2 * 1024 * 4096 * 4  # at least its weights
