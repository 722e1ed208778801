from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxslim.export.latency import LatencyReport, Ratio, bootstrap_ratio, measure_latency, run_times
from fxslim.export.providers import resolve_provider
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.capture import capture
from fxslim.graph.errors import CheckError, InputError
from tests.export.nets import Exported

CALM = Ratio(1.0, 0.99, 1.01)
BUDGET = 1.5  # seconds: enough for the rounds that are always made


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A perceptron, and one with a sixty-fourth of its work."""
    folder, paths = tmp_path_factory.mktemp("pair"), {}
    for name, width in (("original", 2048), ("slim", 32)):
        model = nn.Sequential(nn.Linear(256, width), nn.ReLU(), nn.Linear(width, 256))
        paths[name] = folder / f"{name}.onnx"
        export_onnx(capture(model, (torch.randn(8, 256),)), paths[name])
    return paths


def report(ratio: Ratio, control: Ratio = CALM) -> LatencyReport:
    return LatencyReport("a", "b", {"a": 2.0, "b": 1.0}, ratio, control, "cpu", 1, 30, 1.0)


def test_a_model_with_far_less_work_is_faster_and_the_reverse_is_not(pair: dict[str, Path]) -> None:
    inputs = [torch.randn(8, 256)]
    result = measure_latency(pair, inputs, provider="cpu", threads=1, seconds_budget=BUDGET)
    assert result.faster and not result.slower and result.ratio.low > 1
    assert result.ratio.low <= result.ratio.value <= result.ratio.high
    assert result.control.low <= result.control.value <= result.control.high < result.ratio.low
    assert result.median_ms["original"] > result.median_ms["slim"] > 0
    assert (result.baseline, result.candidate, result.provider, result.threads) == ("original", "slim", "cpu", 1)
    assert result.denormals_as_zero and result.rounds >= 24
    reverse = measure_latency(dict(reversed(pair.items())), inputs, provider="cpu", seconds_budget=BUDGET)
    assert reverse.slower and not reverse.faster and reverse.verdict.startswith("not faster: ")
    assert json.loads(json.dumps(result.to_dict()))["verdict"] == result.verdict


def test_verdicts() -> None:
    assert report(Ratio(1.42, 1.38, 1.47)).verdict == "1.42x faster (95 % CI 1.38-1.47)"
    assert report(Ratio(1.0, 0.97, 1.02)).verdict == "not faster: 1.00x (95 % CI 0.97-1.02)"
    assert report(Ratio(0.5, 0.4, 0.625)).verdict == "not faster: 2.00x slower (95 % CI 1.60-2.50)"


def test_a_gain_within_the_noise_of_the_control_is_no_gain() -> None:
    noisy = report(Ratio(1.03, 1.01, 1.05), control=Ratio(1.0, 0.94, 1.06))
    assert not noisy.faster and noisy.verdict.startswith("not faster beyond noise")
    assert dataclasses.replace(noisy, control=Ratio(1.0, 0.99, 1.005)).faster


def test_the_interval_covers_the_truth_and_narrows_with_more_rounds() -> None:
    random = np.random.default_rng(0)

    def parts(rounds: int) -> list[list[tuple[float, float]]]:
        return [[(1.5 * math.exp(0.1 * random.normal()), 1.0) for _ in range(rounds)] for _ in range(3)]

    few, many = bootstrap_ratio(parts(10)), bootstrap_ratio(parts(1000))
    assert few.low < 1.5 < few.high and many.low < 1.52 and many.high > 1.48
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_luck_shared_by_a_pair_of_sessions_widens_the_interval() -> None:
    lucky = bootstrap_ratio([[(r, 1.0)] * 50 for r in (0.9, 1.0, 1.1)])
    assert lucky.low < 0.95 and lucky.high > 1.05


def test_outliers_do_not_move_the_ratio() -> None:
    calm = [(2.0, 1.0)] * 20
    assert bootstrap_ratio([[*calm, (2.0, 500.0)]] * 3).value == pytest.approx(2.0)


def test_two_models_are_needed(pair: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="here are 1"):
        measure_latency({"original": pair["original"]}, [torch.randn(8, 256)])
    with pytest.raises(InputError, match="there is no file"):
        measure_latency({"a": pair["original"], "b": "none.onnx"}, [torch.randn(8, 256)])


def test_inputs_that_do_not_fit_are_refused(pair: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="1 inputs"):
        measure_latency(pair, [torch.randn(8, 256)] * 2, provider="cpu", seconds_budget=BUDGET)
    with pytest.raises(CheckError, match="does not run on cpu"):
        measure_latency(pair, [torch.randn(8, 255)], provider="cpu", seconds_budget=BUDGET)


def test_each_model_may_have_inputs_of_its_own(pair: dict[str, Path], attention: Exported) -> None:
    models = {"original": pair["original"], "other": attention.file.path}
    inputs = {"original": [torch.randn(8, 256)], "other": list(attention.program.example_inputs)}
    assert measure_latency(models, inputs, provider="cpu", seconds_budget=BUDGET).rounds >= 24


def test_inputs_that_a_model_cannot_run_are_a_failed_check(pair: dict[str, Path]) -> None:
    with pytest.raises(CheckError, match="does not run on cpu"):
        run_times(pair["slim"], [torch.randn(8, 255)], resolve_provider("cpu"), 1)
