"""`--stream` from end to end: the same result as in memory, memory that was said before, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fxslim.cli import app
from fxslim.graph.errors import InputError
from fxslim.pipeline import SlimOptions, slim
from fxslim.run_steps import Unwatched
from fxslim.streaming import device_of, refuse_unstreamable
from tests.fxslim.hf import tiny_llama, token_data

ROWS, TOKENS = 24, 16
FACTOR = 1.5  # by which what is said of memory may exceed what is needed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("hf") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return token_data(tmp_path_factory.mktemp("data") / "data.npz", ROWS, TOKENS)


def options(model: Path, data: Path, **more: Any) -> SlimOptions:
    return SlimOptions(
        str(model), keep=0.8, method="fasp", calibration=str(data), latency_seconds=0.05, provider="cpu", **more
    )


def hashes(out: Path) -> Mapping[str, str]:
    names = ("plan.json", "slim/graph.json", "slim/weights.safetensors")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def test_a_streamed_result_is_the_one_made_in_memory(model: Path, data: Path, tmp_path: Path) -> None:
    report = slim(options(model, data, stream=True, offload_activations=True), tmp_path / "streamed")
    slim(options(model, data), tmp_path / "whole")
    assert report["verdict"] == "ok" and report["latency"]["rounds"] == 0
    assert hashes(tmp_path / "streamed") == hashes(tmp_path / "whole")
    assert any("stayed on disk" in note for note in report["notes"])
    assert 0 < report["memory"]["calibrated_bytes"] <= report["memory"]["peak_bytes"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["streamed", "whole"]  # nothing is left beside them


class Killer(Unwatched):
    """Ends the process at the n-th sign of life of one step."""

    def __init__(self, step: str, number: int) -> None:
        self._step, self._left, self._here = step, number, ""

    def step(self, name: str) -> None:
        self._here = name

    def progress(self, what: str, done: int, total: int) -> None:
        if self._here == self._step and total > 1:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are killed in children made by os.fork")
@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_killed_run_goes_on_from_its_last_step(stream: bool, model: Path, data: Path, tmp_path: Path) -> None:
    slim(options(model, data, stream=stream), tmp_path / "whole")
    child = os.fork()
    if child == 0:
        try:
            slim(options(model, data, stream=stream), tmp_path / "out", watcher=Killer("plan", 3))
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and not (tmp_path / "out").exists()
    report = slim(options(model, data, stream=stream), tmp_path / "out")
    assert report["resumed"] == ["restoration"]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_steps_one_by_one(model: Path, data: Path, tmp_path: Path) -> None:
    run, common = CliRunner(), ["--calibration", str(data), "--stream"]
    plan = str(tmp_path / "plan.json")
    wanted = [str(model), "--method", "fasp", "--keep", "0.8", *common]
    said = run.invoke(app, ["plan", *wanted, "--memory", "--json"])
    assert said.exit_code == 0, said.output
    needed = json.loads(said.stdout)
    assert needed["peak_bytes"] > needed["now"] and set(needed["steps"]) == {"slice", "prove", "calibrate"}
    assert run.invoke(app, ["plan", *wanted, "-o", plan]).exit_code == 0
    made = run.invoke(app, ["apply", str(model), plan, *common, "-o", str(tmp_path / "slim")])
    assert made.exit_code == 0, made.output
    again = run.invoke(app, ["groups", str(tmp_path / "slim"), "--stream"])
    assert again.exit_code == 0, again.output
    assert sorted(f.name for f in tmp_path.iterdir()) == ["plan.json", "slim"]


@pytest.mark.parametrize(
    ("more", "flag"),
    [
        ({"of": "latency"}, "--of latency"), ({"min_speedup": 1.1}, "--min-speedup"),
        ({"quantize": "dynamic"}, "--quantize"), ({"onnx_dtype": "float16"}, "--onnx-dtype"),
        ({"loader_compatible": True}, "--loader-compatible"), ({"importance": "taylor"}, "--importance taylor"),
    ],
)  # fmt: skip
def test_what_needs_the_whole_model_is_refused_by_name(more: dict[str, Any], flag: str) -> None:
    asked = SlimOptions("m", keep=0.5, stream=True, **more)
    with pytest.raises(InputError, match=f"--stream cannot be used with {flag}: .+"):
        refuse_unstreamable(asked)
    refuse_unstreamable(SlimOptions("m", keep=0.5, **more))


def test_devices() -> None:
    assert device_of(None) is None and device_of("cpu") is None
    for name in ("meta", "nonsense", "cuda:99"):
        with pytest.raises(InputError, match="--device"):
            device_of(name)
    with pytest.raises(InputError, match="no effect without --stream"):
        SlimOptions("m", keep=0.5, offload_activations=True).refuse_contradictions()


MEASURED = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from fxslim.export.peak import own_peak_bytes
from fxslim.slim_options import SlimOptions
from fxslim.memory_plan import plan_memory
from fxslim.passes.methods import settings
from fxslim.streaming import place
from fxslim.api import compress
from tests.fxslim.hf import wide_layers
analysis, batches = wide_layers(Path(sys.argv[1]), lambda p, f: place(p, f, SlimOptions("m", keep=0.5, stream=True)))
Path("/proc/self/clear_refs").write_text("5")  # the peak is what comes from here on
plan = plan_memory(analysis, batches, settings("fasp", data=True))
compress(analysis, 0.8, calibration=batches, importance="fasp")
print(json.dumps([plan.bytes, plan.now, own_peak_bytes(), plan.to_dict()["slack"]]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process can be reset on Linux")
def test_what_is_said_of_memory_holds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    predicted, before, peak, slack = json.loads(done.stdout.splitlines()[-1])
    assert peak <= predicted, "more than was said"
    assert predicted - slack - before <= FACTOR * (peak - before), "far more was said than is needed"
