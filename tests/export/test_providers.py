from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fxslim.export import providers
from fxslim.export.providers import CPU, create_session, node_assignments, provider_name, resolve_provider
from fxslim.graph.errors import CheckError
from tests.export.nets import Exported


def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "available_providers", lambda: ("cpu",))


@pytest.mark.parametrize("name", ["cpu", "CPU", CPU])
def test_a_provider_goes_by_either_name(name: str) -> None:
    assert resolve_provider(name) == CPU
    assert provider_name(CPU) == "cpu"


def test_auto_without_an_accelerator_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    only_cpu(monkeypatch)
    providers._best.cache_clear()
    assert resolve_provider("auto") == CPU
    providers._best.cache_clear()


def test_auto_passes_over_a_provider_that_is_listed_but_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "available_providers", lambda: ("qnn", "cuda", "cpu"))
    monkeypatch.setattr(providers, "_loads", lambda provider: False)
    providers._best.cache_clear()
    assert resolve_provider("auto") == CPU
    providers._best.cache_clear()


def test_an_unknown_provider_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckError, match="no execution provider 'gpu'") as caught:
        resolve_provider("gpu")
    assert "cuda" in str(caught.value.remedy)


def test_a_provider_that_is_not_available_names_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    only_cpu(monkeypatch)
    with pytest.raises(CheckError, match="'cuda' is not available: this ONNX Runtime has cpu") as caught:
        resolve_provider("cuda")
    assert "fxslim[gpu]" in str(caught.value.remedy)


def test_a_session_on_another_provider_than_asked_for_is_refused(
    mlp: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What onnxruntime-gpu does where the CUDA libraries are missing: a session comes back, on the CPU."""
    real = providers.onnxruntime()

    def silent(path: str, options: Any, **_: Any) -> Any:
        return real.InferenceSession(path, options, providers=[CPU])

    fake = SimpleNamespace(SessionOptions=real.SessionOptions, InferenceSession=silent)
    monkeypatch.setattr(providers, "onnxruntime", lambda: fake)
    with pytest.raises(CheckError, match="asked to run on cuda and runs on cpu"):
        create_session(mlp.file.path, "CUDAExecutionProvider")


def test_tf32_is_off_and_fallback_too_when_a_cuda_session_is_made(
    mlp: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = providers.onnxruntime(), {}

    def spy(path: str, options: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", CPU])

    fake = SimpleNamespace(SessionOptions=real.SessionOptions, InferenceSession=spy)
    monkeypatch.setattr(providers, "onnxruntime", lambda: fake)
    create_session(mlp.file.path, "CUDAExecutionProvider")
    assert seen == {"providers": [("CUDAExecutionProvider", {"use_tf32": "0"}), CPU], "enable_fallback": 0}


def test_every_node_has_a_provider(mlp: Exported) -> None:
    nodes = node_assignments(create_session(mlp.file.path, CPU, threads=1))
    assert {node.provider for node in nodes} == {CPU}
    assert "Gemm" in " ".join(node.op_type for node in nodes)


def test_options_reach_the_session(mlp: Exported) -> None:
    session = create_session(mlp.file.path, CPU, threads=1, denormals_as_zero=True, spinning=False)
    options = session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_model_that_does_not_load_is_a_check_error() -> None:
    with pytest.raises(CheckError, match="cannot load the model on cpu"):
        create_session(b"not a model", CPU)


def test_importing_export_does_not_import_onnx_runtime() -> None:
    code = "import fxslim.export, sys; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
