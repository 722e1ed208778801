"""Norms of a residual stream as runtimes know them: one fused operator instead of six."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxslim.graph.dead_calls import remove_dead_calls

__all__ = ["fuse_norms"]

aten = torch.ops.aten


@dataclass(frozen=True)
class _Norm:
    """x / sqrt(|x|^2 / whole + eps), with `ends` the products of x and the inverse root."""

    x: fx.Node
    ends: tuple[fx.Node, ...]
    whole: float
    epsilon: float


def fuse_norms(graph: fx.Graph) -> None:
    """Writes x / sqrt(|x|^2 / d + eps) over r of d positions as sqrt(d / r) x / sqrt(mean(x^2) + eps d / r), in the
    order of operators that ONNX Runtime fuses (SimplifiedLayerNormalization)."""
    for node in graph.find_nodes(op="call_function", target=aten.linalg_vector_norm.default):
        norm = _norm(node)
        if norm is not None:
            _rewrite(graph, norm)
    for node in graph.find_nodes(op="call_function", target=aten.rsqrt.default):
        _divide(graph, node)
    remove_dead_calls(graph)


def _divide(graph: fx.Graph, root: fx.Node) -> None:
    """x · rsqrt(mean(x^2) + eps), as most models write an RMSNorm, as a quotient: the form that is recognised."""
    shifted = root.args[0]
    mean = shifted.args[0] if isinstance(shifted, fx.Node) and shifted.target is aten.add.Tensor else None
    squares = mean.args[0] if isinstance(mean, fx.Node) and mean.target is aten.mean.dim else None
    if not isinstance(squares, fx.Node) or squares.target is not aten.pow.Tensor_Scalar or squares.args[1] != 2:
        return
    x = squares.args[0]
    for end in [u for u in root.users if u.target is aten.mul.Tensor and set(u.args) == {x, root}]:
        with graph.inserting_before(end):
            quotient = graph.call_function(aten.div.Tensor, (x, graph.call_function(aten.sqrt.default, (shifted,))))
            quotient.meta.update(end.meta)
            end.replace_all_uses_with(quotient)
        graph.erase_node(end)


def _norm(length: fx.Node) -> _Norm | None:
    if length.kwargs:
        return None  # another type of the result
    x, order, dims, keepdim = (*length.args, *(2, None, False)[len(length.args) - 1 :])[:4]
    if order != 2 or not keepdim or not isinstance(dims, Sequence) or list(dims) != [-1] or not isinstance(x, fx.Node):
        return None
    squared = _only_user(length, aten.mul.Tensor)
    mean = _only_user(squared, aten.div.Tensor)
    shifted = _only_user(mean, aten.add.Tensor)
    root = _only_user(shifted, aten.rsqrt.default)
    if squared is None or mean is None or shifted is None or root is None or squared.args != (length, length):
        return None
    whole, epsilon = mean.args[1], shifted.args[1]
    ends = tuple(u for u in root.users if u.target is aten.mul.Tensor and set(u.args) == {x, root})
    if not isinstance(whole, int | float) or not isinstance(epsilon, int | float) or len(ends) != len(root.users):
        return None
    return _Norm(x, ends, float(whole), float(epsilon))


def _only_user(node: fx.Node | None, target: object) -> fx.Node | None:
    if node is None or len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.target is target and not user.kwargs else None


def _rewrite(graph: fx.Graph, norm: _Norm) -> None:
    value = norm.x.meta["val"]
    size = value.shape[-1]
    if not isinstance(size, int):
        return
    module = graph.owning_module
    assert module is not None
    for end in norm.ends:
        name = f"{end.name}_scale"
        scale = torch.full((size,), (norm.whole / size) ** 0.5, dtype=value.dtype)
        module.register_buffer(name, scale, persistent=False)
        with graph.inserting_before(end):
            squares = graph.call_function(aten.pow.Tensor_Scalar, (norm.x, 2))
            mean = graph.call_function(aten.mean.dim, (squares, [-1], True))
            shifted = graph.call_function(aten.add.Tensor, (mean, norm.epsilon * norm.whole / size))
            plain = graph.call_function(aten.div.Tensor, (norm.x, graph.call_function(aten.sqrt.default, (shifted,))))
            scaled = graph.call_function(aten.mul.Tensor, (plain, graph.get_attr(name)))
        scaled.meta.update(end.meta)
        end.replace_all_uses_with(scaled)
        graph.erase_node(end)
