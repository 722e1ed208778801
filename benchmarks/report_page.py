"""Pages of reports in a headless Chromium: on a phone, a desktop and paper, light and dark.

    python -m benchmarks.report_page --node DIRECTORY with node_modules [--out FILE.md] [--shots FOLDER] [RESULT ...]

RESULT is a result of `fxslim slim`. Looked at are
what overflows, what the page loads, errors of the console, violations that axe-core finds, and how long loading takes.
Synthetic pages join them: a failed run with hostile names, hundreds of layers, a comparison.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fxslim.compare import compared
from fxslim.page import render_comparison, render_page
from fxslim.report_file import read_report
from tests.fxslim import reports

SERIOUS = ("serious", "critical")


def synthetic(results: Sequence[Path], folder: Path, layers: int = 300) -> list[Path]:
    """Pages that no model is needed for, one of them of so many layers, and a comparison of the results."""
    failed = reports.failed(reports.HOSTILE)
    failed["variants"] = [reports.variant()]
    failed["recipe"] = "model: small\nkeep: 0.5\n" + "# a long line " * 20
    named = [(f"out/keep-{keep}", _at(keep)) for keep in (0.9, 0.7, 0.5, 0.4)]
    named += [("out/failed", reports.failed()), *((p.name, read_report(p)) for p in results)]
    pages = {
        "failed": render_page(failed),
        "deep": render_page(reports.report("deep", layers)),
        "compare": render_comparison(compared(named)),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return [folder / f"{name}.html" for name in pages]


def _at(keep: float) -> dict[str, Any]:
    report = reports.report()
    report["costs"]["params"] = [1000, round(1000 * keep)]
    report["quality"]["after"] = 0.99 - 0.2 * (1 - keep) ** 2
    ratio = 1 / keep
    report["latency"]["ratio"] = {"value": ratio, "low": ratio - 0.05, "high": ratio + 0.05}
    return report


def looked_at(pages: Sequence[Path], node: Path, shots: Path) -> list[dict[str, Any]]:
    """What Chromium found, a row for each way of looking at each page.

    Raises:
        SystemExit: it did not run.
    """
    words = ["node", str(node / "page.mjs"), str(shots), *map(str, pages)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"page.mjs failed: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with a page in one way of looking at it."""
    found = [f"scrolls sideways by {row['scroll']} px"] if row["scroll"] > 0 else []
    found += [f"overflows: {text}" for text in row["beyond"]]
    found += [f"loads {url}" for url in row.get("requests", ())]
    found += [f"console: {text}" for text in row.get("errors", ())]
    violations = row.get("violations", ())
    return found + [f"axe: {v['id']} ({v['impact']}): {v['first']}" for v in violations if v["impact"] in SERIOUS]


def line(row: dict[str, Any], bytes_: int) -> str:
    """A row of the table."""
    wrong = "; ".join(problems(row)) or "nothing"
    if row.get("print"):
        return f"| {row['file']} | A4 | {row['sheets']} sheets | - | - | {wrong} |"
    lesser = ", ".join(v["id"] for v in row["violations"] if v["impact"] not in SERIOUS) or "none"
    way = f"{row['width']} px, {row['scheme']}"
    return f"| {row['file']} | {way} | {bytes_ / 1e3:.0f} kB | {row['load_ms']:.0f} ms | {lesser} | {wrong} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*")
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shots", type=Path, default=Path("build/shots"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pages = synthetic(options.results, Path(scratch))
        for result in options.results:
            pages.append(Path(scratch) / f"{result.name}.html")
            pages[-1].write_text(render_page(read_report(result)), encoding="utf-8")
        sizes = {page.name: page.stat().st_size for page in pages}
        browser, *rows = looked_at(pages, options.node, options.shots)
    table = ["| page | seen at | size | loaded in | axe, minor | wrong |", "| --- | --- | --- | --- | --- | --- |"]
    text = "\n".join([*table, *(line(row, sizes[row["file"]]) for row in rows)]) + "\n"
    print(text)
    if options.out:
        about = f"`make check-report`, {browser['browser']}. Pages load from a file; all that is folded was opened too."
        options.out.write_text(f"# Pages of reports in a browser\n\n{about}\n\n{text}", "utf-8")
    if not rows or any(problems(row) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
