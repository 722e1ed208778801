"""A LLaMA-shaped model several times as large as the memory that the process may have, compressed and exported."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale_models import LLAMA, SCRATCH, write_llama

__all__ = ["add_arguments", "main"]

_CGROUP = Path("/sys/fs/cgroup/memory")
_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m benchmarks.scale memory` is asked."""
    parser.add_argument("--limit", type=int, default=1280, help="MiB that the process may have")
    parser.add_argument("--times", type=float, default=4.0, help="bytes of weights over the limit")
    parser.add_argument("--layers", type=int, default=None, help="instead of --times")
    parser.add_argument("--method", default="fasp")
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)


def main(options: argparse.Namespace) -> list[str]:
    """The table, as lines of Markdown.

    Raises:
        SystemExit: the run failed, or was killed for its memory.
    """
    layers = options.layers or _layers(options.times * options.limit * _MIB)
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as name, limited(options.limit) as (join, usage, how):
        folder = Path(name)
        model = write_llama(folder / "model", layers)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        out = folder / "out"
        start = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable, "-W", "ignore", "-m", "fxslim", "slim", str(model), "--method", options.method,
                "--keep", str(options.keep), "--calibration", str(_data(folder, options.windows, options.tokens)),
                "--stream", "--offload-activations", "--verbose", "-o", str(out),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}, preexec_fn=join, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        if done.returncode not in (0, 1):
            raise SystemExit(f"the run ended with {done.returncode} after {seconds:.0f} s")
        report, counted = json.loads((out / "report.json").read_text(encoding="utf-8")), usage()
    memory = {key: f"{value / _MIB:,.0f} MiB" for key, value in report["memory"].items()}
    steps = ", ".join(f"{step} {value:.0f}" for step, value in report["seconds"].items())
    return [
        f"A LLaMA-shaped model of {layers} layers, {size / 2**30:.2f} GiB of weights in float32, `{options.method}` at "
        f"{options.keep:.0%}, {options.windows} windows of {options.tokens} tokens; the process may have "
        f"{options.limit:,} MiB ({how}): the weights are {size / _MIB / options.limit:.1f} times that.",
        "",
        "| verdict | seconds | predicted | until the proof | with export and check | counted by the system |",
        "|---|---|---|---|---|---|",
        f"| {report['verdict']} | {seconds:.0f} | {memory['predicted_bytes']} | {memory['calibrated_bytes']} "
        f"| {memory['peak_bytes']} | {counted} |",
        "",
        f"Seconds by step: {steps}.",
    ]  # fmt: skip


def _layers(size: float) -> int:
    """Layers whose weights take at least so many bytes in float32."""
    width, hidden = LLAMA["hidden_size"], LLAMA["intermediate_size"]
    narrow = width * LLAMA["num_key_value_heads"] // LLAMA["num_attention_heads"]
    return -(-int(size) // (4 * (2 * width * width + 2 * width * narrow + 3 * width * hidden)))


def _data(folder: Path, windows: int, tokens: int) -> Path:
    ids = np.random.default_rng(0).integers(0, LLAMA["vocab_size"], (windows, tokens))
    np.savez(folder / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return folder / "data.npz"


@contextmanager
def limited(mib: int) -> Iterator[tuple[Callable[[], Any], Callable[[], str], str]]:
    """How a child comes under a limit before it starts, what says the most that it had, and the limit's name: a memory
    cgroup where one can be made (it counts the files' pages too, which it takes back), else RLIMIT_DATA."""
    group = _CGROUP / f"fxslim-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(mib * _MIB))
    except OSError:
        import resource

        yield lambda: resource.setrlimit(resource.RLIMIT_DATA, (mib * _MIB, mib * _MIB)), lambda: "-", "RLIMIT_DATA"
        return
    try:
        yield (
            lambda: (group / "cgroup.procs").write_text(str(os.getpid())),
            lambda: f"{int((group / 'memory.max_usage_in_bytes').read_text()) / _MIB:,.0f} MiB",
            "a memory cgroup",
        )
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Removes a cgroup, whose last process may still be going."""
    for _ in range(50):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
