"""One model compressed by 1, 2 and 4 processes that share the calibration: the plans, the weights, and the time.

    python -m benchmarks.scale_processes MODEL [--methods fasp best] [--processes 1 2 4] [--keep 0.8]

MODEL is a Hugging Face directory with `calib.txt`. Each process has one thread; on a machine with fewer cores than
processes the times say nothing. Of `seconds` the larger is what counts: all processes wait for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from benchmarks.quality import put_row
from fxslim.api import compress
from fxslim.export.peak import own_peak_bytes
from fxslim.opening import open_model, prepared
from fxslim.passes.methods import settings
from fxslim.passes.team import current_team
from fxslim.subject import calibration_of

COLUMNS = [
    "model", "method", "keep", "windows", "processes", "cores", "seconds", "peak_mib", "same_plan",
    "largest_difference",
]  # fmt: skip


def main() -> int:
    options = _parser().parse_args()
    if options.worker is not None:
        return _work(options)
    for method in options.methods:
        with tempfile.TemporaryDirectory() as scratch:
            first: Path | None = None
            for size in options.processes:
                folder = Path(scratch) / str(size)
                folder.mkdir()
                _launch(size, options, method, folder)
                first = first or folder
                row = {
                    "model": Path(options.model).name, "method": method, "keep": options.keep,
                    "windows": options.windows, "processes": size, "cores": os.cpu_count(),
                    **_measured(folder, size), **_compared(first, folder, size),
                }  # fmt: skip
                put_row(options.out, row, ("model", "method", "keep", "windows", "processes"), COLUMNS)
    return 0


def _launch(size: int, options: argparse.Namespace, method: str, folder: Path) -> None:
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}",
        "-m", "benchmarks.scale_processes", options.model, "--methods", method, "--keep", str(options.keep),
        "--windows", str(options.windows), "--worker", str(folder),
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def _work(options: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    source = open_model(options.model)
    analysis, data = prepared(source.program), str(Path(options.model) / "calib.txt")
    calibration = calibration_of(source, data, samples=options.windows, window=options.window, seed=0)
    chosen = settings(options.methods[0], data=True)
    dist.barrier()
    start = time.perf_counter()
    plan, applied = compress(
        analysis, options.keep, calibration=calibration, restore=chosen.restore, **chosen.options()
    )
    facts = {"seconds": time.perf_counter() - start, "peak_bytes": own_peak_bytes()}
    name = str(current_team().rank)
    (options.worker / f"{name}.facts").write_text(json.dumps(facts), encoding="utf-8")
    (options.worker / f"{name}.json").write_text(json.dumps([asdict(c) for c in plan.cuts]), encoding="utf-8")
    save_file({k: v.contiguous().clone() for k, v in applied.program.weights.items()}, options.worker / f"{name}.st")
    dist.destroy_process_group()
    return 0


def _measured(folder: Path, size: int) -> dict[str, Any]:
    facts = [json.loads((folder / f"{rank}.facts").read_text(encoding="utf-8")) for rank in range(size)]
    return {
        "seconds": round(max(f["seconds"] for f in facts), 1),
        "peak_mib": round(max(f["peak_bytes"] for f in facts) / 2**20),
    }


def _compared(first: Path, folder: Path, size: int) -> dict[str, Any]:
    """Against what one process made: whether all plans are the same, and the largest difference of a weight, relative
    to the largest of its tensor."""
    wanted, largest = load_file(first / "0.st"), 0.0
    for rank in range(size):
        own = load_file(folder / f"{rank}.st")
        for name, weight in wanted.items():
            if own[name].shape != weight.shape:
                return {"same_plan": False, "largest_difference": ""}
            scale = float(weight.double().abs().max()) or 1.0
            largest = max(largest, float((own[name].double() - weight.double()).abs().max()) / scale)
    plans = {(f / f"{r}.json").read_text(encoding="utf-8") for f, n in ((first, 1), (folder, size)) for r in range(n)}
    return {"same_plan": len(plans) == 1, "largest_difference": f"{largest:.1e}"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--methods", nargs="+", default=["fasp", "best"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--keep", type=float, default=0.8, help="share of all parameters")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--window", type=int, default=256, help="tokens of each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scale_processes.csv"))
    parser.add_argument("--worker", type=Path, help="where a process writes what it has made")
    return parser


if __name__ == "__main__":
    sys.exit(main())
