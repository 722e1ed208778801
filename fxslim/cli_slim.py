"""`fxslim slim`: everything in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxslim import cli_common as c

SLIM_HELP = """Make a model smaller, prove it, export it, check it and time it.

OUT receives model.onnx, the slim program (slim/), plan.json, report.md and report.json, the configuration and tokenizer
files, and manifest.json. It appears whole or not at all.

If the proof or the check of the ONNX file fails, OUT is written all the same, its report says FAILED, and the exit code
is 1. A slim model that is not faster is reported as such; that is no error.

Examples:

  fxslim slim bundled:opt-python --keep 0.7 -o out/demo

  fxslim slim bundled:digits-resnet --keep 0.5 --round-to 8 -o out/digits

  fxslim slim ./my-model --of latency --keep 0.6 --threads 2 --calibration text.txt -o out/faster

  fxslim slim ./my-model --keep 0.8 --calibration text.txt -o out/mine
"""

Out = Annotated[Path, typer.Option("--out", "-o", help="Directory for the result.", show_default=False)]


@c.guarded
def slim(
    model: c.Model,
    out: Out,
    keep: c.Keep = None,
    width: c.Width = None,
    of: c.Of = "params",
    method: c.MethodName = None,
    importance: c.ImportanceName = None,
    budget: c.BudgetName = None,
    rounds: c.Rounds = None,
    schedule: c.ScheduleName = "geometric",
    slope: c.Slope = 0.25,
    calibration: c.Calibration = None,
    evaluation: Annotated[str | None, typer.Option(help="Data to measure the quality on, before and after.")] = None,
    restore: c.RestoreName = None,
    groups: c.Groups = None,
    keep_fixed: c.KeepFixed = None,
    uncounted: c.Uncounted = None,
    inexact: c.Inexact = False,
    round_to: c.RoundTo = None,
    plan: Annotated[str | None, typer.Option(help="A plan to apply, instead of making one.")] = None,
    samples: c.Samples = None,
    window: c.Window = None,
    text_field: c.TextField = None,
    seed: c.Seed = 0,
    opset: c.Opset = 20,
    provider: c.Provider = "auto",
    threads: c.Threads = 1,
    latency_seconds: Annotated[float, typer.Option(help="Seconds to spend on timing.")] = 10.0,
    sizes: c.Sizes = None,
    split_fused: c.SplitFused = False,
    prepare: c.Prepare = None,
    task: c.TaskName = None,
    loader_compatible: c.LoaderCompatible = False,
    dtype: c.Dtype = None,
    onnx_dtype: c.OnnxDtype = None,
    quantize: c.Quantize = None,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    overwrite: c.Overwrite = False,
    json: c.Json = False,
    quiet: c.Quiet = False,
) -> None:
    """Make a model smaller, prove it, export it, check it and time it."""
    from fxslim.pipeline import SlimOptions
    from fxslim.pipeline import slim as run
    from fxslim.report_text import headline

    options = SlimOptions(
        model=model, keep=keep, width=width, of=of, method=method, importance=importance, budget=budget,
        rounds=rounds, schedule=schedule, slope=slope, calibration=c.one_or_several(calibration),
        evaluation=evaluation,
        restore=restore, groups=c.split(groups), keep_fixed=tuple(keep_fixed or ()),
        uncounted=tuple(uncounted or ()), inexact=inexact, round_to=round_to,
        plan=plan, samples=samples, window=window, text_field=text_field, seed=seed, opset=opset, provider=provider,
        threads=threads, latency_seconds=latency_seconds, sizes=sizes, split_fused=split_fused,
        prepare=tuple(prepare or ()), task=task,
        loader_compatible=loader_compatible, dtype=dtype, onnx_dtype=onnx_dtype, quantize=quantize,
        trust_pt2=trust_pt2, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    with c.watching(quiet) as shown:
        report = run(options, out, overwrite=overwrite, watcher=shown)
    if json:
        c.print_json(report)
    else:
        typer.echo(
            "\n".join([f"{report['model']['name']}: {report['verdict']}", *(f"  {x}" for x in headline(report))])
        )
        typer.echo(f"  written to {out}; read {out / 'report.md'}")
    if report["verdict"] != "ok":
        for failure in report["failures"]:
            typer.echo(f"failed: {failure}", err=True)
        typer.echo(f"the verdict is FAILED; {out} holds the report: do not serve its model", err=True)
        raise typer.Exit(1)
