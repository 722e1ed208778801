"""Weights that stay on disk on their way into an ONNX file: each is read when it is written, and freed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tensor_adapters import TorchTensor

from fxslim.graph.errors import ExportError
from fxslim.graph.placeholder import Placeholder
from fxslim.graph.stores import FileTensor

__all__ = ["StoredTensor", "read_when_written", "transposed"]


class StoredTensor(ir.LazyTensor):
    """A weight on disk, its dimensions in another order where `order` names one. Each access reads it anew."""

    def __init__(
        self, entry: FileTensor, dtype: ir.DataType, name: str | None, order: Sequence[int] | None = None
    ) -> None:
        self.entry, self.order = entry, tuple(order) if order is not None else tuple(range(len(entry.shape)))
        super().__init__(self._read, dtype, ir.Shape([entry.shape[i] for i in self.order]), name=name)

    def _read(self) -> ir.TensorProtocol:
        value = self.entry.read()
        if self.order != tuple(range(len(self.order))):
            value = value.permute(self.order).contiguous()
        return TorchTensor(value, name=self.name)


def read_when_written(model: ir.Model) -> None:
    """Gives the initializers that the exporter made of placeholders their data, which are read when they are asked for.

    Raises:
        ExportError: the exporter put a placeholder elsewhere.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            raw = getattr(value.const_value, "raw", None)
            if isinstance(raw, Placeholder):
                assert value.const_value is not None
                value.const_value = StoredTensor(raw.entry, value.const_value.dtype, value.const_value.name)
    for tensor in _attributes(model):
        if isinstance(getattr(tensor, "raw", None), Placeholder):
            raise ExportError(
                "the exporter took a weight that is on disk for a constant of the code",
                remedy="load the weights: leave streaming out",
            )


def _attributes(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()


def transposed(tensor: ir.TensorProtocol, order: Sequence[int]) -> ir.LazyTensor:
    """`tensor` with its dimensions in another order. Lazy, so that a large model is not held twice while it is
    written."""
    if isinstance(tensor, StoredTensor):
        return StoredTensor(tensor.entry, tensor.dtype, tensor.name, [tensor.order[i] for i in order])
    shape = ir.Shape([tensor.shape[i] for i in order])  # type: ignore[misc]

    def evaluate() -> ir.TensorProtocol:
        array = np.ascontiguousarray(tensor.numpy().transpose(order))
        return ir.Tensor(array, dtype=tensor.dtype, shape=shape, name=tensor.name)

    return ir.LazyTensor(evaluate, dtype=tensor.dtype, shape=shape, name=tensor.name)
