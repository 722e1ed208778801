"""`fxslim report` and `fxslim compare`: pages and tables from reports that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxslim import cli_common as c
from fxslim.cli_pages import refuse_taken, write_page

if TYPE_CHECKING:
    from fxslim.compare import Family, Run

REPORT_HELP = """Make the page of a result again, from its report.json alone.

The page is one HTML file that loads nothing and runs no script: it can be mailed, opened from a disk, and printed.

Examples:

  fxslim report out/demo -o demo.html

  fxslim report report.json -o page.html --overwrite
"""
COMPARE_HELP = """Put several results side by side: sizes, speed, quality, verdict, and the Pareto front.

Sizes are shares of the original. Runs of other originals, or scored on other data, are listed apart and not ranked
against each other; times are ranked where all were taken in the same way. A run whose checks failed is never ranked.

Examples:

  fxslim compare out/a out/b out/c

  fxslim compare out/* --html compare.html
"""
_WIDTH = 80  # columns of the table


@c.guarded
def report(
    result: Annotated[
        Path, typer.Argument(metavar="OUT", help="A result of `fxslim slim`, or a report.json.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    overwrite: c.Overwrite = False,
) -> None:
    """Make the page of a result again, from its report.json alone."""
    from fxslim.page import render_page
    from fxslim.report_file import read_report

    refuse_taken(out, overwrite=overwrite)
    found = read_report(result)
    write_page(out, _rendered(lambda: render_page(found), result), overwrite=overwrite)
    typer.echo(f"written to {out}")


@c.guarded
def compare(
    results: Annotated[
        list[Path], typer.Argument(metavar="OUT...", help="Results of `fxslim slim`.", show_default=False)
    ],
    html: Annotated[
        Path | None, typer.Option(help="Also write a page with the Pareto fronts as pictures.", show_default=False)
    ] = None,
    overwrite: c.Overwrite = False,
    json: c.Json = False,
) -> None:
    """Put several results side by side."""
    from fxslim.compare import compared, compared_document
    from fxslim.page import render_comparison
    from fxslim.report_file import read_report

    if html is not None:
        refuse_taken(html, overwrite=overwrite)
    reports = [(str(path), read_report(path)) for path in results]
    families = _rendered(lambda: compared(reports), results[0])
    if html is not None:
        write_page(html, _rendered(lambda: render_comparison(families), results[0]), overwrite=overwrite)
    if json:
        c.print_json(compared_document(families))
    else:
        _print(families)


def _rendered(make: Any, at: Path) -> Any:
    """What `make` returns; a report that a person changed, or another program wrote, may lack anything.

    Raises:
        InputError: it does.
    """
    from jinja2 import TemplateError

    from fxslim.graph.errors import InputError

    try:
        return make()
    except (ArithmeticError, AttributeError, LookupError, TemplateError, TypeError, ValueError) as error:
        raise InputError(
            f"the report does not hold what a report holds: {type(error).__name__}: {str(error)[:200]}", at=str(at),
            rule="fxslim/report.schema.json (docs/report.md)", remedy="give what `fxslim slim` wrote",
        ) from error  # fmt: skip


def _print(families: list[Family]) -> None:
    if len(families) > 1:
        typer.echo("different originals or evaluation data: ranked apart\n")
    for number, family in enumerate(families):
        typer.echo(("\n" if number else "") + f"{family.model}"[:_WIDTH])
        typer.echo(f"  scored on {family.data}"[:_WIDTH])
        typer.echo(f"  timed on {family.timed_on}"[:_WIDTH])
        quality = (family.runs[0].quality_name or "quality")[:11]
        typer.echo(f"   {'params':>7} {'MACs':>7} {'bytes':>7}  {'times as fast':<18} {quality:>11}  verdict")
        for run in family.runs:
            typer.echo(_row(run))
            typer.echo(f"     {run.name} ({run.method})"[:_WIDTH])
        if family.scored:
            typer.echo("Pareto front: s by size, t by time; a FAILED run is not ranked")
        else:
            typer.echo("no quality was measured: there is no front")


def _row(run: Run) -> str:
    speed = "-" if run.ratio is None else f"{run.ratio:.2f} ({run.low or 0:.2f}-{run.high or 0:.2f})"
    quality = "-" if run.quality is None else f"{run.quality:.5g}"
    front = "s" * run.by_size + "t" * run.by_time
    return (
        f"{run.label:<3}{run.params:>7.1%} {run.macs:>7.1%} {run.bytes:>7.1%}  {speed:<18} {quality:>11}  "
        f"{run.verdict:<6} {front}"
    ).rstrip()
