"""What the rows add up to: totals by library, the shortfalls with their reasons, and what differs from the expected."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from textwrap import shorten

from benchmarks.zoo.measure import Row

__all__ = ["accept", "compare", "totals"]

ANALYSED = ("not the model", "ok", "no parity", "not exported", "not proven", "nothing to cut")


def totals(rows: Sequence[Row]) -> str:
    """A table in Markdown: one line a library, then every model that fell short and why."""
    head = ["library", "models", "captured", "unknown operator fixes a group", "proven", "exported at parity",
            "prunable share (median)", "seconds (median, worst)"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for library in sorted({r.library for r in rows}):
        lines.append(_line(library, [r for r in rows if r.library == library]))
    if len({r.library for r in rows}) > 1:
        lines.append(_line("all", rows))
    short = [r for r in rows if r.status != "ok"]
    lines += ["", f"## Short of `ok`: {len(short)}", ""] if short else []
    lines += [f"- {r.library} {r.model}: **{r.status}**. {shorten(r.reason, 300)}" for r in sorted(short, key=_place)]
    return "\n".join(lines) + "\n"


def _place(row: Row) -> tuple[str, str, str]:
    return row.status, row.library, row.model


def _line(name: str, rows: Sequence[Row]) -> str:
    counts = Counter(r.status for r in rows)
    captured = [r for r in rows if r.status in ANALYSED]
    proven = [r for r in captured if r.status in ("ok", "no parity", "not exported")]
    seconds = [_seconds(r) for r in captured] or [0.0]
    shares = [r.prunable_share for r in captured] or [0.0]
    cells = [
        name, f"{len(rows)}", f"{len(captured)}", f"{_count(captured, lambda r: r.unknown_touching > 0)}",
        f"{len(proven)}", f"{counts['ok']}", f"{median(shares):.1%}", f"{median(seconds):.0f}, {max(seconds):.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _count(rows: Sequence[Row], test: Callable[[Row], bool]) -> int:
    return sum(map(test, rows))


def _seconds(row: Row) -> float:
    return row.capture_s + row.analysis_s + row.rewrite_s + row.prove_s + row.onnx_s


def accept(rows: Sequence[Row], expected: Path) -> None:
    """Writes the status of every row as the expected one; those of models that were not measured stay."""
    known = _expected(expected) | {(r.library, r.model): r.status for r in rows}
    with expected.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["library", "model", "status"])
        writer.writerows([*key, status] for key, status in sorted(known.items()))


def _expected(path: Path) -> dict[tuple[str, str], str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {(r["library"], r["model"]): r["status"] for r in csv.DictReader(file)}


def compare(rows: Sequence[Row], expected: Path) -> tuple[list[str], list[str]]:
    """A sentence for every model whose status is not the one in the file `expected` (also an unexpected pass), and one
    for every model that the file does not have."""
    known = _expected(expected)
    changes, unlisted = [], []
    for row in rows:
        status = known.get((row.library, row.model))
        if status is None:
            unlisted.append(f"{row.library} {row.model}: not in {expected.name}; it is `{row.status}` {row.reason}")
        elif status != row.status:
            changes.append(f"{row.library} {row.model}: expected `{status}`, found `{row.status}` {row.reason}")
    return changes, unlisted
