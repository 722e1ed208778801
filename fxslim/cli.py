"""The command line: `fxslim slim|groups|explain|plan|apply|prove|export|check|bench|report|compare|doctor`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn

import typer

import fxslim
from fxslim import cli_bench, cli_common, cli_inspect, cli_onnx, cli_plan, cli_report, cli_run, cli_slim

__all__ = ["app", "main"]

HELP = """Makes a trained model smaller and faster at compile time, and proves what it did.

Exit codes: 0 ok, 1 a check failed, 2 bad input, 70 a defect of fxslim, 130 interrupted.
FXSLIM_DEBUG=1 shows tracebacks.

Examples:

  fxslim slim bundled:opt-python --keep 0.7 -o out/demo

  fxslim run recipe.yaml -o out/recipe

  fxslim groups bundled:digits-resnet

  fxslim check out/demo
"""

app = typer.Typer(
    name="fxslim", help=HELP, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,
)  # fmt: skip

app.command(help=cli_slim.SLIM_HELP)(cli_slim.slim)
app.command(help=cli_run.RUN_HELP)(cli_run.run)
app.command(help=cli_inspect.GROUPS_HELP)(cli_inspect.groups)
app.command(help=cli_inspect.EXPLAIN_HELP)(cli_inspect.explain)
app.command(help=cli_plan.PLAN_HELP)(cli_plan.plan)
app.command(help=cli_plan.APPLY_HELP)(cli_plan.apply)
app.command(help=cli_plan.PROVE_HELP)(cli_plan.prove)
app.command(help=cli_onnx.EXPORT_HELP)(cli_onnx.export)
app.command(help=cli_onnx.CHECK_HELP)(cli_onnx.check)
app.command(help=cli_bench.BENCH_HELP)(cli_bench.bench)
app.command(help=cli_report.REPORT_HELP)(cli_report.report)
app.command(help=cli_report.COMPARE_HELP)(cli_report.compare)
app.command(help=cli_inspect.DOCTOR_HELP)(cli_inspect.doctor)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fxslim {fxslim.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


def main(words: Sequence[str] | None = None, *, name: str | None = None) -> None:
    """Runs the command line (of this process, unless other `words` are given) and leaves with its exit code."""
    signal.signal(signal.SIGTERM, _leave)
    if not cli_common.debugging():
        # What libraries tell their developers is not for the user; what matters to the user is raised or reported.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    app(words, prog_name=name)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds like any exit, so that temporary directories go."""
    sys.exit(128 + number)
