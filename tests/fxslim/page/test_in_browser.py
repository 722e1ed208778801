"""Pages in a headless Chromium. `make check-report` installs it; without it the tests are skipped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report_page import looked_at, problems, synthetic
from fxslim.page import render_page
from tests.fxslim import reports

NODE = Path(__file__).resolve().parents[3] / "build" / "web"
HERE = shutil.which("node") and (NODE / "page.mjs").is_file() and (NODE / "node_modules" / "axe-core").is_dir()

pytestmark = pytest.mark.skipif(not HERE, reason="no node, or no build/web: make build/web/.done")


def seen(pages: list[Path], folder: Path) -> list[dict[str, Any]]:
    return [row for row in looked_at(pages, NODE, folder) if "file" in row]


def test_pages_are_whole_on_phones_desktops_and_paper(tmp_path: Path) -> None:
    pages = synthetic([], tmp_path, layers=40)
    pages.append(tmp_path / "small.html")
    pages[-1].write_text(render_page(reports.report()), encoding="utf-8")
    rows = seen(pages, tmp_path / "shots")
    assert len(rows) == 5 * len(pages)
    assert {r["file"]: problems(r) for r in rows if problems(r)} == {}
    assert all(row["rules"] > 20 for row in rows if "rules" in row), "axe ran"


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    wide = '<div style="width:2000px">wide</div>'
    page.write_text(f'<!doctype html><title>x</title><img src="https://example.invalid/a.png">{wide}', encoding="utf-8")
    rows = seen([page], tmp_path / "shots")
    said = " ".join(problem for row in rows for problem in problems(row))
    for part in ("scrolls sideways", "overflows: DIV", "loads https://example.invalid", "axe: image-alt"):
        assert part in said, part
