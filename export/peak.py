"""Peak memory of a model, measured in a process of its own: `python -m fxslim.export.peak MODEL.onnx INPUTS.npz`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fxslim.export.providers import CPU, create_session
from fxslim.export.weights import tensor_to_numpy
from fxslim.graph.errors import CheckError

__all__ = ["own_bytes", "own_peak_bytes", "peak_bytes"]

_RUNS = 3
_KIB = 1024
_STATUS = Path("/proc/self/status")


def peak_bytes(path: str | Path, inputs: Sequence[object], provider: str, threads: int) -> int | None:
    """The bytes by which loading an ONNX file and running it with flat inputs raises a process's peak of resident
    memory; None where the system does not tell (Windows), and on
    other providers than the CPU, whose memory this is not. `provider` is ONNX Runtime's name.

    Raises:
        CheckError: the model does not run there.
    """
    if importlib.util.find_spec("resource") is None or provider != CPU:
        return None
    with tempfile.TemporaryDirectory(prefix="fxslim-") as scratch:
        file = Path(scratch) / "inputs.npz"
        arrays = {str(i): tensor_to_numpy(tensor) for i, tensor in enumerate(inputs)}  # type: ignore[arg-type]
        np.savez(file, **arrays)  # type: ignore[arg-type]
        command = [sys.executable, "-m", "fxslim.export.peak", str(path), str(file), provider, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"peak memory cannot be measured: {done.stderr.strip()[-300:]}", at=str(path))
    return int(json.loads(done.stdout))


def own_bytes() -> int:
    """The memory that this process has resident now, in bytes; where the system does not tell, the most that it had."""
    return _status("VmRSS") if _STATUS.is_file() else own_peak_bytes()


def own_peak_bytes() -> int:
    """The most memory that this process has had resident, in bytes. On Linux not as getrusage has it: that counts what
    the parent had when it forked."""
    if _STATUS.is_file():
        return _status("VmHWM")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else _KIB)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * _KIB


def _main(path: str, inputs: str, provider: str, threads: str) -> int:
    with np.load(inputs, allow_pickle=False) as file:
        arrays = [file[str(i)] for i in range(len(file.files))]
    before = own_peak_bytes()
    session = create_session(path, provider, threads=int(threads), strict_float32=False, denormals_as_zero=True)
    feed = {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}
    for _ in range(_RUNS):
        session.run(None, feed)
    return own_peak_bytes() - before


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_main(*sys.argv[1:])))
