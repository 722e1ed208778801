"""`fxslim plan`, `fxslim apply` and `fxslim prove`: the steps of slimming, one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxslim import cli_common as c

if TYPE_CHECKING:
    from fxslim.memory_plan import MemoryPlan
    from fxslim.passes.plan import Plan
    from fxslim.passes.restore import Restoration

PLAN_HELP = """Decide what remains of each group, and write it as a plan that a person can read and edit.

Examples:

  fxslim plan bundled:opt-python --keep 0.7 -o plan.json

  fxslim plan bundled:opt-python --width 0.75 --groups neurons --importance magnitude

  fxslim plan ./larger-than-memory --method fasp --keep 0.8 --calibration text.txt --stream --memory
"""
APPLY_HELP = """Apply a plan: OUT becomes the slim program (graph.json and safetensors), trainable and exportable.

Examples:

  fxslim apply bundled:opt-python plan.json -o out/slim

  fxslim apply ./my-model plan.json --calibration text.txt -o out/slim
"""
PROVE_HELP = """Prove a plan: the slim program equals the original with the removed units masked, in float64.

The exit code is 1 if it does not.

Examples:

  fxslim prove bundled:opt-python plan.json
"""

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that `fxslim plan` wrote.", show_default=False)]


@c.guarded
def plan(
    model: c.Model,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the plan.", show_default=False)] = None,
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
    groups: c.Groups = None,
    keep_fixed: c.KeepFixed = None,
    uncounted: c.Uncounted = None,
    inexact: c.Inexact = False,
    round_to: c.RoundTo = None,
    samples: c.Samples = None,
    window: c.Window = None,
    text_field: c.TextField = None,
    seed: c.Seed = 0,
    split_fused: c.SplitFused = False,
    prepare: c.Prepare = None,
    task: c.TaskName = None,
    loader_compatible: c.LoaderCompatible = False,
    dtype: c.Dtype = None,
    stream: c.Stream = False,
    offload_activations: c.OffloadActivations = False,
    device: c.Device = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Say how much memory it will take, and make no plan.")
    ] = False,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    json: c.Json = False,
    quiet: c.Quiet = False,
) -> None:
    """Decide what remains of each group, and write it as a plan."""
    from fxslim.api import make_plan
    from fxslim.calibration import shortage_of_plan
    from fxslim.graph.errors import InputError
    from fxslim.memory_plan import plan_memory
    from fxslim.outputs import write_text_atomic
    from fxslim.processes import follows
    from fxslim.slim_options import SlimOptions
    from fxslim.streaming import place, refuse_unstreamable, scratch_beside
    from fxslim.subject import calibration_of

    options = SlimOptions(
        model=model, keep=keep, width=width, of=of, method=method, importance=importance, budget=budget,
        rounds=rounds, schedule=schedule, slope=slope, calibration=c.one_or_several(calibration),
        groups=c.split(groups), keep_fixed=tuple(keep_fixed or ()), uncounted=tuple(uncounted or ()), inexact=inexact,
        round_to=round_to, samples=samples, window=window, seed=seed, loader_compatible=loader_compatible,
        stream=stream, offload_activations=offload_activations, device=device,
    )  # fmt: skip
    options.refuse_contradictions()
    options.refuse_bad_planning()
    refuse_unstreamable(options)
    if memory and out is not None:
        raise InputError("--out: no effect with --memory, which makes no plan", remedy="leave one of them out")
    with c.watching(quiet) as shown, scratch_beside(out, wanted=stream) as scratch:
        source, analysis = c.opened(
            shown, model, split_fused=split_fused, trust_pt2=trust_pt2, trust_remote_code=trust_remote_code,
            dtype=dtype, task=task, further=prepare, stream=stream,
            placing=lambda program: place(program, scratch, options), judged=not memory,
        )  # fmt: skip
        shown.step("data")
        data = calibration_of(source, calibration, samples=samples, window=window, seed=seed, text_field=text_field)
        shown.step("plan")
        chosen, wanted = options.settings(data=data is not None), options.planning(data=data is not None)
        if memory:
            _print_memory(
                plan_memory(
                    analysis, None if data is None else data.inputs, chosen, groups=wanted["groups"], inexact=inexact
                ),
                json,
            )
            return
        made = make_plan(
            analysis, keep, width=width, of=of, calibration=data, round_to=1 if round_to is None else round_to,
            keep_caches=loader_compatible, progress=shown.progress, **wanted,
        )  # fmt: skip
        made = replace(made, options={**made.options, "restore": chosen.restore})
        warning = shortage_of_plan(analysis, made, data)
    if follows():
        return  # another process writes
    if out is not None:
        write_text_atomic(out, made.to_json())
    if warning is not None:
        typer.echo(f"warning: {warning}", err=True)
    if json:
        typer.echo(made.to_json(), nl=False)
    else:
        _print_plan(made)
        typer.echo(f"written to {out}" if out is not None else "not written: give -o plan.json to keep it")


def _print_memory(needed: MemoryPlan, json: bool) -> None:
    from fxslim.memory_plan import SLACK

    if json:
        c.print_json({"format": 1, **needed.to_dict()})
        return
    rows = [(f"{peak.bytes / 2**20:,.0f} MiB", name, peak.at) for name, peak in needed.steps.items()]
    rows.append((f"{SLACK / 2**20:,.0f} MiB", "besides", "the interpreter, libraries, small values"))
    c.print_table(("adds", "step", "at"), rows)
    for name, peak in needed.steps.items():
        parts = ", ".join(f"{part} {size / 2**20:,.0f} MiB" for part, size in peak.parts.items())
        typer.echo(f"{name}: {parts}")
    typer.echo(
        f"at its peak the process will have about {needed.bytes / 2**20:,.0f} MiB: the {needed.now / 2**20:,.0f} MiB "
        "that it has now, the step that adds most, and what is needed besides"
    )


def _print_plan(made: Plan) -> None:
    rows = [(cut.kind, cut.size, cut.count, " x ".join(map(str, cut.batch)) or "-", cut.group) for cut in made.cuts]
    c.print_table(("kind", "size", "kept", "in each of", "group"), rows)
    typer.echo()
    for name, (before, after) in ((n, pair) for n, pair in made.predicted.items() if n != "loss"):
        typer.echo(f"{name:<7} {before:>15,} -> {after:>15,}  ({after / max(before, 1):.1%})")
    for note in made.notes:
        typer.echo(f"note: {note}")


@c.guarded
def apply(
    model: c.Model,
    plan: PlanFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for the slim program.", show_default=False)],
    calibration: c.Calibration = None,
    restore: c.RestoreName = None,
    samples: c.Samples = None,
    window: c.Window = None,
    text_field: c.TextField = None,
    seed: c.Seed = 0,
    task: c.TaskName = None,
    dtype: c.Dtype = None,
    stream: c.Stream = False,
    offload_activations: c.OffloadActivations = False,
    device: c.Device = None,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    overwrite: c.Overwrite = False,
    quiet: c.Quiet = False,
) -> None:
    """Apply a plan: OUT becomes the slim program."""
    from fxslim.api import apply_plan, for_plan
    from fxslim.calibration import shortage_of
    from fxslim.outputs import OutputDirectory
    from fxslim.passes.plan import Plan
    from fxslim.passes.share_branches import before_sharing
    from fxslim.slim_options import SlimOptions
    from fxslim.streaming import place, scratch_beside
    from fxslim.subject import calibration_of

    chosen = Plan.load(plan)
    options = SlimOptions(
        model=model, plan=str(plan), stream=stream, offload_activations=offload_activations, device=device
    )
    options.refuse_contradictions()
    with (
        OutputDirectory(out, overwrite=overwrite) as directory,
        scratch_beside(out, wanted=stream) as scratch,
        c.watching(quiet) as shown,
    ):
        source, analysis = c.opened(
            shown, model, prepare=before_sharing(chosen.prepare), trust_pt2=trust_pt2,
            trust_remote_code=trust_remote_code, dtype=dtype, task=task, stream=stream,
            placing=lambda program: place(program, scratch, options), judged=True,
        )  # fmt: skip
        chosen.selection(for_plan(analysis, chosen))  # refuses a plan of another model before anything costs time
        data = None
        if restore != "none" or chosen.subspaces:
            data = calibration_of(source, calibration, samples=samples, window=window, seed=seed, text_field=text_field)
        shown.step("apply")
        applied = apply_plan(analysis, chosen, restore, data, shown.progress)
        _fill(applied.program, directory)
    before, after = source.program.parameters(), applied.program.parameters()
    typer.echo(f"{before:,} parameters -> {after:,} ({after / max(before, 1):.1%}), written to {out}")
    typer.echo(_restored(applied.restoration))
    if applied.restoration is not None and (warning := shortage_of(applied.restoration, data)) is not None:
        typer.echo(f"warning: {warning}", err=True)


def _fill(program: Any, directory: Path) -> None:
    """The files of a saved program, directly in the result's directory."""
    from fxslim.graph.serialize import save

    made = save(program, directory / "program")
    for file in made.iterdir():
        file.rename(directory / file.name)
    made.rmdir()


