"""What a run is expected to do and take."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxslim.forecast import forecast
from fxslim.pipeline import slim
from fxslim.recipe import Pinned
from fxslim.run_steps import Unwatched
from fxslim.slim_options import SlimOptions
from tests.fxslim.factories import CLASSIFIER, write_data


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> SlimOptions:
    data = str(write_data(tmp_path_factory.mktemp("data") / "data.npz"))
    return SlimOptions(CLASSIFIER, keep=0.6, calibration=data, evaluation=data, provider="cpu", latency_seconds=0.05)


def test_what_is_foreseen_is_what_the_run_does(options: SlimOptions, tmp_path: Path) -> None:
    found = forecast(options, Pinned(), Unwatched()).to_dict()
    report = slim(options, tmp_path / "out")
    assert found["params"] == report["costs"]["params"]
    assert found["macs"] == report["costs"]["macs"]
    assert {g["group"]: g["kept"] for g in found["groups"]} == {g["group"]: g["kept"] for g in report["groups"]}
    assert set(found["seconds"]) == set(report["seconds"])
    assert found["expected_loss"] > 0


def test_nothing_is_written(options: SlimOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forecast(options, Pinned(), Unwatched())
    assert list(tmp_path.iterdir()) == []


def test_every_file_that_is_asked_for_takes_its_time(options: SlimOptions) -> None:
    from dataclasses import replace

    found = forecast(replace(options, quantize="dynamic", latency_seconds=5.0), Pinned(), Unwatched())
    assert found.seconds["latency"] == 5.0
    assert found.seconds["dynamic"] > 5.0
    assert set(found.measured) < set(found.seconds)
    assert found.peak_bytes > 1 << 20
