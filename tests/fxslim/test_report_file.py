from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fxslim import report_file
from fxslim.graph.errors import InputError
from fxslim.report_file import read_report
from tests.fxslim import reports


def written(folder: Path, report: Any) -> Path:
    path = folder / "report.json"
    path.write_text(report if isinstance(report, str) else json.dumps(report), encoding="utf-8")
    return path


def test_a_result_and_its_file_hold_one_report(tmp_path: Path) -> None:
    path = written(tmp_path, reports.report())
    assert read_report(tmp_path) == read_report(path) == reports.report()


@pytest.mark.parametrize("format_", [0, 2, "1", None, True, 1.5])
def test_an_unknown_format_is_refused(tmp_path: Path, format_: Any) -> None:
    with pytest.raises(InputError, match="this version reads 1"):
        read_report(written(tmp_path, {**reports.report(), "format": format_}))


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "no JSON"), ("[1]", "no report"), ("{}", "no report"), ("[" * 100_000, "no JSON"),
     ('{"format": 1}', "no whole"), ('{"format": 1, "verdict": "ok"}', "'failures'")],
)  # fmt: skip
def test_what_is_no_report_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_report(written(tmp_path, content))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no report here"):
        read_report(tmp_path)
    written(tmp_path, "").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no JSON"):
        read_report(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, reports.report())
    monkeypatch.setattr(report_file, "LARGEST", 100)
    with pytest.raises(InputError, match="more than a report can have"):
        read_report(path)


def test_keys_that_came_later_have_what_was_meant(tmp_path: Path) -> None:
    report = reports.report()
    for key in ("provider", "variants", "loader", "curves"):
        report.pop(key)
    found = read_report(written(tmp_path, report))
    assert found["provider"]["used"] == "cpu" and found["variants"] == [] and found["loader"] is None
