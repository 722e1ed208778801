"""Narrow types: weights and arithmetic of an ONNX graph in float16 or bfloat16, in float32 where that would hurt."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Literal, get_args

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch

from fxslim.export.weights import PERMUTATION, sizes
from fxslim.graph.errors import ExportError, InputError

__all__ = ["DTYPE", "NARROW", "WIDE_OPS", "OnnxDtype", "narrow", "torch_dtype"]

OnnxDtype = Literal["float32", "float16", "bfloat16"]

DTYPE = "fxslim.dtype"
"""Metadata of a file whose arithmetic is in a narrow type: the name of that type."""

NARROW = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
_NUMPY = {ir.DataType.FLOAT16: np.dtype(np.float16), ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
_AT_ONCE = 1 << 22  # numbers of a weight that are looked at together: it is not copied as a whole
_LARGEST = float(np.finfo(np.float16).max)

# Sums over many terms, powers and exponentials, whose results leave the range of float16 or lose all digits of
# bfloat16. Layer and RMS norms are not among them: ONNX has them compute their statistics in float32 (`stash_type`).
WIDE_OPS = frozenset({
    "Exp", "Log", "Pow", "Softmax", "LogSoftmax", "Softplus", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan",
    "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Det", "DFT", "STFT", "ReduceMean", "ReduceSum",
    "ReduceSumSquare", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "CumSum", "LRN",
    "LpPool", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization",
    "MeanVarianceNormalization", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", "RNN", "LSTM", "GRU",
})  # fmt: skip
# An attribute of these says float32.
_TYPED = frozenset({
    "Cast", "Constant", "ConstantOfShape", "EyeLike", "Bernoulli", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike",
})  # fmt: skip
# Where what follows is in float32, these may as well be: a score and its mask are added at full range.
_FLEXIBLE = frozenset({
    "Add", "Sub", "Mul", "Div", "Neg", "Where",
})  # fmt: skip


def torch_dtype(name: str) -> torch.dtype:
    """The PyTorch type called `float16`, `bfloat16` or `float32`.

    Raises:
        InputError: there is no such type for a file.
    """
    if name not in get_args(OnnxDtype):
        raise InputError(f"{name!r} is no type for an ONNX file", remedy=f"choose {', '.join(get_args(OnnxDtype))}")
    found: torch.dtype = getattr(torch, name)
    return found


def narrow(model: ir.Model, dtype: str, parameters: Collection[str], caches: Collection[str] = ()) -> None:
    """Rewrites `model` in place from float32 to `dtype`. Names stay; its metadata says which type it is in.

    Inputs and outputs stay float32, but for those in `caches`, which only go round. `parameters` names the initializers
    that a model has learnt. What is computed from integers and constants alone (positions, masks, rotary angles) and
    what is in `WIDE_OPS` stays in float32.

    Raises:
        ExportError: a parameter is too large for float16, or a value of the graph has no known type.
    """
    _require_types(model)
    work = _Narrowing(model, NARROW[dtype], frozenset(parameters), frozenset(caches))
    work.store_initializers()
    work.cast_inputs()
    work.retype_outputs()
    work.cast_results()
    model.metadata_props[DTYPE] = dtype


def _require_types(model: ir.Model) -> None:
    if model.functions:
        raise ExportError("the exporter left functions in the model, which cannot be written in another type")
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if value.name and value.type is None:
                    raise ExportError(
                        f"the type of {value.name!r} ({node.op_type}) is not known, so the graph cannot be written in "
                        "another type", remedy="leave the type at float32",
                    )  # fmt: skip


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


class _Narrowing:
    """One graph on its way to `dtype`. `wide` holds the nodes that compute in float32."""

    def __init__(self, model: ir.Model, dtype: ir.DataType, parameters: frozenset[str], caches: frozenset[str]) -> None:
        self.graph, self.dtype, self.caches = model.graph, dtype, caches
        self.opset = model.opset_imports[""]
        self.free = {v for name, v in model.graph.initializers.items() if name not in parameters}
        self.wide: set[ir.Node] = set()
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        for node in self.graph:
            self._decide(node)
        self._extend_backwards()
        self.nodes = list(self.graph)
        self.narrow_values = {
            v for node in self.nodes if node not in self.wide for v in node.outputs if _is_float(v)
        }  # fmt: skip

    def _decide(self, node: ir.Node) -> None:
        floats = [v for v in node.inputs if v is not None and _is_float(v)]
        settled = all(v in self.free or v.producer() in self.wide for v in floats)
        if settled or node.op_type in WIDE_OPS | _TYPED or _has_graphs(node) or not self._schema_allows(node):
            self.wide.add(node)
        if all(v in self.free for v in floats) and not _has_graphs(node):
            self.free.update(v for v in node.outputs if _is_float(v))

    def _schema_allows(self, node: ir.Node) -> bool:
        """Whether the operator takes and returns the narrow type wherever its types are its own choice."""
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        pairs = [*zip(node.inputs, _formals(schema.inputs)), *zip(node.outputs, _formals(schema.outputs))]  # noqa: B905
        if any(v is not None and isinstance(v.type, ir.SequenceType | ir.OptionalType) for v, _ in pairs):
            return False
        outputs = set(node.outputs)
        return all(
            self._takes_narrow(formal) or (_is_literal(formal) and v not in outputs)
            for v, formal in pairs if _is_float(v)
        )  # fmt: skip

    def _takes_narrow(self, formal: onnx.defs.OpSchema.FormalParameter) -> bool:
        return f"tensor({self.dtype.name.lower()})" in formal.types

    def _extend_backwards(self) -> None:
        for node in reversed(self.graph):
            if node.op_type not in _FLEXIBLE or node in self.wide:
                continue
            result = node.outputs[0]
            users = [user for user, _ in result.uses()]
            if users and not result.is_graph_output() and all(u in self.wide for u in users):
                self.wide.add(node)

    def _wants_wide(self, node: ir.Node, index: int) -> bool:
        """Whether a node reads its input `index` in float32; nodes inside of loops and branches read everything so."""
        if node.graph is not self.graph or node in self.wide:
            return True
        formals = list(zip(node.inputs, _formals(onnx.defs.get_schema(node.op_type, self.opset, node.domain).inputs)))  # noqa: B905
        return _is_literal(formals[index][1])

    def store_initializers(self) -> None:
        """Parameters narrow wherever one narrow node reads them; other constants only where no wide node does."""
        for value in self.graph.initializers.values():
            if not _is_float(value) or value.is_graph_output():
                continue
            wide = [self._wants_wide(node, index) for node, index in value.uses()]
            if all(wide) or (value in self.free and any(wide)):
                continue
            self._store(value)
            self.narrow_values.add(value)

    def _store(self, value: ir.Value) -> None:
        tensor = value.const_value
        assert tensor is not None
        clipped = self.dtype == ir.DataType.FLOAT16 and _exceeds(tensor.numpy(), _LARGEST)
        if clipped and value not in self.free:
            raise ExportError(
                f"the weight {value.name!r} holds values beyond {_LARGEST:g}, the largest of float16",
                remedy="choose bfloat16",
            )
        if clipped:
            value.metadata_props.pop(PERMUTATION, None)  # it no longer holds what the program has
        value.const_value = _converted(tensor, self.dtype, clipped)
        value.dtype = self.dtype

    def cast_inputs(self) -> None:
        """Gives every node its inputs in the type that it reads."""
        for node in self.nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and self._is_ours(value):
                    node.replace_input_with(index, self._as(value, self._wants_wide(node, index)))
            for inner in _inner_nodes(node):
                for index, value in enumerate(inner.inputs):
                    if value is not None and self._is_ours(value):
                        inner.replace_input_with(index, self._as(value, True))

    def _is_ours(self, value: ir.Value) -> bool:
        """Whether it is a float value of the outermost graph."""
        producer = value.producer()
        outer = value.is_graph_input() or value.is_initializer() if producer is None else producer.graph is self.graph
        return (_is_float(value) or value in self.narrow_values) and bool(outer) and value.graph is self.graph

    def _as(self, value: ir.Value, wide: bool) -> ir.Value:
        if self._is_narrow(value) != wide:
            return value
        target = ir.DataType.FLOAT if wide else self.dtype
        if (value, target) not in self._casts:
            self._casts[value, target] = self._cast(value, target)
        return self._casts[value, target]

    def _is_narrow(self, value: ir.Value) -> bool:
        return value in self.narrow_values or (value.is_graph_input() and value.name in self.caches)

    def _cast(self, value: ir.Value, target: ir.DataType) -> ir.Value:
        """A cast right behind what makes the value. What is large by intent (a mask) is kept in the range of float16,
        with room for what is added to it."""
        source, anchor = value, value.producer()
        given = value in self.free or value.is_graph_input()
        if target == ir.DataType.FLOAT16 and given and not value.is_initializer():
            bound = _LARGEST if value.is_graph_input() else _LARGEST / 2
            limits = [self._scalar(-bound), self._scalar(bound)]
            source = self._insert("Clip", [value, *limits], [], ir.DataType.FLOAT, f"{value.name}.clipped", anchor)
            anchor = source.producer()
        elif target == ir.DataType.FLOAT16 and value.is_initializer():
            assert value.const_value is not None
            if _exceeds(value.const_value.numpy(), _LARGEST):
                limits = [self._scalar(-_LARGEST / 2), self._scalar(_LARGEST / 2)]
                source = self._insert("Clip", [value, *limits], [], ir.DataType.FLOAT, f"{value.name}.clipped", anchor)
                anchor = source.producer()
        to = ir.AttrInt64("to", int(target))
        return self._insert("Cast", [source], [to], target, f"{value.name}.{target.name.lower()}", anchor)

    def _scalar(self, number: float) -> ir.Value:
        name = f"fxslim.{number:g}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.array(number, dtype=np.float32), name=name)
            made = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
            self.graph.register_initializer(made)
        return self.graph.initializers[name]

    def _insert(
        self, op: str, inputs: list[ir.Value], attributes: list[ir.Attr], dtype: ir.DataType, name: str,
        after: ir.Node | None,
    ) -> ir.Value:  # fmt: skip
        node = ir.Node("", op, inputs, attributes, num_outputs=1)
        result = node.outputs[0]
        result.name, result.type, result.shape = name, ir.TensorType(dtype), inputs[0].shape
        if after is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(after, node)
        return result

    def retype_outputs(self) -> None:
        """Says that narrow nodes return, and caches are, the narrow type."""
        for value in self.graph.inputs:
            if value.name in self.caches and _is_float(value):
                value.dtype = self.dtype
        for node in self.nodes:
            if node in self.wide:
                continue
            for value in node.outputs:
                if value in self.narrow_values:
                    value.dtype = self.dtype
            if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
                node.attributes["softmax_precision"] = ir.AttrInt64("softmax_precision", int(ir.DataType.FLOAT))

    def cast_results(self) -> None:
        """Returns float32 under the names that the outputs have, caches in the narrow type."""
        for index, value in enumerate(self.graph.outputs):
            if value.dtype not in (ir.DataType.FLOAT, self.dtype):
                continue
            name, is_narrow, wants_narrow = value.name, value.dtype == self.dtype, value.name in self.caches
            if is_narrow == wants_narrow:
                continue
            target = self.dtype if wants_narrow else ir.DataType.FLOAT
            assert value.dtype is not None
            to = ir.AttrInt64("to", int(target))
            value.name = f"{name}.{value.dtype.name.lower()}"
            result = self._insert("Cast", [value], [to], target, f"{name}", value.producer())
            self.graph.outputs[index] = result


def _formals(formals: object) -> Iterator[onnx.defs.OpSchema.FormalParameter]:
    """The formal parameter of each actual one: the last one stands for any number where it is variadic."""
    listed = list(formals)  # type: ignore[call-overload]
    yield from listed
    while listed:
        yield listed[-1]


def _is_literal(formal: onnx.defs.OpSchema.FormalParameter) -> bool:
    """Whether the parameter is always float32, whatever the others are (the scales of a Resize)."""
    return formal.type_str == "tensor(float)"


def _has_graphs(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            for inner in graph:
                yield inner
                yield from _inner_nodes(inner)


def _exceeds(array: np.ndarray, bound: float) -> bool:
    """Whether a finite value is beyond the bound."""
    flat = array.reshape(-1)
    parts = (np.abs(flat[i : i + _AT_ONCE]) for i in range(0, flat.size, _AT_ONCE))
    return any(bool((np.isfinite(part) & (part > bound)).any()) for part in parts)


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType, clipped: bool) -> ir.LazyTensor:
    """Lazy, so that a large model is not held twice while it is written."""

    shape = ir.Shape(sizes(tensor))

    def evaluate() -> ir.TensorProtocol:
        array = tensor.numpy()
        if clipped:
            array = np.where(np.isinf(array), array, np.clip(array, -_LARGEST / 2, _LARGEST / 2))
        return ir.Tensor(array.astype(_NUMPY[dtype]), dtype=dtype, shape=shape, name=tensor.name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=shape, name=tensor.name)
