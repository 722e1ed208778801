"""`fxslim bench`: how fast a result is, beside the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxslim import cli_common as c

BENCH_HELP = """Time a result of `fxslim slim` beside the model that it was made from.

Both, and the original once more as a control, run by turns in random order in sessions that are rebuilt five times.
The speed-up is the median of ratios with a bootstrap interval of 95 %; the ideal is what the multiply-accumulates let
expect. Decoders with a cache are timed at prefill and at a step of decoding.

Examples:

  fxslim bench out/demo

  fxslim bench out/demo --sizes batch_size=1,sequence_length=64 --sizes batch_size=8,sequence_length=64 --threads 2
"""


@c.guarded
def bench(
    result: Annotated[Path, typer.Argument(metavar="OUT", help="A result of `fxslim slim`.", show_default=False)],
    original: Annotated[
        str | None,
        typer.Option(help="The model before slimming. Default: the one that the report names.", show_default=False),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            help="Sizes by dimension, such as batch_size=1,sequence_length=256; may be given again.", show_default=False
        ),
    ] = None,
    provider: c.Provider = "auto",
    threads: c.Threads = 1,
    seconds: Annotated[float, typer.Option(help="Seconds to spend on each case.")] = 20.0,
    seed: c.Seed = 0,
    trust_pt2: c.TrustPt2 = False,
    trust_remote_code: c.TrustRemoteCode = False,
    json: c.Json = False,
    quiet: c.Quiet = False,
) -> None:
    """Time a result of `fxslim slim` beside the model that it was made from."""
    from fxslim.bench import bench as run
    from fxslim.subject import require_provider
    from fxslim.timing import parse_sizes

    require_provider(provider)
    cases = [parse_sizes(text) or {} for text in sizes or ()]
    with c.watching(quiet) as shown:
        shown.step("bench")
        found = run(
            result, cases, original=original, provider=provider, threads=threads, seconds=seconds, seed=seed,
            trust_pt2=trust_pt2, trust_remote_code=trust_remote_code,
        )  # fmt: skip
    if json:
        c.print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    typer.echo(f"{found['model']} on {found['provider']}, {found['threads']} thread(s), denormals are zero")
    for what in ("file_bytes", "initializer_bytes"):
        sizes = found[what]
        typer.echo(f"  {what.replace('_', ' ')}: {sizes['original']:,} -> {sizes['slim']:,}")
    for case in found["cases"]:
        latency, peaks = case["latency"], case["peak_bytes"]
        before, after = (latency["median_ms"][name] for name in ("original", "slim"))
        typer.echo(f"{case['name']}: {before:.2f} ms -> {after:.2f} ms, {latency['verdict']}")
        control, spread = latency["control"], latency["rebuild_ratios"]
        noise = f"control {control['low']:.2f}-{control['high']:.2f}"
        typer.echo(f"  {noise}; rebuilt sessions {min(spread):.2f}-{max(spread):.2f}")
        if case["share_of_ideal"] is not None:
            typer.echo(f"  the arithmetic lets expect {case['ideal_ratio']:.2f}x: {case['share_of_ideal']:.0%} of it")
        if None not in peaks.values():
            typer.echo(f"  peak memory {peaks['original'] / 2**20:.0f} MiB -> {peaks['slim'] / 2**20:.0f} MiB")
