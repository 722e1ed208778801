"""`fxslim export` and `fxslim check`: the ONNX file, and whether it computes what it should."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxslim import cli_common as c

if TYPE_CHECKING:
    from fxslim.export import OnnxCheck

EXPORT_HELP = """Export a model, or a saved slim program, to ONNX.

Examples:

  fxslim export out/slim -o model.onnx

  fxslim export bundled:digits-resnet --opset 18 -o digits.onnx
"""
CHECK_HELP = """Check an ONNX file against the program it was made from, or a result of `fxslim slim` as a whole.

With one argument, that is a result: every file is compared with its manifest, then model.onnx with slim/.
The exit code is 1 if anything differs.

Examples:

  fxslim check out/demo

  fxslim check out/slim model.onnx --original bundled:opt-python
"""


@c.guarded
def export(
    model: c.Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    opset: c.Opset = 20,
    task: c.TaskName = None,
    dtype: c.Dtype = None,
    onnx_dtype: c.OnnxDtype = None,
    stream: c.Stream = False,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    quiet: c.Quiet = False,
) -> None:
    """Export a model, or a saved slim program, to ONNX."""
    from fxslim.export import export_onnx
    from fxslim.opening import open_model

    with c.watching(quiet) as shown:
        shown.step("load")
        source = open_model(
            model, trust_pt2=trust_pt2, trust_remote_code=trust_remote_code, dtype=dtype, task=task, stream=stream
        )
        shown.step("export")
        file = export_onnx(source.program, out, opset=opset, dtype=onnx_dtype or "float32")
    typer.echo(f"{out}: opset {file.opset}, {sum(file.ops.values())} nodes, {file.file_bytes:,} bytes")


@c.guarded
def check(
    model: Annotated[
        str, typer.Argument(help="A model or saved program; alone, a result of `fxslim slim`.", show_default=False)
    ],
    onnx: Annotated[Path | None, typer.Argument(metavar="[ONNX]", help="The ONNX file.", show_default=False)] = None,
    original: Annotated[
        str | None, typer.Option(help="The model before slimming, to say how far the slim one is.")
    ] = None,
    provider: c.Provider = "auto",
    threads: c.Threads = 1,
    seed: c.Seed = 0,
    task: c.TaskName = None,
    dtype: c.Dtype = None,
    stream: c.Stream = False,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    json: c.Json = False,
    quiet: c.Quiet = False,
) -> None:
    """Check an ONNX file against its program, or a result of `fxslim slim` as a whole."""
    from fxslim.export import check_onnx
    from fxslim.opening import open_model, saved_program
    from fxslim.subject import require_provider

    require_provider(provider)
    problems = [] if onnx is not None else _manifest(Path(model))
    found: OnnxCheck | None = None
    if not problems:  # a result with other files than were written is not worth running
        with c.watching(quiet) as shown:
            shown.step("load")
            how = {"trust_pt2": trust_pt2, "trust_remote_code": trust_remote_code, "stream": stream}
            program = open_model(model, dtype=dtype, task=None if saved_program(model) else task, **how).program
            before = None if original is None else open_model(original, dtype=dtype, task=task, **how).program
            shown.step("check")
            file = onnx if onnx is not None else Path(model) / "model.onnx"
            found = check_onnx(program, file, original=before, provider=provider, threads=threads, seed=seed)
    failed = [] if onnx is not None or problems else _failures(Path(model))
    ok = found is not None and found.ok and not failed
    drifted = [] if onnx is not None or problems else _drift(Path(model))
    if json:
        parity = None if found is None else found.to_dict()
        c.print_json({"format": 1, "ok": ok, "manifest": problems, "run": failed, "drift": drifted, "parity": parity})
    else:
        _print_check(problems, found)
        for line in failed:
            typer.echo(f"FAILED when it was made: {line}")
        for line in drifted:
            typer.echo(f"note: {line}")
    if not ok:
        raise typer.Exit(1)


def _manifest(result: Path) -> list[str]:
    from fxslim.graph.errors import InputError
    from fxslim.outputs import MANIFEST, verify_manifest

    if not result.joinpath(MANIFEST).is_file() or not result.joinpath("model.onnx").exists():
        raise InputError(
            f"without an ONNX file, MODEL is a result of `fxslim slim`: this has no {MANIFEST} or no model.onnx",
            at=str(result),
            remedy="name the ONNX file as second argument: fxslim check MODEL model.onnx",
        )
    return verify_manifest(result)


def _failures(result: Path) -> list[str]:
    """Why the run called its result FAILED: that the files are whole does not mend it."""
    from fxslim.report_file import read_report

    report = read_report(result)
    if report["verdict"] == "ok":
        return []
    return [str(failure) for failure in report["failures"]] or ["its report gives no reason"]


def _drift(result: Path) -> list[str]:
    """Versions that differ from those of the run. They decide nothing: the check that was just made does."""
    from json import loads

    from fxslim.identity import drift

    try:
        made = loads((result / "report.json").read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, KeyError):
        return ["there is no report.json that says with which versions this was made"]
    return drift({str(name): str(version) for name, version in made.items()})


def _print_check(problems: list[str], found: OnnxCheck | None) -> None:
    for problem in problems:
        typer.echo(f"FAILED: {problem}")
    if found is None:
        typer.echo("the model was not run: its files are not those that were written")
        return
    rows: list[tuple[Any, ...]] = []
    for shape in found.shapes:
        sizes = ", ".join(f"{k} {v}" for k, v in shape.sizes.items()) or "fixed"
        rows += [(o.name, f"{o.rmse:.1e}", f"{o.allowed:.1e}", "yes" if o.ok else "NO", sizes) for o in shape.outputs]
    c.print_table(("output", "rms error", "allowed", "ok", "sizes"), rows)
    for line in [*(f"FAILED: {f}" for f in found.failures), *(f"note: {n}" for n in found.notes)]:
        typer.echo(line)
    for q in found.quality:
        typer.echo(f"original against slim: {q.name} {q.not_comparable or f'relative distance {q.relative:.3g}'}")
    typer.echo(f"{'ok' if found.ok else 'FAILED'} on {found.provider}")
