"""Keeps the weights of an ONNX graph recognisable: by name, and by a mark that says how they were laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

__all__ = ["PERMUTATION", "fold_transposes", "mark_weights", "same_data", "sizes", "tensor_to_numpy"]

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
        tensor = _transposed(source.const_value, order)
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


def _transposed(tensor: ir.TensorProtocol, order: Sequence[int]) -> ir.LazyTensor:
    """Lazy, so that a large model is not held twice while it is written."""
    shape = ir.Shape([sizes(tensor)[i] for i in order])

    def evaluate() -> ir.TensorProtocol:
        array = np.ascontiguousarray(tensor.numpy().transpose(order))
        return ir.Tensor(array, dtype=tensor.dtype, shape=shape, name=tensor.name)

    return ir.LazyTensor(evaluate, dtype=tensor.dtype, shape=shape, name=tensor.name)


def mark_weights(model: ir.Model, weights: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """The names of the initializers that hold a program's weight unchanged; each is marked with its permutation.

    A weight that the optimizer rewrote (a batch norm folded into it) keeps its name but not its mark: only the outputs
    can tell whether it is right.
    """
    kept: list[str] = []
    for name, value in model.graph.initializers.items():
        order = value.metadata_props.pop(PERMUTATION, None)
        if name not in weights or value.const_value is None:
            continue
        order = order if order is not None else ",".join(map(str, range(weights[name].dim())))
        if same_data(value.const_value, weights[name], order):
            value.metadata_props[PERMUTATION] = order
            kept.append(name)
    return tuple(kept)


def same_data(tensor: ir.TensorProtocol, weight: torch.Tensor, order: str) -> bool:
    """Whether `tensor` holds `weight` bit for bit, its dimensions in the order that `order` (`1,0`) names."""
    axes = [int(i) for i in order.split(",") if i]
    if sorted(axes) != list(range(weight.dim())):
        return False
    expected = weight.detach().cpu().permute(axes).contiguous()
    if sizes(tensor) != list(expected.shape):
        return False
    return tensor.tobytes() == expected.reshape(-1).view(torch.uint8).numpy().tobytes()


def sizes(tensor: ir.TensorProtocol) -> list[int]:
    """The dimensions of `tensor`; data has no symbolic ones."""
    return [dim for dim in tensor.shape if isinstance(dim, int)]


def tensor_to_numpy(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """The values of `tensor` as an array of its own dtype (bfloat16, which numpy lacks, as float32)."""
    host = tensor.detach().cpu()
    return (host.float() if host.dtype is torch.bfloat16 else host).contiguous().numpy()
