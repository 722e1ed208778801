"""Kills runs at every write and every step, and reports what was found afterwards.

python -m tests.kill [--every 1] [--scenario fresh overwrite targets] [--out benchmarks/results/kill.md]
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.kill.harness import SCENARIOS, Finding, Point, count_points, hashes, prepare, try_point


def main() -> int:
    options = _parser().parse_args()
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
        root = Path(scratch)
        data = prepare(root)
        for scenario in options.scenario:
            points = _some(count_points(root / scenario, data, scenario), options.every, options.seed)
            expected = hashes(root / scenario, scenario)
            for i, point in enumerate(points):
                folder = root / f"{scenario}-{i}"
                findings.append(try_point(folder, data, point, expected))
                shutil.rmtree(folder)
                said = findings[-1].problem or "as promised"
                sys.stdout.write(f"{scenario} {point.kind} {point.number}: {findings[-1].left}; {said}\n")
                sys.stdout.flush()
    options.out.write_text(_table(findings), encoding="utf-8")
    return 1 if any(f.problem for f in findings) else 0


def _some(points: list[Point], every: int, seed: int | None) -> list[Point]:
    """Each so many-th of the points, or as many that are drawn at random."""
    some = points[::every]
    return some if seed is None else sorted(random.Random(seed).sample(points, len(some)), key=points.index)


def _table(findings: Sequence[Finding]) -> str:
    lines = [
        "# Runs that were killed", "",
        "`make kill`: SIGKILL before every change of the file system that Python tells of (opening to write, renaming,",
        "making, removing; around the exchange of two names) and at every sign of life of a step. Looked at is",
        "what is at the result's name then, what the next run makes of it (plan, weights and ONNX file byte for byte",
        "those of a run that was not killed), and what stays beside it. `streamed` is a language model whose weights",
        "and activations are on disk (`--stream`): every restored call is a step that is kept.", "",
        "| run | killed at | points | found: nothing | old | new | went on from what was there | problems |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for scenario in dict.fromkeys(f.point.scenario for f in findings):
        for kind in ("write", "step"):
            own = [f for f in findings if (f.point.scenario, f.point.kind) == (scenario, kind)]
            left = Counter(f.left for f in own)
            counts = [left["nothing"], left["old"], sum(n for state, n in left.items() if "new" in state)]
            row = [len(own), *counts, sum(f.resumed for f in own), sum(bool(f.problem) for f in own)]
            lines.append(f"| {scenario} | {kind} | " + " | ".join(map(str, row)) + " |")
    problems = [f"- {f.point.scenario}, {f.point.kind} {f.point.number}: {f.problem}" for f in findings if f.problem]
    return "\n".join([*lines, "", f"{len(findings)} points, {len(problems)} problems.", *problems]) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only each so many-th point")
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=None, help="with --every: points drawn at random in their place")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/kill.md"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
