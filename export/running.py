"""Runs an ONNX Runtime session on tensors, in the types that the session declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.utils.dlpack

from fxslim.export.providers import onnxruntime
from fxslim.export.weights import tensor_to_numpy

__all__ = ["as_declared", "bound", "ort_value", "run_session"]

_FLOATS = {
    "tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(bfloat16)": torch.bfloat16,
    "tensor(double)": torch.float64,
}  # fmt: skip
_ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_BFLOAT16 = 16  # TensorProto.BFLOAT16


def as_declared(session: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The flat inputs, floats among them in the types that the session declares (caches may be narrow)."""
    declared = [_FLOATS.get(value.type) for value in session.get_inputs()]
    return [
        tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for tensor, dtype in zip(inputs, declared, strict=True)
    ]


def bound(session: Any, inputs: Sequence[torch.Tensor], provider: str) -> Any:
    """An IO binding with the flat inputs, and room for the outputs, on the device of a provider (ONNX Runtime's name),
    so that a run moves nothing."""
    device = "cuda" if provider in _ON_CUDA else "cpu"
    binding = session.io_binding()
    names = [value.name for value in session.get_inputs()]
    for name, tensor in zip(names, as_declared(session, inputs), strict=True):
        binding.bind_ortvalue_input(name, ort_value(tensor, device))
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    return binding


def run_session(session: Any, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The flat outputs of a session for flat inputs, in the order of its own inputs and outputs.

    Raises whatever ONNX Runtime raises; its errors share no base class.
    """
    tensors = as_declared(session, inputs)
    names = [value.name for value in session.get_inputs()]
    types = {value.type for value in (*session.get_inputs(), *session.get_outputs())}
    if "tensor(bfloat16)" not in types:  # numpy has no such type
        feed = {n: tensor_to_numpy(t) for n, t in zip(names, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, feed)]
    values = session.run_with_ort_values(None, {n: ort_value(t) for n, t in zip(names, tensors, strict=True)})
    return [_tensor(value) for value in values]


def _tensor(value: Any) -> torch.Tensor:
    if value.data_type() == "tensor(bfloat16)":
        return torch.utils.dlpack.from_dlpack(value)
    return torch.from_numpy(value.numpy())


def ort_value(tensor: torch.Tensor, device: str = "cpu") -> Any:
    """An OrtValue that holds a copy of `tensor` on `device`."""
    made = onnxruntime().OrtValue
    if tensor.dtype is not torch.bfloat16:
        return made.ortvalue_from_numpy(tensor_to_numpy(tensor), device, 0)
    bits = tensor.detach().cpu().contiguous().view(torch.int16).numpy()
    return made.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
