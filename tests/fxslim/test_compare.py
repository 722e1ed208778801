from __future__ import annotations

from typing import Any

import pytest

from fxslim.compare import Family, Run, compared, compared_document
from fxslim.page import render_comparison
from tests.fxslim import reports
from tests.fxslim.page.pages import Page


def run(keep: float, value: float | None, ratio: float = 1.4, **changes: Any) -> dict[str, Any]:
    report = reports.report()
    report["costs"]["params"] = [1000, round(1000 * keep)]
    report["quality"]["after"] = value
    report["latency"]["ratio"] = {"value": ratio, "low": ratio - 0.1, "high": ratio + 0.1}
    for key, value in changes.items():
        report[key].update(value) if isinstance(value, dict) else report.update({key: value})
    return report


def one(*runs: dict[str, Any]) -> Family:
    (family,) = compared([(f"out/{n}", report) for n, report in enumerate(runs)])
    return family


def by_size(family: Family) -> str:
    return "".join(r.label for r in family.runs if r.by_size)


def by_time(family: Family) -> str:
    return "".join(r.label for r in family.runs if r.by_time)


def test_the_front_holds_what_nothing_beats() -> None:
    family = one(run(0.8, 0.99), run(0.6, 0.97), run(0.7, 0.96), run(0.4, 0.9), run(0.4, 0.89))
    assert by_size(family) == "ABD"


def test_equal_runs_are_both_on_it() -> None:
    assert by_size(one(run(0.5, 0.9), run(0.5, 0.9))) == "AB"


def test_time_has_a_front_of_its_own() -> None:
    family = one(run(0.8, 0.99, 1.1), run(0.4, 0.95, 1.05), run(0.6, 0.97, 1.9))
    assert by_size(family) == "ABC" and by_time(family) == "AC"


def test_perplexity_is_better_where_it_is_lower() -> None:
    lower = {"quality": {"name": "perplexity", "higher_is_better": False}}
    family = one(run(0.5, 20.0), run(0.5, 13.0))
    assert by_size(family) == "A"
    for report in (first := run(0.5, 20.0), second := run(0.5, 13.0)):
        report["quality"].update(lower["quality"])
    assert by_size(one(first, second)) == "B"


def test_what_failed_is_shown_and_never_ranked() -> None:
    family = one(run(0.3, 0.99, verdict="FAILED"), run(0.6, 0.9))
    assert by_size(family) == "B" and [r.ok for r in family.runs] == [False, True]


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"weights_sha256": "1"}},
        {"model": {"fingerprint": "1"}},
        {"data": {"evaluation": {**reports.data("valid.npz"), "sha256": "cd" * 32}}},
        {"data": {"evaluation": {**reports.data("valid.npz"), "rows": 10}}},
        {"quality": {"count": 65}},
        {"quality": {"name": "perplexity"}},
    ],
)
def test_other_originals_and_other_data_are_ranked_apart(other: dict[str, Any]) -> None:
    families = compared([("a", run(0.5, 0.9)), ("b", run(0.5, 0.1, **other))])
    assert len(families) == 2
    assert all(by_size(f) in ("A", "B") for f in families), "each leads its own kind"


def test_reports_without_hashes_are_told_apart_by_sizes_and_score() -> None:
    same, other = run(0.5, 0.9), run(0.5, 0.9)
    for report in (same, other):
        report["model"] = {"name": "small", "task": None}
    assert len(compared([("a", same), ("b", other)])) == 1
    other["quality"]["before"] = 0.5
    assert len(compared([("a", same), ("b", other)])) == 2


@pytest.mark.parametrize("timing", [{"threads": 2}, {"provider": "cuda"}, {"shapes": {"x": [8, 8]}}])
def test_times_that_were_taken_otherwise_are_not_ranked(timing: dict[str, Any]) -> None:
    family = one(run(0.5, 0.9), run(0.6, 0.95, latency=timing))
    assert not family.timed and by_time(family) == "" and by_size(family) == "AB"
    assert "different ways" in family.timed_on


def test_other_machines_and_runtimes_are_not_ranked_by_time() -> None:
    assert not one(run(0.5, 0.9), run(0.6, 0.95, versions={"onnxruntime": "1.0"})).timed
    assert not one(run(0.5, 0.9), run(0.6, 0.95, versions={"machine": "aarch64"})).timed


def test_without_a_score_there_is_no_front() -> None:
    report = run(0.5, 0.9)
    report["quality"] = None
    family = one(report)
    assert not family.scored and by_size(family) == by_time(family) == ""
    assert one(run(0.5, None)).scored is False, "a score that is not finite is none"


def test_a_run_without_a_finite_score_takes_no_rank_from_others() -> None:
    family = one(run(0.3, None), run(0.6, 0.9))
    assert family.scored and by_size(family) == "B"


def test_labels_go_on_after_z() -> None:
    families = compared([("x", run(0.5, 0.9))] * 28)
    assert [r.label for r in families[0].runs][-3:] == ["Z", "AA", "AB"]


def test_the_method_is_named_from_the_plan() -> None:
    def method(options: dict[str, Any]) -> str:
        report = run(0.5, 0.9)
        report["plan"]["options"] = options
        found: Run = one(report).runs[0]
        return found.method

    assert method({}) == "a given plan"
    assert method({"importance": "obs", "budget": "global", "subspace": True}) == "obs, global budget, subspaces"
    assert method({"metric": "plain", "budget": "uniform"}) == "ranks by plain, uniform"
    assert method({"share": True}) == "shared branches" and method({"depth": True}) == "branches left out"


def test_the_document_holds_every_run() -> None:
    document = compared_document(compared([("a", run(0.5, 0.9)), ("b", run(0.6, 0.95))]))
    assert document["format"] == 1 and [r["name"] for r in document["families"][0]["runs"]] == ["a", "b"]


def test_the_page_shows_every_run_and_loads_nothing() -> None:
    hostile = run(0.4, 0.8)
    hostile["model"]["name"] = hostile["quality"]["name"] = reports.HOSTILE
    unscored = run(0.4, 0.8)
    unscored["quality"] = None
    unscored["latency"]["ratio"] = {"value": None, "low": None, "high": None}
    named = [("out/a", run(0.8, 0.99)), ("out/b", run(0.6, 0.9)), (reports.HOSTILE, hostile), ("c", unscored),
             ("out/d", reports.failed())]  # fmt: skip
    source = render_comparison(compared(named))
    page = Page(source)
    assert page.errors == [] and page.open == [] and page.loads() == [] and "<script" not in source
    for part in (
        "out/a",
        "out/b",
        "5 runs side by side",
        "ranked by itself",
        "FAILED",
        "no quality to rank by",
        "80.0%",
    ):
        assert part in page.text, part
    assert len([a for a in page.named("svg") if a.get("class") == "figure"]) == 4