def _restored(restoration: Restoration | None) -> str:
    if restoration is None:
        return "weights were sliced, not restored: no calibration data, or --restore none"
    refitted = sum(row.accepted for row in restoration.rows)
    warnings = [f"warning: {text}" for text in restoration.refused]  # of too few tokens one sentence is enough
    changed = sum(bool(norm.changed) for norm in restoration.norms)
    how = "weights were refitted" if restoration.by == "least-squares" else "biases took over what was removed"
    said = f"{refitted} of {len(restoration.rows)} {how}"
    if restoration.norms:
        said += f", the statistics of {changed} of {len(restoration.norms)} batch norms estimated anew"
    return "\n".join([said, *warnings])


@c.guarded
def prove(
    model: c.Model,
    plan: PlanFile,
    calibration: c.Calibration = None,
    samples: c.Samples = None,
    window: c.Window = None,
    text_field: c.TextField = None,
    seed: c.Seed = 0,
    task: c.TaskName = None,
    dtype: c.Dtype = None,
    stream: c.Stream = False,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    json: c.Json = False,
    quiet: c.Quiet = False,
) -> None:
    """Prove a plan: the slim program equals the original with the removed units masked."""
    from fxslim.api import prove as run
    from fxslim.passes.plan import Plan
    from fxslim.report import proof_facts
    from fxslim.slim_options import SlimOptions
    from fxslim.streaming import place, scratch_beside
    from fxslim.subject import calibration_of

    chosen, options = Plan.load(plan), SlimOptions(model=model, plan=str(plan), stream=stream)
    with scratch_beside(None, wanted=stream) as scratch, c.watching(quiet) as shown:
        source, analysis = c.opened(
            shown, model, prepare=chosen.prepare, trust_pt2=trust_pt2, trust_remote_code=trust_remote_code,
            dtype=dtype, task=task, stream=stream, judged=True,
            placing=lambda program: place(program, scratch, options),
        )  # fmt: skip
        data = None
        if chosen.subspaces:  # their bases come from the data that the plan was made with
            data = calibration_of(source, calibration, samples=samples, window=window, seed=seed, text_field=text_field)
        shown.step("prove")
        proof = run(analysis, chosen, calibration=data)
    facts = proof_facts(proof)
    if json:
        c.print_json({"format": 1, **facts})
    else:
        typer.echo(str(proof))
        for line in [*(f"inexact: {place}" for place in proof.inexact), *(f"note: {n}" for n in facts["notes"])]:
            typer.echo(line)
    if not proof.ok:
        raise typer.Exit(1)
