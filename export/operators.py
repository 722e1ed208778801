"""ONNX models of one operator, at given sizes: what a clock measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from fxslim.graph.jobs import Job

__all__ = ["operator_model"]

_ROW = 256  # elements in a row of pointwise operators
_SQUARE = 64  # side of the matrices that stand for work of another form
_OPSET = 20

Feeds = list[torch.Tensor]  # flat inputs, in the order of the model's


def operator_model(job: Job, sizes: tuple[int, ...]) -> tuple[bytes, Feeds]:
    """The model that does a job of these sizes, as bytes, and inputs for it in float32."""
    return {
        "matmul": _matmul, "attention": _attention, "conv": _conv, "product": _product, "pointwise": _pointwise,
    }[job.kind](job, sizes)  # fmt: skip


def _matmul(job: Job, sizes: tuple[int, ...]) -> tuple[bytes, Feeds]:
    b, m, k, n = sizes
    left = [b, m, k] if b > 1 else [m, k]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    if job.about[0]:
        return _model([node], {"x": left}, {"w": [k, n]}, "y")
    return _model([node], {"x": left, "w": [b, k, n] if b > 1 else [k, n]}, {}, "y")


def _attention(job: Job, sizes: tuple[int, ...]) -> tuple[bytes, Feeds]:
    """As the exporter writes it: a softmax that is zero where everything is masked."""
    b, q, t, e, v = sizes
    masked = bool(job.about[0])
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        *([helper.make_node("Add", ["scores", "mask"], ["seen"])] if masked else []),
        helper.make_node("Softmax", ["seen" if masked else "scores"], ["shares"], axis=-1),
        helper.make_node("IsNaN", ["shares"], ["none"]),
        helper.make_node("Where", ["none", "zero", "shares"], ["safe"]),
        helper.make_node("MatMul", ["safe", "v"], ["y"]),
    ]
    inputs = {"q": [b, q, e], "k": [b, e, t], "v": [b, t, v], **({"mask": [1, q, t]} if masked else {})}
    nodes.insert(0, helper.make_node("Constant", [], ["zero"], value_float=0.0))
    return _model(nodes, inputs, {}, "y")


def _conv(job: Job, sizes: tuple[int, ...]) -> tuple[bytes, Feeds]:
    rank, transposed, stride, padding, dilation = job.about
    rows, inputs, outputs, groups, *rest = sizes
    places, kernel = list(rest[:rank]), list(rest[rank:])
    pads: dict[str, Any] = {"pads": [*padding, *padding]}
    if isinstance(padding, str):
        pads = {"auto_pad": "SAME_UPPER" if padding == "same" else "VALID"}
    weight = [inputs * groups, outputs, *kernel] if transposed else [outputs * groups, inputs, *kernel]
    node = helper.make_node(
        "ConvTranspose" if transposed else "Conv", ["x", "w"], ["y"], group=groups, strides=list(stride),
        dilations=list(dilation), **pads,
    )  # fmt: skip
    return _model([node], {"x": [rows, inputs * groups, *places]}, {"w": weight}, "y")


def _product(job: Job, sizes: tuple[int, ...]) -> tuple[bytes, Feeds]:
    (macs,) = sizes
    rows = max(1, macs // _SQUARE**2)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return _model([node], {"x": [rows, _SQUARE]}, {"w": [_SQUARE, _SQUARE]}, "y")


def _pointwise(job: Job, sizes: tuple[int, ...]) -> tuple[bytes, Feeds]:
    (elements,) = sizes
    row = min(_ROW, elements)
    shape, operator = [max(1, math.ceil(elements / row)), row], job.about[0]
    if operator == "LayerNormalization":
        return _model([helper.make_node(operator, ["x", "w"], ["y"])], {"x": shape}, {"w": [row]}, "y")
    names = ["x", "x"] if operator == "Add" else ["x"]
    return _model([helper.make_node(operator, names, ["y"])], {"x": shape}, {}, "y")


def _model(
    nodes: Sequence[onnx.NodeProto], inputs: dict[str, list[int]], weights: dict[str, list[int]], output: str
) -> tuple[bytes, Feeds]:
    generator = np.random.default_rng(0)
    feeds = [torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)) for shape in inputs.values()]
    made = [
        numpy_helper.from_array(generator.standard_normal(shape, dtype=np.float32), name)
        for name, shape in weights.items()
    ]
    graph = helper.make_graph(
        list(nodes), "operator",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], made,
    )  # fmt: skip
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    return model.SerializeToString(), feeds
