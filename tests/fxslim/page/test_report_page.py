from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fxslim.page import render_page
from fxslim.pipeline import SlimOptions, slim
from tests.fxslim import reports
from tests.fxslim.factories import CLASSIFIER, write_data
from tests.fxslim.page.pages import Page
from tests.fxslim.reports import HOSTILE

LARGEST = 1_500_000  # bytes of a page, whatever the model: what a mail takes and a phone shows
USUAL = 300_000  # of a model with a few dozen layers


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("page")
    data = str(write_data(folder / "data.npz"))
    options = SlimOptions(CLASSIFIER, keep=0.6, calibration=data, evaluation=data, latency_seconds=0.1)
    return folder / "out", slim(options, folder / "out")


def parsed(report: dict[str, Any]) -> Page:
    """The page, which has to be well formed and load nothing."""
    page = Page(render_page(report))
    assert page.errors == [] and page.open == []
    assert page.loads() == [] and not page.named("script") and not page.named("iframe")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    ids = [i for _, a in page.tags if (i := a.get("id")) is not None]
    assert len(ids) == len(set(ids)), "two elements with one id"
    places = [str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")]
    assert set(places) <= set(ids), "a link to a section that is not there"
    return page


def test_a_result_holds_the_page_of_its_report(real: tuple[Path, dict[str, Any]]) -> None:
    folder, report = real
    written = (folder / "report.html").read_text(encoding="utf-8")
    assert written == render_page(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    listed = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert "report.html" in [f["path"] for f in listed]
    assert len(written.encode()) < USUAL
    assert report["model"]["name"] in parsed(report).text


def test_it_holds_every_section_of_a_real_report(real: tuple[Path, dict[str, Any]]) -> None:
    _, report = real
    text = parsed(report).text
    before, after = report["costs"]["params"]
    for part in (
        f"{before:,} → {after:,} parameters", "What shrank together", "first.weight[0]", "Behind the budget", "neurons",
        "Latency", "Errors, output by output", "Restoration", "Operators without a rule", "onnxruntime", "Time for",
        report["command"], report["latency"]["verdict"][1:], report["data"]["evaluation"]["description"],
    ):  # fmt: skip
        assert part in text, part


def test_the_verdict_comes_first() -> None:
    text = parsed(reports.report()).text
    for earlier, later in [("50.0% fewer parameters, 1.40× as fast, accuracy 0.99 → 0.97", "Size, before and after"),
                           ("Proven", "Size, before and after"), ("1.40×", "95% interval 1.30 to 1.50")]:  # fmt: skip
        assert text.index(earlier) < text.index(later)
    assert "FAILED" not in text


def test_a_failure_is_told_first_and_every_reason() -> None:
    report = reports.failed()
    page = parsed(report)
    assert "FAILED: do not serve this model" in page.text
    places = [page.text.index(reason) for reason in report["failures"]]
    assert max(places) < page.text.index("fewer parameters")
    assert "NOT PROVEN" in page.text and "SLOWER" in page.text and "not finite" in page.text
    assert "ONNX Runtime could not run it" in page.text
    (banner,) = [a for a in page.named("div") if a.get("role") == "alert"]
    assert banner["class"] == "failed"


def test_a_failure_without_a_reason_says_so() -> None:
    report = reports.failed()
    report["failures"] = []
    assert "The report gives no reason" in parsed(report).text


def hostile(value: Any) -> Any:
    """The same with markup in every text but those that choose a form."""
    if isinstance(value, str):
        return value if value in ("ok", "FAILED", "original", "slim", "least-squares") else reports.HOSTILE + value
    if isinstance(value, list):
        return [hostile(v) for v in value]
    if isinstance(value, dict):
        return {k: hostile(v) for k, v in value.items()}
    return value


def test_names_are_text_wherever_they_stand() -> None:
    report = hostile(reports.report())
    name = reports.HOSTILE
    report["unknown_operators"], report["recipe"] = {name: 3}, name
    report["versions"][name] = report["notes"] = [name]
    report["latency"]["quantiles_ms"][name] = report["latency"]["quantiles_ms"]["slim"]
    report["latency"]["shapes"][name] = [1]
    report["parity"]["shapes"][0]["sizes"] = {name: 2}
    page = parsed(report)
    assert page.text.count("<script>alert") > 30
    assert "49" not in re.findall(r"\$\{\{(.*?)\}\}", page.text), "a template in a name was run"
    source = render_page(report)
    assert "<script" not in source


def test_what_is_not_there_is_left_out() -> None:
    report = reports.report()
    report.update(quality=None, restoration=None, curves=None, groups=[], fixed=[])
    report["data"] = {"calibration": None, "evaluation": None}
    report["latency"].pop("quantiles_ms")
    report["proof"]["cuts"] = 0
    text = parsed(report).text
    assert "Behind the budget" not in text and "Restoration" not in text
    for part in ("not measured", "No group was cut", "No group is fixed", "calibration none", "Nothing cut"):
        assert part in text, part


def test_a_report_from_before_its_keys_were_known() -> None:
    report = reports.report()
    for key in ("weights", "uncut", "curves"):
        report.pop(key)
    for group in report["groups"]:
        group.pop("sites"), group.pop("subspace")
    report["latency"].pop("quantiles_ms"), report["latency"].pop("plan")
    text = parsed(report).text
    assert "before sizes by layer were recorded" in text and "layers.0.up.weight[0]" in text


def test_further_parts_are_shown() -> None:
    report = reports.report()
    broken = {**reports.variant("dynamic"), "ok": False, "failures": ["it does not load"], "onnx": None, "check": None,
              "quality": None, "latency": None}  # fmt: skip
    report["variants"] = [reports.variant(), broken]
    report["loader"] = {
        "loader": "ORTModel",
        "compared": "tokens",
        "ok": True,
        "failures": [],
        "config": {},
        "versions": {},
    }
    report["recipe"] = "model: small\nkeep: 0.5\n"
    report["unknown_operators"] = {"aten.strange": 2}
    report["restoration"]["too_little"] = "too little calibration data for 1 refit"
    report["proof"].update(exact=False, inexact=["layers.0: tied at softmax"])
    report["latency"]["plan"] = {
        "keep": 0.7,
        "multiple": 8,
        "measured": 0.71,
        "of": "latency",
        "attempts": [{"target": 0.6, "measured": 0.71, "of": "latency", "loss": None}],
    }
    text = parsed(report).text
    for part in (
        "float16 (model_fp16.onnx)", "int8, dynamic: FAILED: it does not load", "ORTModel takes the result", "Recipe",
        "keep: 0.5", "aten.strange (2×)", "too little calibration data", "Proven, inexact", "inexact: layers.0: tied",
        "70.0% of the time, with sizes on multiples of 8",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("layers", [40, 400])
def test_hundreds_of_layers_stay_a_page(layers: int) -> None:
    report = reports.report("deep", layers)
    page = render_page(report)
    assert len(page.encode()) < LARGEST
    text = parsed(report).text
    assert f"{layers} groups cut" in text
    assert "layers.0" in text and "layers.39" in text


def test_numbers_at_their_limits_are_drawn() -> None:
    report = reports.report()
    report["latency"]["ratio"] = {"value": None, "low": None, "high": None}
    report["latency"]["quantiles_ms"] = {"original": [0.0] * 21, "slim": [0.0] * 21}
    report["proof"]["outputs"][0]["error"] = 0.0
    report["parity"]["shapes"][0]["outputs"][0].update(rmse=0.0, allowed=0.0)
    report["curves"]["rows"][0]["losses"] = [0.0, 0.0, 0.0]
    report["curves"]["rows"][1]["losses"] = [None, 1e-300, 0.0]
    report["costs"] = {key: [0, 0] for key in report["costs"]}
    report["quality"].update(before=0.0)
    assert "not measured" in parsed(report).text


def test_the_same_report_gives_the_same_bytes() -> None:
    assert render_page(reports.report()) == render_page(reports.report())


def test_every_picture_says_what_it_shows() -> None:
    page = parsed(reports.report())
    figures = [a for a in page.named("svg") if a.get("class") == "figure"]
    assert len(figures) == 5  # curves of neurons, times, ratios, proof, ONNX
    ids = {a["id"] for _, a in page.tags if "id" in a}
    for figure in figures:
        assert set(str(figure["aria-labelledby"]).split()) <= ids and figure["role"] == "img"
    for svg in page.named("svg"):
        assert svg.get("role") == "img" or svg.get("aria-hidden") == "true"


def test_figures_take_the_colours_of_the_page() -> None:
    source = render_page(reports.report())
    assert "var(--accent)" in source and not re.search(r"#0101", source)
    drawn = "".join(re.findall(r'<svg[^>]*class="figure".*?</svg>', source, re.S))
    assert not re.findall(r"(?:fill|stroke): ?#(?!fff)[0-9a-f]{6}", drawn), "a colour for one scheme alone"


def test_gates_are_shown_with_what_became_of_them() -> None:
    report = reports.report()
    gate = {"name": "min_speedup", "file": "model.onnx", "limit": 2.0, "found": 1.3, "ok": False, "text": HOSTILE}
    page = render_page({**report, "gates": [gate, {**gate, "ok": True, "text": "fine"}]})
    assert '<b class="bad">FAILED</b>' in page and '<b class="good">passed</b> fine' in page
    assert "<script>" not in page
    assert "<h2>Gates</h2>" not in render_page(report)


def test_names_in_any_script_are_drawn() -> None:
    report = reports.report()
    report["parity"]["shapes"][0]["sizes"] = {"批": 2, "🙂": 3}
    report["proof"]["outputs"][0]["name"] = "выход 出力"
    text = parsed(report).text
    assert "批 2, 🙂 3" in text and "выход 出力" in text


def test_a_ratio_that_the_control_reaches_is_within_noise() -> None:
    report = reports.report()
    report["latency"].update(faster=False, ratio={"value": 1.1, "low": 0.95, "high": 1.2})
    text = parsed(report).text
    assert "1.10× as fast, within noise" in text and "SLOWER" not in text
