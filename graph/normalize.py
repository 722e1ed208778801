"""What capture makes explicit, so that later stages meet one form of each idea.

Numerics are preserved: assertions and inference-time identities go, the softmax scale of attention becomes an argument,
equal splits become splits with sizes, views become reshapes, batch norm returns one tensor.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxslim.graph.program import Program

__all__ = ["normalize"]

aten = torch.ops.aten

_ASSERTIONS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
        torch._check,
    }
)
_IDENTITIES = frozenset(
    {
        aten.alias.default,
        aten.detach.default,
        aten.lift_fresh_copy.default,
        aten.dropout.default,
        aten.feature_dropout.default,
    }
)


def normalize(program: Program) -> None:
    """Rewrites the freshly captured graph in place into the form that rules and passes expect."""
    for node in list(program.graph.nodes):
        handler = _HANDLERS.get(node.target) if node.op == "call_function" else None
        if handler is not None:
            handler(node)
    program.graph.eliminate_dead_code()
    program.graph.lint()


def _erase(node: fx.Node) -> None:
    if not node.users:
        node.graph.erase_node(node)


def _forward_input(node: fx.Node) -> None:
    if node.target in (aten.dropout.default, aten.feature_dropout.default) and node.args[2]:
        return  # a dropout that is active at inference is the model's own choice
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _explicit_scale(node: fx.Node) -> None:
    """softmax(QK^T * scale): the default 1/sqrt(head_dim) is written down, so that head_dim can be sliced exactly."""
    if node.kwargs.get("scale") is None:
        query = node.args[0]
        assert isinstance(query, fx.Node)
        node.kwargs = {**node.kwargs, "scale": 1.0 / math.sqrt(int(query.meta["val"].shape[-1]))}


def _split_sizes(node: fx.Node) -> None:
    source, size, dim = node.args[0], node.args[1], node.args[2] if len(node.args) > 2 else 0
    assert isinstance(source, fx.Node) and isinstance(dim, int)
    total = source.meta["val"].shape[dim]
    if isinstance(total, torch.SymInt) or not isinstance(size, int):
        return
    if node.target is aten.chunk.default:
        size = -(-total // size)
    sizes = [min(size, total - start) for start in range(0, total, size)]
    node.target = aten.split_with_sizes.default
    node.args = (source, sizes, dim)


def _batch_norm(node: fx.Node) -> None:
    """`_native_batch_norm_legit_no_training` returns three tensors, two of them empty; `batch_norm` returns the
    first."""
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return
    x, weight, bias, mean, var, momentum, eps = node.args
    with node.graph.inserting_before(node):
        new = node.graph.call_function(
            aten.batch_norm.default, (x, weight, bias, mean, var, False, momentum, eps, False)
        )
    new.meta = {**node.meta, "val": node.meta["val"][0]}
    for user in list(node.users):
        user.replace_all_uses_with(new)
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _squeeze(node: fx.Node) -> None:
    """Squeezing only what has size 1 now: a dimension that is cut down to one position later must not vanish."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = source.meta["val"].shape
    wanted = range(len(shape)) if len(node.args) == 1 else [d % max(1, len(shape)) for d in _listed(node.args[1])]
    node.target = aten.squeeze.dims
    node.args = (source, [d for d in wanted if isinstance(shape[d], int) and shape[d] == 1] if shape else [])


def _listed(value: Any) -> list[int]:
    return [int(v) for v in (value if isinstance(value, list | tuple) else [value])]


_NAMES = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.__and__.Scalar: aten.bitwise_and.Scalar,
    aten.__or__.Tensor: aten.bitwise_or.Tensor,
    aten.__or__.Scalar: aten.bitwise_or.Scalar,
    aten.__xor__.Tensor: aten.bitwise_xor.Tensor,
}


def _plain_name(node: fx.Node) -> None:
    """Python's operators on masks go by their plain names."""
    node.target = _NAMES[node.target]  # type: ignore[index]


def _pad(node: fx.Node) -> None:
    """Padding with a number has an operator of its own."""
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    if mode == "constant":
        node.target, node.args, node.kwargs = aten.constant_pad_nd.default, (*node.args[:2], value or 0), {}


def _reshape(node: fx.Node) -> None:
    """A view demands strides that another kernel, precision or width need not give; a reshape does not."""
    node.target = aten.reshape.default
    sizes = zip(node.args[1], node.meta["val"].shape, strict=True)  # type: ignore[arg-type]
    # An inferred size that is known is written down, so that a program and its saved copy are the same graph.
    node.args = (node.args[0], [new if old == -1 and isinstance(new, int) else old for old, new in sizes])


_HANDLERS: dict[object, Callable[[fx.Node], None]] = {
    **dict.fromkeys(_ASSERTIONS, _erase),
    **dict.fromkeys(_IDENTITIES, _forward_input),
    aten.scaled_dot_product_attention.default: _explicit_scale,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    **dict.fromkeys(_NAMES, _plain_name),
    aten.pad.default: _pad,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.split.Tensor: _split_sizes,
    aten.chunk.default: _split_sizes,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
}
