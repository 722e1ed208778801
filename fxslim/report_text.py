"""The report for people: Markdown from the JSON document, nothing else, so that the two cannot disagree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fxslim.report_variants import variant_line, variant_rows
from fxslim.wording import (
    count,
    each,
    loader_line,
    moved,
    number,
    proof_line,
    quality_line,
    runs,
    shortage,
    size,
    smaller,
    where,
)  # fmt: skip

__all__ = ["headline", "render"]


def headline(report: dict[str, Any]) -> list[str]:
    """The verdict in a few lines: smaller by, faster by or not, quality, proof, parity."""
    costs, latency = report["costs"], report["latency"]
    proof, parity = report["proof"], report["parity"]
    return [
        f"{smaller(costs['params'], 'parameters')}, {smaller(costs['macs'], 'MACs')}, "
        f"{smaller(costs['file_bytes'], 'bytes of ONNX')}",
        f"{latency['verdict']} on {latency['provider']}, {count(latency['threads'], 'thread')}",
        quality_line(report["quality"]),
        proof_line(proof),
        ("the ONNX file computes what the slim program computes" if parity["ok"] else "the ONNX file FAILED its check")
        + f", on {parity['provider']} at {count(runs(parity), 'run')}",
        *(variant_line(v, report["costs"], report["quality"]) for v in report["variants"]),
        *loader_line(report["loader"]),
        *shortage(report["restoration"]),
    ]


def render(report: dict[str, Any]) -> str:
    """The whole report as Markdown."""
    sections = [
        [f"# {report['model']['name']}: {report['verdict']} on {where(report['provider'])}"],
        [f"- {line}" for line in headline(report)],
        _bullets("Failures", report["failures"]),
        _bullets("Gates", [f"{'passed' if g['ok'] else 'FAILED'}: {g['text']}" for g in report.get("gates", ())]),
        _costs(report["costs"]),
        _groups(report["groups"]),
        _calibration(report["data"]["calibration"], report["restoration"]),
        _restoration(report["restoration"]),
        _proof(report["proof"]),
        _parity(report["parity"]),
        _loader(report["loader"]),
        _latency(report["latency"]),
        _variants(report["variants"], report["costs"], report["quality"]),
        _fixed(report),
        _bullets("Notes", [*report["notes"], *report["plan"]["notes"]]),
        _data(report["data"]),
        _origin(report),
    ]
    return "\n\n".join("\n".join(s) for s in sections if s) + "\n"


def _loader(loader: dict[str, Any] | None) -> list[str]:
    """What was compared, and what config.json was made to say."""
    if loader is None:
        return []
    versions = ", ".join(f"{name} {value}" for name, value in loader["versions"].items())
    lines = ["## Loader", "", f"{loader['loader']}, with and without IO binding: {loader['compared']} ({versions})."]
    if loader["config"]:
        changes = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in loader["config"].items())
        lines += ["", f"config.json was changed to describe the caches, not the weights: {changes}."]
    return lines


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows]


def _bullets(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {line}" for line in lines)] if lines else []


def _costs(costs: dict[str, list[int]]) -> list[str]:
    def row(name: str, key: str, text: Any) -> tuple[str, str, str, str]:
        before, after = costs[key]
        return name, text(before), text(after), f"{after / before:.1%}" if before else "-"

    rows = [
        row("parameters", "params", "{:,}".format),
        row("multiply-accumulates (example inputs)", "macs", "{:,}".format),
        row("weights in ONNX", "initializer_bytes", size),
        row("ONNX file", "file_bytes", size),
    ]
    return ["## Size", "", *_table(("", "original", "slim", "kept"), rows)]


def _groups(groups: list[dict[str, Any]]) -> list[str]:
    if not groups:
        return ["## Groups", "", "Nothing was cut."]
    rows = [
        (g["group"], g["kind"], g["size"], f"{g['kept']}{each(g['batch'])}", "yes" if g["exact"] else "no")
        for g in groups
    ]
    return ["## Groups that were cut", "", *_table(("group", "kind", "size", "kept", "exact"), rows)]


def _restoration(restoration: dict[str, Any] | None) -> list[str]:
    if restoration is None:
        return ["## Restoration", "", "None: the weights were sliced and left as they were."]
    rows = [
        (r["weight"], f"{r['kept']} of {r['columns']}", number(r["before"]), number(r["after"]),
         "yes" if r["accepted"] else f"no: {r['reason']}")
        for r in restoration["rows"]
    ]  # fmt: skip
    how = "Least squares" if restoration["by"] == "least-squares" else "Biases take over the mean of what was removed"
    about = f"{how}; residuals are squared, relative to the output, on calibration data that was held out."
    table = _table(("weight", "columns kept", "residual sliced", "residual refitted", "accepted"), rows)
    return ["## Restoration", "", about, "", *table, *_norms(restoration["norms"]), *_tail(restoration["warnings"])]


def _norms(norms: Sequence[dict[str, Any]]) -> list[str]:
    """Batch norms behind what changed, where there are any."""
    rows = [
        (n["mean"], number(n["before"]), number(n["after"]), n["changed"] or f"nothing: {n['reason']}") for n in norms
    ]
    about = "Batch norms: squared error of their output, relative to the original's variance, on the same data."
    return ["", about, "", *_table(("running mean", "error before", "error after", "changed"), rows)] if rows else []


def _calibration(data: dict[str, Any] | None, restoration: dict[str, Any] | None) -> list[str]:
    if data is None:
        return []
    tokens = f", {data['tokens']:,} tokens" if data["tokens"] else ""
    lines = [f"Source: {data['description']}{tokens}.", *_refits(restoration and restoration["summary"])]
    shares = [
        (p["source"], f"{p['share']:.1%}", f"{p['rows']:,}", f"{p['rows'] / data['rows']:.1%}", f"{p['tokens']:,}")
        for p in data["parts"]
    ]
    table = _table(("source", "share asked", "rows", "share met", "tokens"), shares) if len(shares) > 1 else []
    warning = [f"**{text}**" for text in shortage(restoration)]
    return ["## Calibration", "", *(f"- {line}" for line in [*lines, *warning]), *(["", *table] if table else [])]


def _refits(summary: dict[str, Any] | None) -> list[str]:
    if summary is None:
        return []
    smallest, middle = summary["tokens_per_column"]
    median, worst = (" -> ".join(map(number, summary[name])) for name in ("median_error", "worst_error"))
    return [
        f"Tokens for each column that is refitted: at least {number(smallest)} ({summary['scarcest']}), median "
        f"{number(middle)}.",
        f"Held-out error, sliced -> refitted: median {median}, worst {worst} ({summary['worst']}).",
        f"{summary['rejected']} of {count(summary['refits'], 'refit')} rejected: held-out data did not improve.",
    ]


def _tail(lines: Sequence[str]) -> list[str]:
    return ["", *(f"- {line}" for line in lines)] if lines else []


def _proof(proof: dict[str, Any]) -> list[str]:
    about = (
        "Before restoration, in float64: the slim program against the original with the removed units masked. "
        f"Relative errors up to {number(proof['tolerance'])} are rounding."
    )
    rows = [(o["name"], number(o["error"]), number(o["effect"])) for o in proof["outputs"]]
    table = _table(("output", "error", "change that masking makes"), rows)
    places = [f"inexact: {text}" for text in proof["inexact"]]
    return ["## Proof", "", about, "", *table, *_tail([*places, *proof["notes"]])]


def _parity(parity: dict[str, Any]) -> list[str]:
    rows = list(_parity_rows(parity["shapes"]))
    about = (
        f"The slim program in PyTorch against its ONNX file on {parity['provider']}, judged by float64 "
        f"(tolerance `{parity['tolerance']['name']}`). Nodes: "
        + ", ".join(f"{name} {n}" for name, n in parity["nodes_by_provider"].items()) + "."
    )  # fmt: skip
    table = _table(("sizes", "output", "largest difference", "rms error", "allowed", "ok"), rows)
    off = [f"not on {parity['provider']}: {text}" for text in parity["off_provider"]]
    drift = [f"original against slim, output {q['name']}: {moved(q)}" for q in parity["quality"]]
    return ["## Parity of the ONNX file", "", about, "", *table, *_tail([*off, *parity["notes"], *drift])]


def _parity_rows(shapes: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for shape in shapes:
        sizes = ", ".join(f"{k} {v}" for k, v in shape["sizes"].items()) or "fixed"
        for o in shape["outputs"]:
            numbers = (number(o["max_abs"]), number(o["rmse"]), number(o["allowed"]))
            yield sizes, o["name"], *numbers, "yes" if o["ok"] else f"NO: {o['problem']}"
        if not shape["outputs"]:
            yield sizes, "-", "-", "-", "-", shape["failure"] or f"did not run: {shape['not_applicable']}"


def _latency(latency: dict[str, Any]) -> list[str]:
    def interval(r: dict[str, float]) -> str:
        return f"{r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})"

    if not latency["rounds"]:
        return ["## Latency", "", f"{latency['verdict'].capitalize()}: the weights of both models stayed on disk."]
    rows = [(name, f"{ms:.3f} ms") for name, ms in latency["median_ms"].items()]
    rows.append(("original / slim, 95 % interval", interval(latency["ratio"])))
    rows.append(("control: original / original", interval(latency["control"])))
    shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in latency["shapes"].items())
    about = (
        f"{latency['verdict']}. {latency['provider']}, {count(latency['threads'], 'thread')}, inputs {shapes}; "
        f"interleaved, {latency['rounds']} rounds in {latency['seconds']:.0f} s, denormals flushed in both."
    )
    return ["## Latency", "", about, "", *_table(("", "median"), rows), *_paced(latency["plan"])]


def _paced(plan: dict[str, Any] | None) -> list[str]:
    """How a plan by latency was found."""
    if plan is None:
        return []
    tried = "; ".join(f"{a['target']:.1%} of the {a['of']}: {a['measured']:.1%}" for a in plan["attempts"])
    return [
        "",
        f"The plan was asked for {plan['keep']:.1%} of the time, with sizes on multiples of {plan['multiple']}. "
        f"Shares that plans were made for, and what their models took: {tried}. The one that was taken divided the "
        f"{plan['of']}.",
    ]


def _variants(variants: list[dict[str, Any]], costs: dict[str, list[int]], quality: dict[str, Any] | None) -> list[str]:
    if not variants:
        return []
    lines = [f"- {variant_line(v, costs, quality)}" for v in variants]
    return ["## Other types", "", *lines, *_tail([text for v in variants for text in variant_rows(v)])]


def _fixed(report: dict[str, Any]) -> list[str]:
    rows = [(f["groups"], f["reason"], f["example"]) for f in report["fixed"][:10]]
    lines = ["## What stays fixed, and why", ""]
    lines += _table(("groups", "reason", "for example"), rows) if rows else ["No group is fixed."]
    unknown = ", ".join(f"{name} x{n}" for name, n in report["unknown_operators"].items()) or "none"
    return [*lines, "", f"Operators without a rule: {unknown}."]


def _data(data: dict[str, Any]) -> list[str]:
    rows = [(name, d["description"], d["sha256"][:12]) for name, d in data.items() if d is not None]
    return ["## Data", "", *_table(("use", "what", "sha256"), rows)] if rows else ["## Data", "", "None."]


def _expected(seconds: float, said: float | None) -> str:
    return "" if said is None else f" (estimated {said:.0f} s: it took {seconds / max(said, 0.01):.2f} times that)"


def _origin(report: dict[str, Any]) -> list[str]:
    used = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    said = report.get("estimated_seconds", {})
    times = ", ".join(f"{name} {value:.0f} s{_expected(value, said.get(name))}"
                      for name, value in report["seconds"].items())  # fmt: skip
    earlier = (
        [f"Taken over from a run that ended early: {', '.join(report['resumed'])}.", ""]
        if report.get("resumed")
        else []
    )
    again = [f"    {report['command']}", "", "or by `recipe.yaml` beside this file: `fxslim run recipe.yaml -o OUT`."]
    return ["## How to get this again", "", *again, "", f"Versions: {used}.", "", *earlier, f"Time: {times}."]
