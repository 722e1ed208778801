"""FxslimSlim in Olive, through the real `olive run`: `make test` runs this file with Olive on the path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fxslim import olive as olive_pass
from fxslim.graph.errors import InputError
from tests.fxslim.samples import save_untrained_opt

olive = pytest.mark.skipif(find_spec("olive") is None, reason="Olive is not installed: see `make test`")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Olive and of what it imports

WORKFLOW = Path(__file__).parents[2] / "integrations" / "olive" / "workflow.json"


def olive_run(folder: Path, workflow: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """`olive run` with a package config that has FxslimSlim, in `folder`."""
    (folder / "workflow.json").write_text(json.dumps(workflow))
    env = {**os.environ, "OLIVE_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(str(Path(p).resolve()) for p in sys.path if p)
    made = [sys.executable, "-m", "fxslim.olive", "package_config.json"]
    subprocess.run(made, cwd=folder, env=env, check=True)
    words = ["run", "--config", "workflow.json", "--package-config", "package_config.json", "--disable_telemetry"]
    command = [sys.executable, "-m", "olive", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained_opt(tmp_path_factory.mktemp("model"))


def workflow(model: Path, **options: Any) -> dict[str, Any]:
    """The one that is shipped, for another model."""
    made: dict[str, Any] = json.loads(WORKFLOW.read_text())
    made["input_model"]["model_path"] = str(model)
    made["passes"]["slim"] = {"type": "FxslimSlim", "latency_seconds": 0.1, **options}
    return made


@olive
def test_a_run_ends_with_a_slim_model_that_loads(model: Path, tmp_path: Path) -> None:
    ran = olive_run(tmp_path, workflow(model, keep=0.8))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = sorted((tmp_path / "out" / "olive").rglob("model.onnx"))
    assert found, sorted(tmp_path.rglob("*"))
    report = json.loads(next((tmp_path / "out" / "olive").rglob("report.json")).read_text())
    assert report["verdict"] == "ok" and report["costs"]["params"][1] < 0.81 * report["costs"]["params"][0]
    assert not list((tmp_path / "out").rglob("manifest.json")), "Olive's own files would not be listed in it"
    session = onnxruntime.InferenceSession(found[0])
    feeds = {i.name: np.ones((2, 5), dtype=np.int64) for i in session.get_inputs()}
    assert session.run(None, feeds)[0].shape == (2, 5, 50)


@olive
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"keep": 0.8, "kep_fixed": ["a"]}, "FxslimSlim has no option 'kep_fixed'"),
        ({}, "nothing says how much remains"),
    ],
)
def test_what_is_wrong_fails_the_run(options: dict[str, Any], part: str, model: Path, tmp_path: Path) -> None:
    ran = olive_run(tmp_path, workflow(model, **options))
    assert ran.returncode != 0
    assert part in ran.stdout + ran.stderr
    assert not list(tmp_path.rglob("model.onnx"))


@olive
def test_the_package_config_has_olives_own_passes_too() -> None:
    passes = olive_pass.package_config()["passes"]
    assert {"FxslimSlim", "OnnxQuantization", "OrtTransformersOptimization"} <= set(passes)


def test_without_olive_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "olive"] or ["olive"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fxslim._olive_pass", raising=False)
    for asked in (olive_pass.package_config, lambda: olive_pass.FxslimSlim):
        with pytest.raises(InputError, match=r"(?s)Olive cannot be imported.*pip install olive-ai"):
            asked()
    assert olive_pass.main(["here.json"]) == 2 and "pip install olive-ai" in capsys.readouterr().err
    assert olive_pass.main([]) == 2
