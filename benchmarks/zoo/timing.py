"""Time of analysis and rewriting against the size of the graph, in CPU seconds of one thread, which a busy machine does
not change much: a sample of the catalogue, evenly spread over the sizes that the sweep found.

    python -m benchmarks.zoo.timing [--library transformers] [--count 40] [--out FILE.csv]

Nothing is proven or exported. The plot of these rows is `zoo-time.svg` beside FILE.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.zoo.measure import WIDTH, Row
from benchmarks.zoo.scaling import plot
from benchmarks.zoo.sweep import builds_of, write_csv
from fxslim.api import analyze, apply, capture, make_plan, prepare

SWEPT = Path("benchmarks/results/zoo.csv")
REPEATS = 2  # the fastest counts: the first may pay for caches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default="transformers", choices=["transformers", "torchvision", "timm"])
    parser.add_argument("--label", default="transformers-5", help="the library as the sweep's table has it")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/zoo-time.csv"))
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    builds, rows = builds_of(options.library), []
    for name in spread(options.label, options.count):
        row = timed(options.label, name, builds[name])
        rows.append(row)
        print(f"{len(rows):3} {name}: {row.nodes} nodes, {row.analysis_s} s, {row.rewrite_s} s", flush=True)
    write_csv(rows, options.out)
    print(plot(rows, options.out.with_suffix(".svg"), clock="CPU seconds, one thread"))


def spread(label: str, count: int) -> list[str]:
    """Names of models that were proven, evenly spread over the logarithm of their number of nodes."""
    with SWEPT.open(encoding="utf-8") as file:
        swept = [r for r in csv.DictReader(file) if r["library"] == label and r["status"] == "ok"]
    swept.sort(key=lambda r: (int(r["nodes"]), r["model"]))
    low, high = int(swept[0]["nodes"]), int(swept[-1]["nodes"])
    found: dict[str, None] = {}
    for step in range(count):
        wanted = low * (high / low) ** (step / max(1, count - 1))
        left = [r for r in swept if r["model"] not in found]
        if left:
            found[min(left, key=lambda r: abs(int(r["nodes"]) - wanted))["model"]] = None
    return list(found)


def timed(label: str, name: str, build: object) -> Row:
    """The row of one model: its size, and the two times."""
    assert callable(build)
    torch.manual_seed(0)
    case = build()
    program = capture(case.model, case.args, dict(case.kwargs))
    row = Row(label, name, "ok", nodes=len(program.graph.nodes), parameters=program.parameters())
    analysis_s, rewrite_s = [], []
    prepared = prepare(program)
    for _ in range(REPEATS):
        start = time.process_time()
        analysis = analyze(prepared)
        analysis_s.append(time.process_time() - start)
        start = time.process_time()
        apply(analysis, make_plan(analysis, width=WIDTH, inexact=True))
        rewrite_s.append(time.process_time() - start)
    return replace(row, analysis_s=round(min(analysis_s), 3), rewrite_s=round(min(rewrite_s), 3))


if __name__ == "__main__":
    main()
