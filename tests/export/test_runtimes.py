"""Exported files in other runtimes, and after other optimizers. `make test` installs these beside the environment."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from fxslim.export.model_file import describe
from fxslim.export.providers import CPU, create_session
from fxslim.export.to_onnx import export_onnx
from tests.export.nets import Exported

BESIDE = Path(__file__).resolve().parents[2] / "build" / "runtimes"
TOLERANCE = 1e-4  # relative to the rms of the output: float32 with sums in another order

pytestmark = pytest.mark.filterwarnings("ignore")  # what these packages warn of is theirs


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a package from build/runtimes, behind all others, or skips."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(BESIDE)])

    def load(name: str) -> ModuleType:
        return pytest.importorskip(name, reason=f"{name} is not installed: make build/runtimes/.done")

    yield load
    importlib.invalidate_caches()


def feed(exported: Exported) -> dict[str, np.ndarray]:
    names = exported.program.outside_names
    return {n: t.numpy() for n, t in zip(names, exported.program.example_inputs, strict=True)}


def expected(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    found: list[np.ndarray] = create_session(path, CPU).run(None, inputs)
    return found


def close(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    pairs = list(zip(found, wanted, strict=True))
    return all(
        a.shape == b.shape and np.square(a - b).mean() <= TOLERANCE**2 * np.square(b).mean() and np.any(b)
        for a, b in pairs
    )  # fmt: skip


@pytest.fixture(params=[20, 23])
def opset(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["mlp", "conv", "attention"])
def case(request: pytest.FixtureRequest, opset: int, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    exported: Exported = request.getfixturevalue(request.param)
    export_onnx(exported.program, tmp_path / "m.onnx", opset=opset)
    return tmp_path / "m.onnx", feed(exported)


def test_openvino(case: tuple[Path, dict[str, np.ndarray]], beside: Callable[[str], ModuleType]) -> None:
    path, inputs = case
    openvino = beside("openvino")
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = model(inputs)
    assert [o.get_any_name() for o in model.outputs] == [o.name for o in describe(path).outputs]
    assert close([result[o] for o in model.outputs], expected(path, inputs))


@pytest.mark.parametrize("tool", ["onnxslim", "onnxsim"])
def test_simplifiers(
    case: tuple[Path, dict[str, np.ndarray]], tool: str, beside: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    path, inputs = case
    module = beside(tool)
    simple = module.slim(str(path)) if tool == "onnxslim" else module.simplify(str(path))[0]
    onnx.save(simple, str(tmp_path / "simple.onnx"))
    before, after = describe(path), describe(tmp_path / "simple.onnx")
    assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    assert close(expected(tmp_path / "simple.onnx", inputs), expected(path, inputs))


def test_the_optimizer_for_transformers(case: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    path, inputs = case
    optimizer.optimize_model(str(path), model_type="bert").save_model_to_file(str(tmp_path / "o.onnx"))
    assert close(expected(tmp_path / "o.onnx", inputs), expected(path, inputs))
