"""Keeps the weights of an ONNX graph recognisable: by name, and by a mark that says how they were laid out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fxslim.export.stored import StoredTensor, transposed
from fxslim.graph.program import WeightStore

__all__ = ["PERMUTATION", "fold_transposes", "mark_weights", "same_data", "sizes", "tensor_to_numpy"]

_AT_ONCE = 1 << 24  # bytes of a weight that are compared together: it is not copied as a whole
PERMUTATION = "fxslim.permutation"
"""Metadata of an initializer that holds a program's weight: the order of its dimensions, such as `1,0`."""


def fold_transposes(model: ir.Model) -> None:
    """Replaces each transposition of a weight that has no other use by a transposed weight of the same name.

    The exporter's own constant folding would do the same, under a name such as `val_4`.
    """
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
        result = node.outputs[0] if node.outputs else None
        if source is None or result is None or not _is_sole_use(source, node) or result.is_graph_output():
            continue
        order = _order(node, source)
        assert source.const_value is not None and source.name is not None
        tensor = transposed(source.const_value, order)
        source.const_value, source.shape = tensor, ir.Shape(tensor.shape)
        source.metadata_props[PERMUTATION] = ",".join(map(str, order))
        result.replace_all_uses_with(source)
        model.graph.remove(node, safe=True)


def _is_sole_use(value: ir.Value, node: ir.Node) -> bool:
    return value.is_initializer() and not value.is_graph_output() and [user for user, _ in value.uses()] == [node]


def _order(node: ir.Node, source: ir.Value) -> list[int]:
    assert source.const_value is not None
    attribute = node.attributes.get("perm")
    rank = len(source.const_value.shape)
    return list(attribute.as_ints()) if attribute is not None else list(reversed(range(rank)))


def mark_weights(model: ir.Model, weights: WeightStore) -> tuple[str, ...]:
    """The names of the initializers that hold a program's weight unchanged; each is marked with its permutation.

    A weight that the optimizer rewrote (a batch norm folded into it) keeps its name but not its mark: only the outputs
    can tell whether it is right. One that is still to be read from where the program has it is not read for this.
    """
    kept: list[str] = []
    for name, value in model.graph.initializers.items():
        order = value.metadata_props.pop(PERMUTATION, None)
        if name not in weights or value.const_value is None:
            continue
        entry = weights.entry(name)
        order = order if order is not None else ",".join(map(str, range(len(entry.shape))))
        if _is_unread(value.const_value, entry, order) or same_data(value.const_value, weights[name], order):
            value.metadata_props[PERMUTATION] = order
            kept.append(name)
    return tuple(kept)


def _is_unread(tensor: ir.TensorProtocol, entry: object, order: str) -> bool:
    return isinstance(tensor, StoredTensor) and tensor.entry is entry and ",".join(map(str, tensor.order)) == order


def same_data(tensor: ir.TensorProtocol, weight: torch.Tensor, order: str) -> bool:
    """Whether `tensor` holds `weight` bit for bit, its dimensions in the order that `order` (`1,0`) names."""
    axes = [int(i) for i in order.split(",") if i]
    if sorted(axes) != list(range(weight.dim())):
        return False
    expected = weight.detach().cpu().permute(axes)
    if sizes(tensor) != list(expected.shape):
        return False
    found = tensor.numpy()
    if found.dtype.itemsize != expected.dtype.itemsize:
        return False
    if expected.dim() == 0:
        found, expected = found.reshape(1), expected.reshape(1)
    rows = max(1, _AT_ONCE * len(expected) // max(1, weight.nbytes))
    parts = [slice(i, i + rows) for i in range(0, len(expected), rows)]
    return all(np.array_equal(_bits(found[part]), _bits(expected[part].contiguous())) for part in parts)


def _bits(part: Any) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The bytes of an array or a contiguous tensor, flat."""
    if isinstance(part, torch.Tensor):
        return part.reshape(-1).view(torch.uint8).numpy() if part.numel() else np.zeros(0, np.uint8)
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)


def sizes(tensor: ir.TensorProtocol) -> list[int]:
    """The dimensions of `tensor`; data has no symbolic ones."""
    return [dim for dim in tensor.shape if isinstance(dim, int)]


def tensor_to_numpy(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """The values of `tensor` as an array of its own dtype (bfloat16, which numpy lacks, as float32)."""
    host = tensor.detach().cpu()
    return (host.float() if host.dtype is torch.bfloat16 else host).contiguous().numpy()
