"""What commands print on standard output: one JSON document, or tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console

__all__ = ["print_json", "print_table"]


def print_json(value: Any) -> None:
    """Prints one JSON document on standard output."""
    from fxslim.report import finite

    typer.echo(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table that fits the terminal (80 columns where it is none). Where the last column makes it too long, it
    stands on a line of its own, whole, so that names can be copied."""
    cells = [[str(value) for value in row] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells), 0) for i, name in enumerate(header)]
    numbers = [bool(rows) and isinstance(rows[0][i], int) for i in range(len(header))]
    apart = sum(widths) + 2 * (len(widths) - 1) > Console().width
    for row in [list(header), *cells]:
        line = [v.rjust(w) if n else v.ljust(w) for v, w, n in zip(row, widths, numbers, strict=True)]
        if apart:
            typer.echo("  ".join(line[:-1]).rstrip())
            typer.echo(f"    {row[-1]}")
        else:
            typer.echo("  ".join(line).rstrip())
