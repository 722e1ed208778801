from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fxslim.pipeline import SlimOptions, slim
from fxslim.report import finite
from fxslim.report_text import headline, render
from tests.fxslim.factories import CLASSIFIER, write_data


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("report")
    data = str(write_data(folder / "data.npz"))
    options = SlimOptions(CLASSIFIER, keep=0.6, calibration=data, evaluation=data, latency_seconds=0.1)
    return slim(options, folder / "out")


def test_the_text_is_made_from_the_json_alone(report: dict[str, Any]) -> None:
    assert render(json.loads(json.dumps(report))) == render(report)


def test_the_verdict_comes_first(report: dict[str, Any]) -> None:
    lines = render(report).splitlines()
    assert lines[0] == f"# {CLASSIFIER}: ok on cpu: no other execution provider works here"
    assert "fewer parameters" in lines[2] and "on cpu, 1 thread" in lines[3] and "accuracy" in lines[4]
    assert "proven equal" in lines[5] and "ONNX file computes" in lines[6]


def test_it_holds_every_section(report: dict[str, Any]) -> None:
    text = render(report)
    for word in (
        "first.weight[0]",
        "residual refitted",
        "control",
        "Operators without a rule: none",
        "onnxruntime",
        "batch 5",
    ):
        assert word in text
    assert report["command"] in text


def test_the_calibration_data_is_described(report: dict[str, Any]) -> None:
    summary, data = report["restoration"]["summary"], report["data"]["calibration"]
    rows = report["restoration"]["rows"]
    assert data["parts"][0] == {"source": "data.npz", "share": 1.0, "rows": 64, "tokens": 0, "available": 64}
    assert summary["refits"] == len(rows) == 2
    assert summary["rejected"] == sum(not r["accepted"] for r in rows)
    assert summary["tokens_per_column"][0] == min(64 / r["fitted"] for r in rows) < 4
    assert summary["worst_error"][1] == max(r["after"] for r in rows)
    text, said = render(report), report["restoration"]["too_little"]
    assert "too little calibration data" in said and "data.npz holds 64" in said
    assert text.count(said) == 2 and headline(report)[-1] == said, "at the top and in its section"
    section = text[text.index("## Calibration") : text.index("## Restoration")]
    for part in ("64 of 64 rows of data.npz", "Tokens for each column", "Held-out error", "refits rejected"):
        assert part in section, part


def test_a_mixture_has_a_row_for_every_part(report: dict[str, Any]) -> None:
    copy = json.loads(json.dumps(report))
    part = {"source": "data.npz", "share": 0.75, "rows": 48, "tokens": 0, "available": 64}
    copy["data"]["calibration"]["parts"] = [part, {**part, "source": "more.npz", "share": 0.25, "rows": 16}]
    copy["restoration"]["too_little"] = None
    text = render(copy)
    assert "| data.npz | 75.0% | 48 | 75.0% | 0 |" in text and "| more.npz | 25.0% | 16 | 25.0% | 0 |" in text
    assert "too little" not in text


def test_numbers_agree_with_each_other(report: dict[str, Any]) -> None:
    before, after = report["costs"]["params"]
    assert abs(after / before - 0.6) <= 0.01
    kept = {g["group"]: g["kept"] for g in report["groups"]}
    first, second = kept["first.weight[0]"], kept["second.weight[0]"]
    assert after == first * (8 + 1) + second * (first + 1) + 3 * (second + 1)
    assert report["quality"]["before"] == 1.0  # the labels are the original's own answers
    assert report["quality"]["count"] == 64


def test_a_failure_is_told_first(report: dict[str, Any]) -> None:
    failed = json.loads(json.dumps(report))
    failed["verdict"], failed["failures"] = "FAILED", ["ONNX: at batch=3 the output differs"]
    failed["parity"]["ok"] = failed["proof"]["ok"] = False
    text = render(failed)
    assert text.startswith(f"# {CLASSIFIER}: FAILED")
    assert text.index("at batch=3 the output differs") < text.index("## Size")
    assert any("NOT PROVEN" in line for line in headline(failed))


def test_not_faster_is_said_plainly(report: dict[str, Any]) -> None:
    slow = json.loads(json.dumps(report))
    slow["latency"]["verdict"] = "not faster: 1.36x slower (95 % CI 1.28-1.41)"
    assert headline(slow)[1].startswith("not faster: 1.36x slower")


def test_no_path_of_the_machine_in_it(report: dict[str, Any]) -> None:
    """Apart from what the user named on the command line."""
    copy = {k: v for k, v in report.items() if k != "command"}
    assert str(Path(__file__).parents[2]) not in json.dumps(copy)


def test_what_json_cannot_hold_becomes_none() -> None:
    assert finite({"a": [math.inf, 1.0], 2: (math.nan,)}) == {"a": [None, 1.0], "2": [None]}
