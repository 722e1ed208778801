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

import fxslim

# Accuracy may fall, perplexity rise, by 2 % of what it was; faster has to be sure. What is not measured does not pass.
GATES = ("--max-quality-loss", "0.02", "--min-speedup", "1")
SHIP, KEEP_THE_OLD, NOT_MADE = 0, 1, 2


def slim(model: str, out: Path, *options: str) -> int:
    """The exit code: 0 ok, 1 a proof, check or gate failed (the report says which), else as in docs/errors.md."""
    words = [model, *GATES, *options, "--overwrite", "--quiet", "-o", str(out)]
    return subprocess.run([sys.executable, "-m", "fxslim", "slim", *words], check=False).returncode


def main(model: str, out: Path, *options: str) -> int:
    code = slim(model, out, *(options or ("--keep", "0.6", "--of", "macs", "--round-to", "8")))
    if code not in (0, 1):
        print(f"{model}: not made, exit code {code}; {out} is as it was")
        return NOT_MADE
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["format"] == 1, "this step was written for format 1 of the report"
    before, after = report["costs"]["params"]
    print(f"{model}: {before:,} -> {after:,} parameters with fxslim {fxslim.__version__}")
    for failure in report["failures"]:
        print(f"  not shipped: {failure}")
    if code == 0:
        print(f"  shipped: {out / 'model.onnx'}")
    return SHIP if code == 0 else KEEP_THE_OLD


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    given, rest = parser.parse_known_args()
    sys.exit(main(given.model, given.out, *rest))
