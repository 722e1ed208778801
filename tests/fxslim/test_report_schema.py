"""The schema of report.json, its documentation, and what a run really writes: one and the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from fxslim.pipeline import SlimOptions, slim
from fxslim.report_file import FORMAT
from tests.fxslim import reports
from tests.fxslim.factories import CLASSIFIER, write_data
from tests.fxslim.report_keys import BEGIN, END, PAGE, schema, tables


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("schema")
    data = str(write_data(folder / "data.npz"))
    options = SlimOptions(
        CLASSIFIER, keep=0.6, calibration=data, evaluation=data, latency_seconds=0.1, onnx_dtype="float16",
        quantize="dynamic",
    )  # fmt: skip
    return slim(options, folder / "out")


def problems(report: dict[str, Any]) -> list[str]:
    return [f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema()).iter_errors(report)]


def undescribed(value: Any, part: dict[str, Any], path: str = "") -> Iterator[str]:
    """Keys of a report that its schema says nothing of."""
    while "$ref" in part:
        part = schema()["$defs"][part["$ref"].rpartition("/")[2]]
    if "anyOf" in part:
        if value is not None:
            yield from undescribed(value, next(p for p in part["anyOf"] if p != {"type": "null"}), path)
    elif isinstance(value, dict) and "properties" in part:
        for key, inner in value.items():
            if key not in part["properties"]:
                yield f"{path}.{key}"
            else:
                yield from undescribed(inner, part["properties"][key], f"{path}.{key}")
    elif isinstance(value, list) and "items" in part:
        for inner in value:
            yield from undescribed(inner, part["items"], f"{path}[]")


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema())
    assert schema()["properties"]["format"]["const"] == FORMAT


def test_a_real_report_is_what_the_schema_says(real: dict[str, Any]) -> None:
    assert problems(real) == []
    assert sorted(set(undescribed(real, schema()))) == []


def test_a_report_that_is_made_for_tests_is_as_real_ones(real: dict[str, Any]) -> None:
    made = {
        **reports.report(),
        "variants": [reports.variant()],
        "recipe": "keep: 0.5",
        "resumed": [],
        "memory": None,
        "estimated_seconds": {},
        "gates": [],
        "plugins": [],
    }
    for report in (made, reports.failed()):
        assert problems(report) == [] and list(undescribed(report, schema())) == []
    assert real.keys() <= made.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [("format", 2), ("verdict", "fine"), ("failures", None), ("costs", {}), ("seconds", {"load": "1"}), ("groups", {})],
)
def test_what_no_run_writes_is_refused(key: str, value: Any) -> None:
    assert problems({**reports.report(), key: value})


def test_every_key_is_described_and_typed() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in tables().splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if not row[1].strip() or not row[2].strip(" |")] == []
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == f"\n{tables()}", (
        "docs/report.md is not of this schema: python -m tests.fxslim.report_keys"
    )


def test_the_schema_is_in_the_package() -> None:
    from importlib.resources import files

    assert (Path(str(files("fxslim"))) / "report.schema.json").is_file()


def test_a_report_stays_small() -> None:
    import json

    assert len(json.dumps(reports.report(layers=200), indent=2)) < 1_000_000
