"""The page of one report, from its JSON document alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from fxslim.page.environment import rendered
from fxslim.page.modules import colour_of, module_map
from fxslim.page.plots import curve_figures, error_figures, latency_figures
from fxslim.page.sizes import module_bars
from fxslim.page.verdict import lead, tiles
from fxslim.report_variants import variant_line, variant_rows
from fxslim.wording import loader_line, moved, number, shortage, where

__all__ = ["render_page"]

GROUPS, WEIGHTS, RUNS = 300, 600, 200  # rows of a table


def render_page(report: dict[str, Any]) -> str:
    """One HTML page that needs nothing else: no script, no network, no other file.

    Reports of format 1 that were written before a section was known are shown without it.
    """
    mapped = "weights" in report
    return rendered(
        "report.html",
        report=report,
        ok=report["verdict"] == "ok",
        lead=lead(report),
        tiles=tiles(report),
        where=where(report["provider"]),
        bars=module_bars(report["weights"]) if mapped else None,
        weights=report["weights"]["rows"][:WEIGHTS] if mapped else [],
        unlisted=max(0, len(report["weights"]["rows"]) - WEIGHTS) if mapped else 0,
        map=module_map(report) if mapped else None,
        kinds=_kinds(report),
        groups=report["groups"][:GROUPS],
        more_groups=max(0, len(report["groups"]) - GROUPS),
        fixed=report["fixed"][:20],
        uncut=[row for row in report["uncut"]["rows"] if row["notes"]][:GROUPS] if mapped else [],
        curves=curve_figures(report.get("curves")),
        curve_rows=_curve_rows(report.get("curves")),
        latency_figures=latency_figures(report["latency"]),
        error_figures=error_figures(report["proof"], report["parity"]),
        runs=list(_runs(report["parity"]))[:RUNS],
        drift=[f"output {q['name']}: {moved(q)}" for q in report["parity"]["quality"]],
        variants=[
            (variant_line(v, report["costs"], report["quality"]), variant_rows(v), v["ok"]) for v in report["variants"]
        ],
        loader=loader_line(report["loader"]),
        warnings=_warnings(report),
        recipe=report.get("recipe"),
    )


def _kinds(report: dict[str, Any]) -> list[tuple[str, int]]:
    """The kinds of groups that were cut, each with its colour."""
    return [(kind, colour_of(kind)) for kind in dict.fromkeys(g["kind"] for g in report["groups"])]


def _curve_rows(curves: dict[str, Any] | None) -> list[tuple[str, str, int, int, str]]:
    """Of every group that was cut: its name, kind, sizes and the loss at what was kept."""
    rows = []
    for row in [] if curves is None else curves["rows"]:
        if row["kept"] < row["size"]:
            at = dict(zip(row["sizes"], row["losses"], strict=True)).get(row["kept"])
            rows.append((row["name"], row["kind"], row["size"], row["kept"], "-" if at is None else number(at)))
    return rows


def _runs(parity: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for shape in parity["shapes"]:
        sizes = ", ".join(f"{k} {v}" for k, v in shape["sizes"].items()) or "fixed sizes"
        for o in shape["outputs"]:
            yield {
                "sizes": sizes, "output": o["name"], "error": number(o["rmse"]), "allowed": number(o["allowed"]),
                "ok": o["ok"], "said": o["problem"] or "",
            }  # fmt: skip
        if not shape["outputs"]:
            said = shape["failure"] or f"did not run: {shape['not_applicable']}"
            yield {
                "sizes": sizes, "output": "", "error": "", "allowed": "",
                "ok": shape["failure"] is None, "said": said,
            }  # fmt: skip


def _warnings(report: dict[str, Any]) -> list[str]:
    """What weakens a result that passed, one sentence each."""
    restoration, parity = report["restoration"], report["parity"]
    said = [*shortage(restoration), *(restoration or {}).get("warnings", [])]
    said += [f"proof: {note}" for note in report["proof"]["notes"]]
    said += [f"inexact: {place}" for place in report["proof"]["inexact"]]
    said += [f"ONNX: {note}" for note in parity["notes"]]
    said += [f"not on {parity['provider']}: {text}" for text in parity["off_provider"]]
    ratio = report["latency"]["ratio"]["value"]
    if ratio is None or not math.isfinite(ratio):
        said.append("the ratio of the times is not a number")
    return [*said, *report["notes"]]
