"""`fxslim groups`, `fxslim explain` and `fxslim doctor`: looking, without changing anything."""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxslim import cli_common as c
from fxslim.cli_pages import refuse_taken, write_page

if TYPE_CHECKING:
    from fxslim.graph.axes.groups import Analysis, Group

GROUPS_HELP = """List the groups of dimensions that must shrink together.

Examples:

  fxslim groups bundled:opt-python

  fxslim groups bundled:digits-resnet --kind channels --json

  fxslim groups path/to/llama-70b --stream
"""
EXPLAIN_HELP = """Say why two dimensions are tied, or what ties and fixes one.

A dimension is written weight[dim], as in head.weight[0]; a group goes by its name.

Examples:

  fxslim explain bundled:digits-resnet 'stem.weight[0]' 'stages.0.0.conv2.weight[0]'

  fxslim explain bundled:opt-python 'model.decoder.layers.0.fc1.weight[0]' --svg fc1.svg
"""
DOCTOR_HELP = """Check this installation: versions, known advisories, execution providers, and a tiny run end to end.

The exit code is 1 if something that is needed is missing or does not work.

Examples:

  fxslim doctor

  fxslim doctor --json
"""


@c.guarded
def groups(
    model: c.Model,
    kind: Annotated[str | None, typer.Option(help="Only groups of this kind.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also groups that are fixed, with the reason.")] = False,
    split_fused: c.SplitFused = False,
    prepare: c.Prepare = None,
    task: c.TaskName = None,
    dtype: c.Dtype = None,
    stream: c.Stream = False,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    json: c.Json = False,
    quiet: c.Quiet = False,
) -> None:
    """List the groups of dimensions that must shrink together."""
    from fxslim.graph.errors import InputError

    with c.watching(quiet) as shown:
        _, analysis = c.opened(
            shown, model, split_fused=split_fused, trust_pt2=trust_pt2, trust_remote_code=trust_remote_code,
            dtype=dtype, task=task, further=prepare, stream=stream,
        )  # fmt: skip
    kinds = sorted({g.kind for g in analysis.groups})
    if kind is not None and kind not in kinds:
        raise InputError(f"there is no group of the kind {kind!r}", remedy=f"the kinds are {', '.join(kinds)}")
    listed = [g for g in analysis.groups if (everything or g.prunable) and kind in (None, g.kind)]
    if json:
        c.print_json(_document(analysis, listed))
    else:
        _print_groups(analysis, listed)


def prunable_share(analysis: Analysis) -> float:
    """The share of the parameters that lie on at least one axis that may be cut."""
    weights = {s.weight for g in analysis.prunable for s in g.sites}
    info = analysis.program.info
    total = analysis.program.parameters()
    return sum(info[w].numel for w in weights if info[w].trainable) / total if total else 0.0


def _document(analysis: Analysis, listed: list[Group]) -> dict[str, Any]:
    return {
        "format": 1,
        "groups": [_group_facts(g) for g in listed],
        "counts": dict(Counter(g.kind for g in analysis.prunable)),
        "fixed": dict(Counter(g.kind for g in analysis.groups if not g.prunable)),
        "unknown_operators": analysis.unknown_ops,
        "prunable_share": prunable_share(analysis),
        "params": analysis.program.parameters(),
    }


def _group_facts(group: Group) -> dict[str, Any]:
    return {
        "name": group.name, "kind": group.kind, "size": group.size, "exact": group.exact,
        "symmetry": str(group.symmetry),
        "batch": [a.size for a in group.batch], "sites": [{"site": str(s), "role": s.role} for s in group.sites],
        "inexact": [str(r) for r in group.inexact], "caches": list(group.caches),
        "fixed": None if group.fixed is None else str(group.fixed),
    }  # fmt: skip


def _print_groups(analysis: Analysis, listed: list[Group]) -> None:
    rows = [
        (g.kind, g.size, _exactness(g), "-" if g.fixed else str(g.symmetry), len(g.sites), g.name)
        for g in listed
    ]  # fmt: skip
    c.print_table(("kind", "size", "exact", "symmetry", "sites", "group"), rows)
    counts = Counter(g.kind for g in analysis.prunable)
    fixed = len(analysis.groups) - len(analysis.prunable)
    typer.echo()
    typer.echo("may be cut: " + (", ".join(f"{n} {kind}" for kind, n in counts.most_common()) or "nothing"))
    typer.echo(f"fixed:      {fixed} groups" + ("" if any(g.fixed for g in listed) else " (--all lists them)"))
    typer.echo(
        f"parameters: {analysis.program.parameters():,}, "
        f"of which {prunable_share(analysis):.1%} lie on an axis that may be cut"
    )
    unknown = ", ".join(f"{name} x{n}" for name, n in analysis.unknown_ops.items())
    typer.echo(f"operators without a rule: {unknown or 'none'}")
    for group in listed:
        if group.fixed is not None:
            typer.echo(f"  {group.name} is fixed: {group.fixed}")


def _exactness(group: Group) -> str:
    return "fixed" if group.fixed else "yes" if group.exact else "no"


@c.guarded
def explain(
    model: c.Model,
    a: Annotated[str, typer.Argument(metavar="A", help="weight[dim] or the name of a group.", show_default=False)],
    b: Annotated[
        str | None, typer.Argument(metavar="[B]", help="A second one: why are both tied?", show_default=False)
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="Also draw it: a picture of this name.", show_default=False)] = None,
    split_fused: c.SplitFused = False,
    prepare: c.Prepare = None,
    task: c.TaskName = None,
    dtype: c.Dtype = None,
    stream: c.Stream = False,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    overwrite: c.Overwrite = False,
    quiet: c.Quiet = False,
) -> None:
    """Say why two dimensions are tied, or what ties and fixes one."""
    from fxslim.page.group_picture import picture

    if svg is not None:
        refuse_taken(svg, overwrite=overwrite)
    with c.watching(quiet) as shown:
        _, analysis = c.opened(
            shown, model, split_fused=split_fused, trust_pt2=trust_pt2, trust_remote_code=trust_remote_code,
            dtype=dtype, task=task, further=prepare, stream=stream,
        )  # fmt: skip
    said = analysis.explain(a, b)
    if svg is not None:
        write_page(svg, picture(analysis, a, b), overwrite=overwrite)
    typer.echo(said)


@functools.partial(c.guarded, plugins=False)  # one that does not load is a finding
def doctor(json: c.Json = False, quiet: c.Quiet = False) -> None:
    """Check this installation: versions, advisories, providers, and a tiny run end to end."""
    from fxslim.doctor import examine

    with c.watching(quiet) as shown:
        shown.step("examine")
        findings = examine()
    if json:
        c.print_json({"format": 1, "ok": all(f.ok for f in findings), "findings": [vars(f) for f in findings]})
    else:
        for finding in findings:
            lead = f"{finding.state:<8} {finding.name:<13} "
            typer.echo(textwrap.fill(lead + finding.text, 80, subsequent_indent=" " * len(lead)))
    if not all(f.ok for f in findings):
        raise typer.Exit(1)
