"""A step of a pipeline that runs unattended: slim a model, read what it reports, say whether to ship the result.

    python examples/05_pipeline_step.py bundled:digits-resnet out/step

Exit codes: 0 ship OUT, 1 it was made but is not to be shipped, 2 it could not be made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fxslim

MOST_LOST = 0.02  # of the quality: accuracy may fall, perplexity rise, by this share
SHIP, KEEP_THE_OLD, NOT_MADE = 0, 1, 2


def slim(model: str, out: Path, *options: str) -> int:
    """The exit code: 0 ok, 1 a proof or check failed (the report says which), 2 bad input, more: see docs/errors.md."""
    command = [sys.executable, "-m", "fxslim", "slim", model, *options, "--overwrite", "--quiet", "-o", str(out)]
    return subprocess.run(command, check=False).returncode


def objections(report: dict[str, Any]) -> list[str]:
    """Why a result is not to be shipped. What was not measured is an objection, too."""
    found = list(report["failures"])  # proof, ONNX check, loader: fxslim's own verdict
    quality, ratio, control = report["quality"], report["latency"]["ratio"], report["latency"]["control"]
    if quality is None:
        found.append("quality: not measured, give evaluation data")
    else:
        before, after = quality["before"], quality["after"]
        lost = (before - after if quality["higher_is_better"] else after - before) / abs(before)
        if lost > MOST_LOST:
            found.append(f"quality: {quality['name']} {before:.4g} -> {after:.4g}, {lost:.1%} lost")
    if ratio["low"] <= max(1, control["high"]):  # the lower end of the interval: noise is not a speed-up
        found.append(f"latency: {ratio['value']:.2f}x may be chance ({ratio['low']:.2f} to {ratio['high']:.2f})")
    return found


def main(model: str, out: Path, *options: str) -> int:
    code = slim(model, out, *(options or ("--keep", "0.6", "--of", "macs", "--round-to", "8")))
    if code not in (0, 1):
        print(f"{model}: not made, exit code {code}; {out} is as it was")
        return NOT_MADE
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["format"] == 1, "this step was written for format 1 of the report"
    found = objections(report)
    params = report["costs"]["params"]
    print(f"{model}: {params[0]:,} -> {params[1]:,} parameters with fxslim {fxslim.__version__}")
    for objection in found:
        print(f"  not shipped: {objection}")
    if not found:
        print(f"  shipped: {out / 'model.onnx'}")
    return KEEP_THE_OLD if found else SHIP


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    given, rest = parser.parse_known_args()
    sys.exit(main(given.model, given.out, *rest))
