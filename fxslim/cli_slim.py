"""`fxslim slim`: everything in one command."""

from __future__ import annotations

from typing import Annotated

import typer

from fxslim import cli_common as c

SLIM_HELP = """Make a model smaller, prove it, export it, check it and time it.

OUT receives model.onnx, the slim program (slim/), plan.json, the report (report.html, report.md, report.json), the
configuration and tokenizer files, recipe.yaml, which repeats the run (`fxslim run`), and manifest.json. It appears
whole or not at all. A run that ends early goes on where it was when the same command is given again.

If the proof, the check of the ONNX file or a gate (--max-quality-loss, --min-speedup, ...) fails, OUT is written all
the same, its report says FAILED, and the exit code is 1. A slim model that is not faster is reported as such; that is
no error.

Examples:

  fxslim slim bundled:opt-python --keep 0.7 -o out/demo

  fxslim slim bundled:digits-resnet --keep 0.5 --round-to 8 -o out/digits

  fxslim slim ./my-model --of latency --keep 0.6 --threads 2 --calibration text.txt -o out/faster

  fxslim slim ./my-model --keep 0.8 --calibration text.txt -o out/mine

  fxslim slim bundled:opt-python --keep 0.7 --max-quality-loss 0.05 --min-speedup 1.1 -o out/gated

  fxslim slim bundled:opt-python --keep 0.7 --dry-run

  fxslim slim ./larger-than-memory --method fasp --keep 0.8 --calibration text.txt --stream -o out/large
"""


@c.guarded
def slim(
    model: c.Model,
    out: c.Out = None,
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
    max_quality_loss: c.MaxQualityLoss = None,
    min_speedup: c.MinSpeedup = None,
    max_bytes: c.MaxBytes = None,
    max_parity_error: c.MaxParityError = None,
    stream: c.Stream = False,
    offload_activations: c.OffloadActivations = False,
    device: c.Device = None,
    dry_run: c.DryRun = False,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    overwrite: c.Overwrite = False,
    json: c.Json = False,
    quiet: c.Quiet = False,
    verbose: c.Verbose = False,
) -> None:
    """Make a model smaller, prove it, export it, check it and time it."""
    from fxslim.cli_run import foresee, print_failures, print_result, required
    from fxslim.pipeline import SlimOptions
    from fxslim.pipeline import slim as run
    from fxslim.recipe import Recipe

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
        max_quality_loss=max_quality_loss, min_speedup=min_speedup, max_bytes=max_bytes,
        max_parity_error=max_parity_error, stream=stream, offload_activations=offload_activations, device=device,
        trust_pt2=trust_pt2, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    if dry_run:
        foresee(Recipe(options), out, json, quiet, verbose)
        return
    out = required(out)
    with c.watching(quiet, verbose) as shown:
        report = run(options, out, overwrite=overwrite, watcher=shown)
    if not report:
        return  # another process leads
    if json:
        c.print_json(report)
    else:
        print_result(report, out)
    if report["verdict"] != "ok":
        print_failures(report, out)
        raise typer.Exit(1)
