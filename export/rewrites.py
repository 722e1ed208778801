"""What is written differently before export, because the exporter or a runtime would get it wrong; values stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxslim.export.complex import split_complex
from fxslim.export.norms import fuse_norms

__all__ = ["as_onnx_can_say_it"]

aten = torch.ops.aten

_MAXIMUM_POOLS = (
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
    aten.max_pool1d_with_indices.default, aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default,
)  # fmt: skip


_ATTENTION_OPSET = 23  # the first one in which attention is one operator


def as_onnx_can_say_it(module: fx.GraphModule, opset: int = 18) -> fx.GraphModule:
    """`module`, rewritten in place: the same tensors for the same inputs, in a form that survives the way to ONNX."""
    if opset >= _ATTENTION_OPSET:
        _masks_for_each_query(module.graph)
    for rewrite in _REWRITES:
        rewrite(module.graph)
    module.graph.lint()
    module.recompile()
    return module


def _copy_before_reshapes(graph: fx.Graph) -> None:
    """Copies what was permuted before it is reshaped. The exporter turns a reshape into a view where the strides that
    it predicts allow one, and fails where they come out differently after its decompositions; ONNX drops the copy."""
    permuting = (aten.permute.default, aten.transpose.int, aten.t.default, aten.movedim.int)
    for node in graph.find_nodes(op="call_function", target=aten.reshape.default):
        source = node.args[0]
        if isinstance(source, fx.Node) and source.target in permuting:
            with graph.inserting_before(node):
                options: dict[str, Any] = {"memory_format": torch.contiguous_format}
                node.replace_input_with(source, graph.call_function(aten.clone.default, (source,), options))


def _pad_apart_from_maximum(graph: fx.Graph) -> None:
    """Pads in one more dimension what a maximum pool reads. ONNX Runtime (pull request 18136, still in 1.31) moves a
    Pad by zeros into the MaxPool that follows, which pads with minus infinity: a window of negative values at the
    border comes out differently. With a Squeeze between them it does not."""
    for node in graph.find_nodes(op="call_function", target=aten.constant_pad_nd.default):
        value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value", 0)
        if value == -math.inf or not any(user.target in _MAXIMUM_POOLS for user in node.users):
            continue
        with graph.inserting_before(node):
            wide = graph.call_function(aten.unsqueeze.default, (node.args[0], 0))
            padded = graph.call_function(aten.constant_pad_nd.default, (wide, *node.args[1:]), node.kwargs)
            node.replace_all_uses_with(graph.call_function(aten.squeeze.dims, (padded, [0])))
        graph.erase_node(node)


def _attention_in_four(graph: fx.Graph) -> None:
    """Attention over more or fewer than four dimensions, in four: the exporter knows no other."""
    for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        query, key, value, *rest = node.args
        rank = node.meta["val"].dim()
        mask = rest[0] if rest else node.kwargs.get("attn_mask")
        leading = [int(s) if isinstance(s, int) else -1 for s in query.meta["val"].shape[: rank - 3]]
        alike = all(x.meta["val"].shape[: rank - 3] == query.meta["val"].shape[: rank - 3] for x in (key, value))
        if rank == 4 or rank < 3 or not alike or leading.count(-1) > 1 or node.kwargs.get("enable_gqa"):
            continue
        if mask is not None and not _fits(mask, query, rank):
            continue  # it differs along what becomes one dimension: the exporter says what it cannot do
        with graph.inserting_before(node):
            parts = [_in_four(graph, x, rank) for x in (query, key, value)]
            four = graph.call_function(node.target, (*parts, *rest), node.kwargs)
            if mask is not None and mask.meta["val"].dim() == rank:
                with graph.inserting_before(four):
                    four.replace_input_with(mask, _in_four(graph, mask, rank))
            back: fx.Node
            if rank == 3:
                back = graph.call_function(aten.squeeze.dims, (four, [1]))
            else:
                back = graph.call_function(aten.unflatten.int, (four, 0, leading))
        node.replace_all_uses_with(back)
        graph.erase_node(node)


def _masks_for_each_query(graph: fx.Graph) -> None:
    """Expands masks over queries. ONNX lets a mask of one row stand for all queries; ONNX Runtime (1.32) refuses it."""
    for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        query, key = node.args[0], node.args[1]
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if mask is None:
            continue
        shape, wanted = mask.meta["val"].shape, (query.meta["val"].shape[-2], key.meta["val"].shape[-2])
        if tuple(shape[-2:]) == wanted or len(shape) < 2:
            continue
        with graph.inserting_before(node):
            sizes = [_size(graph, source, wanted[i]) for i, source in enumerate((query, key))]
            whole = graph.call_function(aten.expand.default, (mask, [*([-1] * (len(shape) - 2)), *sizes]))
        whole.meta["val"] = mask.meta["val"].expand(*shape[:-2], *wanted)
        node.replace_input_with(mask, whole)


def _size(graph: fx.Graph, source: fx.Node, size: int | torch.SymInt) -> int | fx.Node:
    """The size of `source` in its last dimension but one: a number, or a call that reads it."""
    if isinstance(size, int):
        return size
    return graph.call_function(aten.sym_size.int, (source, source.meta["val"].dim() - 2))


def _fits(mask: fx.Node, query: fx.Node, rank: int) -> bool:
    """Whether a mask means the same over four dimensions: one of all dimensions is brought into four as well, one of
    fewer than four is aligned with the last ones."""
    shape, wanted = mask.meta["val"].shape, query.meta["val"].shape
    if len(shape) == rank:
        return rank == 3 or bool(shape[: rank - 3] == wanted[: rank - 3])
    return len(shape) < min(rank, 4)


def _in_four(graph: fx.Graph, node: fx.Node, rank: int) -> fx.Node:
    """A value of `rank` dimensions with one of size 1 for the heads, or its leading dimensions as one."""
    if rank == 3:
        return graph.call_function(aten.unsqueeze.default, (node, 1))
    return graph.call_function(aten.flatten.using_ints, (node, 0, rank - 4))


def _tensors_alone(graph: fx.Graph) -> None:
    """Returns no constants: ONNX has tensors only, and the metadata of the file keeps the others."""
    (output,) = graph.find_nodes(op="output")
    output.args = (tuple(value for value in output.args[0] if isinstance(value, fx.Node)),)


def _separate_outputs(graph: fx.Graph) -> None:
    """Copies whatever is returned twice, or is an input or a weight: the exporter would rename one of the two."""
    (output,) = graph.find_nodes(op="output")
    seen: set[fx.Node] = set()
    results: list[fx.Node] = []
    with graph.inserting_before(output):
        for node in output.args[0]:
            shared = node in seen or node.op in ("placeholder", "get_attr")
            seen.add(node)
            results.append(graph.call_function(aten.clone.default, (node,)) if shared else node)
    output.args = (tuple(results),)


_REWRITES: tuple[Callable[[fx.Graph], None], ...] = (
    split_complex, fuse_norms, _attention_in_four, _tensors_alone, _copy_before_reshapes, _pad_apart_from_maximum,
    _separate_outputs,
)  # fmt: skip
