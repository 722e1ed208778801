"""How long plans take, against what was said before: the ratio for several methods.

python -m benchmarks.scale_estimate MODEL [--methods fasp best ...] [--keep 0.8] [--windows 64]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import put_row
from fxslim.api import compress
from fxslim.opening import open_model, prepared
from fxslim.passes.methods import settings
from fxslim.subject import calibration_of
from fxslim.time_plan import plan_seconds

COLUMNS = ["model", "method", "keep", "windows", "threads", "estimated_s", "seconds", "ratio", "parts"]


def main() -> int:
    options = _parser().parse_args()
    source = open_model(options.model)
    analysis, text = prepared(source.program), Path(options.model) / "calib.txt"
    data = str(text) if text.exists() else None
    calibration = calibration_of(source, data, samples=options.windows, window=options.window, seed=0)
    assert calibration is not None
    for method in options.methods:
        chosen = settings(method, data=True)
        parts = plan_seconds(analysis, calibration.inputs, chosen)
        start = time.perf_counter()
        compress(analysis, options.keep, calibration=calibration, restore=chosen.restore, **chosen.options())
        seconds, estimated = time.perf_counter() - start, sum(parts.values())
        row: dict[str, Any] = {
            "model": Path(options.model).name, "method": method, "keep": options.keep, "windows": options.windows,
            "threads": torch.get_num_threads(), "estimated_s": round(estimated, 1), "seconds": round(seconds, 1),
            "ratio": round(seconds / max(estimated, 1e-9), 2),
            "parts": " ".join(f"{name}={value:.1f}" for name, value in parts.items()),
        }  # fmt: skip
        put_row(options.out, row, ("model", "method", "keep", "windows", "threads"), COLUMNS)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--methods", nargs="+", default=["fasp", "osscar", "svd-llm", "modegpt", "flap", "best"])
    parser.add_argument("--keep", type=float, default=0.8, help="share of all parameters")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--window", type=int, default=256, help="tokens of each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale_estimate.csv"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
