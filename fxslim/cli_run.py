"""`fxslim run`: what a recipe says; and what `slim` and `run` print."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxslim import cli_common as c
from fxslim.graph.errors import InputError

if TYPE_CHECKING:
    from fxslim.recipe import Recipe
    from fxslim.targets import Outcome

RUN_HELP = """Make what a recipe says: YAML with the options of `fxslim slim`, as recipe.yaml of every result is one.

With `targets`, each of them becomes a result OUT/NAME, all from one calibration; those that are there already, whole
and made from the same, are left as they are. What a recipe says under `pinned` (hashes of the model and the data) must
hold.
Exit codes are those of `fxslim slim`, the worst of all targets.

Examples:

  fxslim run recipe.yaml -o out/recipe

  fxslim run out/demo/recipe.yaml --set keep=0.5 -o out/smaller

  fxslim run recipe.yaml --dry-run
"""


@c.guarded
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, YAML.", show_default=False)],
    out: c.Out = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value, such as keep=0.5; may be given again.", show_default=False),
    ] = None,
    dry_run: c.DryRun = False,
    overwrite: c.Overwrite = False,
    json: c.Json = False,
    quiet: c.Quiet = False,
    verbose: c.Verbose = False,
) -> None:
    """Make what a recipe says."""
    from fxslim.processes import follows
    from fxslim.recipe import load_recipe
    from fxslim.targets import run_recipe

    made = load_recipe(recipe, change or ())
    if dry_run:
        foresee(made, out, json, quiet, verbose)
        return
    out = required(out)
    with c.watching(quiet, verbose) as shown:
        outcomes = run_recipe(made, out, overwrite=overwrite, watcher=shown)
    if follows():
        return  # another process speaks
    if json:
        _print_json(outcomes)
    else:
        for name, outcome in outcomes.items():
            _print_outcome(name, outcome, out / name)
    if code := max(outcome.exit_code for outcome in outcomes.values()):
        raise typer.Exit(code)


def required(out: Path | None) -> Path:
    """Where the result goes.

    Raises:
        InputError: nothing says so.
    """
    if out is None:
        raise InputError("nothing says where the result goes", remedy="-o out/name, or --dry-run")
    return out


def foresee(recipe: Recipe, out: Path | None, json: bool, quiet: bool, verbose: bool) -> None:
    """Prints what a run would do and take."""
    from fxslim.forecast import forecast

    with c.watching(quiet, verbose) as shown:
        found = {name: forecast(options, recipe.pinned, shown, out) for name, options in _targets(recipe).items()}
    if json:
        c.print_json({name: f.to_dict() for name, f in found.items()} if recipe.targets else found[""].to_dict())
        return
    for name, one in found.items():
        if name:
            typer.echo(f"{name}:")
        _print_forecast(one.to_dict())


def _targets(recipe: Recipe) -> Mapping[str, Any]:
    return recipe.targets or {"": recipe.options}


def print_result(report: Mapping[str, Any], out: Path) -> None:
    """The verdict in a few lines."""
    from fxslim.report_text import headline

    lines = headline(dict(report))
    typer.echo("\n".join([f"{report['model']['name']}: {report['verdict']}", *(f"  {x}" for x in lines)]))
    typer.echo(f"  written to {out}; read {out / 'report.html'}")


def print_failures(report: Mapping[str, Any], out: Path) -> None:
    """Why the verdict is FAILED, on standard error."""
    for failure in report["failures"]:
        typer.echo(f"failed: {failure}", err=True)
    typer.echo(f"the verdict is FAILED; {out} holds the report: do not serve its model", err=True)


def _print_json(outcomes: Mapping[str, Outcome]) -> None:
    if list(outcomes) == [""]:
        c.print_json(outcomes[""].report)
    else:
        c.print_json({n: {"error": str(o.error)} if o.report is None else o.report for n, o in outcomes.items()})


def _print_outcome(name: str, outcome: Outcome, out: Path) -> None:
    if name:
        typer.echo(f"{name}:" + (" there already" if outcome.found else ""))
    if outcome.report is None:
        typer.echo(f"error: {outcome.error}", err=True)
        return
    print_result(outcome.report, out)
    if outcome.exit_code:
        print_failures(outcome.report, out)


def _print_forecast(found: Mapping[str, Any]) -> None:
    c.print_table(
        ("kept", "of", "kind", "group"), [(g["kept"], g["size"], g["kind"], g["group"]) for g in found["groups"]]
    )
    for name in ("params", "macs", "weight_bytes"):
        before, after = found[name]
        typer.echo(f"{name.replace('_', ' ')}: {before:,} -> {after:,} ({1 - after / before:.1%} fewer)")
    if found["expected_loss"] is not None:
        typer.echo(f"expected loss of the outputs, relative: {found['expected_loss']:.3g}")
    for note in found["notes"]:
        typer.echo(f"note: {note}")
    rows = [(f"{seconds:.1f} s", "measured" if name in found["measured"] else "estimated", name)
            for name, seconds in found["seconds"].items()]  # fmt: skip
    c.print_table(("time", "how", "step"), rows)
    total = sum(found["seconds"].values())
    typer.echo(
        f"the run will take about {total:.0f} s and {found['peak_bytes'] / 2**20:,.0f} MiB of memory at its peak"
    )
