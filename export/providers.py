"""Execution providers: a session runs where it was asked to run, or says that it does not."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from onnx import TensorProto, helper

from fxslim.graph.errors import CheckError, FxslimError

__all__ = [
    "CPU",
    "NodeAssignment",
    "as_check_errors",
    "available_providers",
    "create_session",
    "node_assignments",
    "onnxruntime",
    "provider_name",
    "resolve_provider",
]

CPU = "CPUExecutionProvider"

_PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
_INSTALL = {
    "cpu": "pip install fxslim[cpu]",
    "cuda": "pip install fxslim[gpu], on a machine with an NVIDIA GPU",
    "tensorrt": "pip install fxslim[gpu] and TensorRT 10, on a machine with an NVIDIA GPU",
    "openvino": "pip install onnxruntime-openvino",
    "directml": "pip install onnxruntime-directml",
    "qnn": "pip install onnxruntime-qnn",
    "migraphx": "pip install onnxruntime-migraphx",
    "coreml": "pip install fxslim[cpu] on macOS",
}
# TensorRT is not among them: it is listed even where its libraries are missing, and takes minutes to build an engine.
_AUTO = ("cuda", "migraphx", "coreml", "directml", "openvino", "cpu")


@dataclass(frozen=True)
class NodeAssignment:
    """Where ONNX Runtime put a node. Names are those after its own graph optimisation."""

    name: str
    op_type: str
    provider: str  # as in `CPUExecutionProvider`


def onnxruntime() -> ModuleType:
    """The onnxruntime module, imported when first needed: exporting does without it.

    Raises:
        CheckError: it is not installed.
    """
    try:
        import onnxruntime as module
    except ImportError as error:
        raise CheckError(
            "ONNX Runtime is not installed, so an exported model cannot be run", remedy="pip install fxslim[cpu]"
        ) from error
    return module  # type: ignore[no-any-return, unused-ignore]


def available_providers() -> tuple[str, ...]:
    """Short names of the providers that the installed ONNX Runtime was built with."""
    return tuple(provider_name(name) for name in onnxruntime().get_available_providers() if name in _PROVIDERS.values())


def provider_name(provider: str) -> str:
    """The short name of an ONNX Runtime provider: `cpu` for `CPUExecutionProvider`."""
    return next((short for short, full in _PROVIDERS.items() if full == provider), provider)


def resolve_provider(provider: str = "auto") -> str:
    """The ONNX Runtime name of `provider`: a short name, a full one, or `auto` for the best that works here.

    Raises:
        CheckError: the name is unknown, or the installed ONNX Runtime lacks that provider.
    """
    if provider == "auto":
        return _best()
    short = provider_name(provider) if provider in _PROVIDERS.values() else provider.lower()
    if short not in _PROVIDERS:
        raise CheckError(f"there is no execution provider {provider!r}", remedy=f"choose auto, {', '.join(_PROVIDERS)}")
    if short not in available_providers():
        raise CheckError(
            f"the provider {short!r} is not available: this ONNX Runtime has {', '.join(available_providers())}",
            remedy=_INSTALL.get(short, "install an ONNX Runtime that was built with it"),
        )
    return _PROVIDERS[short]


@functools.cache
def _best() -> str:
    """The first provider, in order of preference, that runs a one-node model: being listed does not mean it loads."""
    listed = available_providers()
    for short in _AUTO:
        if short in listed and (short == "cpu" or _loads(_PROVIDERS[short])):
            return _PROVIDERS[short]
    raise CheckError(
        f"no execution provider works here: this ONNX Runtime has {', '.join(listed)}", remedy=_INSTALL["cpu"]
    )


def _loads(provider: str) -> bool:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "probe", [value], [result])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    try:
        create_session(model.SerializeToString(), provider)
    except CheckError:
        return False
    return True


@contextmanager
def as_check_errors(provider: str) -> Iterator[None]:
    """What ONNX Runtime raises inside becomes a CheckError: its own errors share no base class. `provider` is its name
    there."""
    try:
        yield
    except FxslimError:
        raise
    except Exception as error:  # see above
        reason = " ".join(str(error).split())[:300]
        raise CheckError(f"a model does not run on {provider_name(provider)}: {reason}") from error


def create_session(
    model: str | Path | bytes,
    provider: str,
    *,
    threads: int | None = None,
    strict_float32: bool = True,
    denormals_as_zero: bool = False,
    spinning: bool = True,
    mapped: bool = False,
) -> Any:
    """An `onnxruntime.InferenceSession` whose first provider is the one asked for, never a silent substitute.

    `provider` is an ONNX Runtime name from `resolve_provider`. `threads` is the number of intra-op threads (None: ONNX
    Runtime decides). `strict_float32` turns TF32 off on CUDA. TensorRT has no switch per session: set the environment
    variable NVIDIA_TF32_OVERRIDE=0 before the process starts. With `mapped` external data is used where it lies in the
    file, not copied into layouts of the kernels: slower, in little memory of its own.

    Raises:
        CheckError: the model does not load, or the session runs on another provider.
    """
    ort = onnxruntime()
    options = _options(ort, threads, denormals_as_zero, spinning)
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    source = model if isinstance(model, bytes) else str(model)
    providers = _with_fallbacks(provider, strict_float32)
    try:
        # enable_fallback=0: otherwise a failing provider is replaced by the CPU with a print.
        session = ort.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:  # the errors of ONNX Runtime share no base class of their own
        reason = " ".join(str(error).split())[:400]
        raise CheckError(f"ONNX Runtime cannot load the model on {provider_name(provider)}: {reason}") from error
    actual = session.get_providers()[0]
    if actual != provider:
        raise CheckError(
            f"the session was asked to run on {provider_name(provider)} and runs on {provider_name(actual)}",
            remedy=_INSTALL.get(provider_name(provider), "check that the libraries of the provider can be loaded"),
        )
    return session


def _options(ort: ModuleType, threads: int | None, denormals_as_zero: bool, spinning: bool) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised as well; the log would say them twice
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_session_config_entry("session.set_denormal_as_zero", str(int(denormals_as_zero)))
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return options


def _with_fallbacks(provider: str, strict_float32: bool) -> list[Any]:
    """The provider and, after it, those that take the nodes it does not support (shape arithmetic stays on the CPU)."""
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0"} if strict_float32 else {})
    if provider == CPU:
        return [CPU]
    if provider == "CUDAExecutionProvider":
        return [cuda, CPU]
    if provider == "TensorrtExecutionProvider":
        return [provider, cuda, CPU]
    return [provider, CPU]


def node_assignments(session: Any) -> tuple[NodeAssignment, ...]:
    """The provider of every node of a session made by `create_session`."""
    return tuple(
        NodeAssignment(node.name, node.op_type, subgraph.ep_name)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    )
