from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fxslim.cli import app
from fxslim.outputs import MANIFEST
from fxslim.page import render_page
from tests.fxslim import reports
from tests.fxslim.factories import CLASSIFIER

LINE = 80


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": str(LINE), "FXSLIM_DEBUG": "0"})


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr and "defect" not in result.stderr
    for part in parts:
        assert part in result.stderr, result.stderr


def written(folder: Path, report: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def test_a_page_is_made_from_the_report_alone(tmp_path: Path) -> None:
    result, page = written(tmp_path / "out", reports.report()), tmp_path / "page.html"
    done = run("report", result, "-o", page)
    assert done.exit_code == 0 and str(page) in done.stdout, done.output
    assert page.read_text(encoding="utf-8") == render_page(reports.report())
    refused(run("report", result, "-o", page), "the file exists", "--overwrite")
    assert run("report", result / "report.json", "-o", page, "--overwrite").exit_code == 0


def test_a_result_is_not_changed(tmp_path: Path) -> None:
    result = written(tmp_path / "out", reports.report())
    (result / MANIFEST).write_text("{}", encoding="utf-8")
    refused(run("report", result, "-o", result / "again.html"), MANIFEST, "another folder")
    refused(run("compare", result, "--html", result / "c.html"), MANIFEST)
    assert sorted(p.name for p in result.iterdir()) == [MANIFEST, "report.json"]


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    result = written(tmp_path / "out", {**reports.report(), "format": 9})
    for command in (("report", result, "-o", tmp_path / "p.html"), ("compare", result)):
        refused(run(*command), "format 9", "this version reads 1")
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("costs", {}), ("latency", []), ("groups", [{}]), ("weights", {"rows": [1]}), ("proof", None)]
)
def test_a_report_that_was_damaged_is_bad_input(tmp_path: Path, key: str, value: Any) -> None:
    result = written(tmp_path / "out", {**reports.report(), key: value})
    refused(run("report", result, "-o", tmp_path / "p.html"), "does not hold what a report holds")


def test_no_folder_for_the_page(tmp_path: Path) -> None:
    result = written(tmp_path / "out", reports.report())
    refused(run("report", result, "-o", tmp_path / "none" / "p.html"), "no such folder")
    refused(run("report", tmp_path / "none", "-o", tmp_path / "p.html"), "there is no report here")


def test_runs_side_by_side_fit_the_terminal(tmp_path: Path) -> None:
    long = "a-result-whose-name-is-rather-long-" * 3
    other = reports.report("other" * 30)
    other["model"]["weights_sha256"] = "1"
    results = [
        written(tmp_path / "a", reports.report()), written(tmp_path / long, reports.failed()),
        written(tmp_path / "c", other),
    ]  # fmt: skip
    done = run("compare", *results, "--html", tmp_path / "c.html")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= LINE
    assert "ranked apart" in lines[0]
    assert any(line.startswith("A    50.0%") and line.endswith("ok     st") for line in lines)
    assert any(line.startswith("B ") and line.rstrip().endswith("FAILED") for line in lines)
    assert "3 runs side by side" in (tmp_path / "c.html").read_text(encoding="utf-8")


def test_a_comparison_as_json(tmp_path: Path) -> None:
    done = run(
        "compare", written(tmp_path / "a", reports.report()), written(tmp_path / "b", reports.report()), "--json"
    )
    (family,) = json.loads(done.stdout)["families"]
    assert [r["label"] for r in family["runs"]] == ["A", "B"] and family["scored"] and family["timed"]


def test_explain_draws_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "group.svg"
    done = run("explain", CLASSIFIER, "first.weight[0]", "second.weight[1]", "--svg", picture)
    assert done.exit_code == 0 and "are tied" in done.stdout, done.output
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    refused(run("explain", CLASSIFIER, "first.weight[0]", "--svg", picture), "the file exists")
    refused(run("explain", CLASSIFIER, "first.weight[0]", "--svg", tmp_path / "no" / "x.svg"), "no such folder")
    refused(run("explain", CLASSIFIER, "frist.weight[0]", "--svg", tmp_path / "x.svg"), "did you mean")
    assert not (tmp_path / "x.svg").exists()
