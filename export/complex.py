"""Complex arithmetic as arithmetic on real and imaginary parts: ONNX has no operators for complex numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["split_complex"]

aten = torch.ops.aten

Parts = tuple[fx.Node, fx.Node]
"""The real and the imaginary part, of the complex tensor's shape."""

_LAYOUT = frozenset({
    aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.dims, aten.select.int, aten.reshape.default,
    aten.expand.default, aten.permute.default, aten.transpose.int, aten.clone.default, aten.neg.default,
})  # fmt: skip
_TRANSFORMS = (aten.fft_fft.default, aten.fft_fft2.default, aten.fft_fftn.default)
_READERS = (aten.view_as_real.default, aten.real.default, aten.imag.default)


def split_complex(graph: fx.Graph) -> None:
    """Rewrites `graph` on real tensors, if all that is complex in it can be (rotary embeddings, Fourier transforms)."""
    touched = [
        n for n in graph.nodes if n.op != "output" and (_is_complex(n) or any(map(_is_complex, n.all_input_nodes)))
    ]
    returned = any(_is_complex(n) for output in graph.find_nodes(op="output") for n in output.all_input_nodes)
    if not touched or returned or not all(map(_can_be_said, touched)):
        return
    parts: dict[fx.Node, Parts] = {}
    for node in touched:
        with graph.inserting_before(node):
            if node.target in _READERS:
                node.replace_all_uses_with(_read(graph, node, parts[node.args[0]]))
            else:
                parts[node] = _parts(graph, node, parts)
    for node in reversed(touched):
        graph.erase_node(node)


def _is_complex(value: Any) -> bool:
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else None
    return isinstance(tensor, torch.Tensor) and tensor.is_complex()


def _can_be_said(node: fx.Node) -> bool:
    """Whether there is a rule for a call on or of complex values, with these arguments."""
    if node.op != "call_function" or any(isinstance(value, complex) for value in node.args):
        return False
    if node.target in _TRANSFORMS:
        plain = len(node.args) < 4 and node.kwargs.get("norm") is None
        return plain and (node.args[1] if len(node.args) > 1 else node.kwargs.get("s", node.kwargs.get("n"))) is None
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        return not node.kwargs and all(map(_is_complex, node.args))
    known = (aten.view_as_complex.default, aten.polar.default, aten.complex.default, aten.mul.Tensor)
    return node.target in (*known, *_LAYOUT, *_READERS)


def _parts(graph: fx.Graph, node: fx.Node, parts: dict[fx.Node, Parts]) -> Parts:
    def call(target: Callable[..., Any], *args: Any) -> fx.Node:
        return graph.call_function(target, args)

    first, *others = node.args
    assert isinstance(first, fx.Node)
    if node.target is aten.view_as_complex.default:
        return call(aten.select.int, first, -1, 0), call(aten.select.int, first, -1, 1)
    if node.target is aten.complex.default:
        return first, others[0]  # type: ignore[return-value]
    if node.target is aten.polar.default:
        waves = call(aten.cos.default, others[0]), call(aten.sin.default, others[0])
        return call(aten.mul.Tensor, first, waves[0]), call(aten.mul.Tensor, first, waves[1])
    if node.target in _TRANSFORMS:
        return _transform(call, node, parts.get(first))
    if node.target is aten.mul.Tensor:
        return _product(call, parts.get(first, first), parts.get(others[0], others[0]))  # type: ignore[arg-type]
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        pairs = zip(parts[first], parts[others[0]], strict=True)  # type: ignore[index]
    else:
        pairs = ((part, *others) for part in parts[first])  # type: ignore[assignment]
    real, imaginary = (graph.call_function(node.target, tuple(pair), dict(node.kwargs)) for pair in pairs)  # type: ignore[arg-type]
    return real, imaginary


def _product(call: Callable[..., fx.Node], left: Any, right: Any) -> Parts:
    """(a + bi)(c + di) = (ac - bd) + (ad + bc)i; one factor may be real: a tensor or a number."""
    mul = aten.mul.Tensor
    if not isinstance(left, tuple):
        left, right = right, left
    (a, b) = left
    if not isinstance(right, tuple):
        return call(mul, a, right), call(mul, b, right)
    (c, d) = right
    real = call(aten.sub.Tensor, call(mul, a, c), call(mul, b, d))
    return real, call(aten.add.Tensor, call(mul, a, d), call(mul, b, c))


def _read(graph: fx.Graph, node: fx.Node, parts: Parts) -> fx.Node:
    if node.target is aten.view_as_real.default:
        return graph.call_function(aten.stack.default, (list(parts), -1))
    return parts[0 if node.target is aten.real.default else 1]


def _transform(call: Callable[..., fx.Node], node: fx.Node, parts: Parts | None) -> Parts:
    """A discrete Fourier transform as products with the matrix of roots of unity, one dimension after the other.

    ONNX has the operator, but runtimes compute it with roots that were multiplied up in float32: a digit is lost.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    real, imaginary = parts or (source, None)
    for dim in _transformed(node, source.meta["val"].dim()):
        cosine, sine = _roots(call, call(aten.sym_size.int, real, dim), source.meta["val"].real.dtype)
        c, s = _along(call, real, dim, cosine), _along(call, real, dim, sine)
        if imaginary is None:  # (a)(cos - i sin)
            real, imaginary = c, call(aten.neg.default, s)
        else:  # (a + bi)(cos - i sin)
            cc, ss = _along(call, imaginary, dim, cosine), _along(call, imaginary, dim, sine)
            real, imaginary = call(aten.add.Tensor, c, ss), call(aten.sub.Tensor, cc, s)
    assert imaginary is not None
    return real, imaginary


def _transformed(node: fx.Node, rank: int) -> Sequence[int]:
    default: dict[Any, Any] = dict(zip(_TRANSFORMS, (-1, [-2, -1], None), strict=True))
    dims = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", default[node.target])
    if dims is None:
        return range(rank)
    return [int(d) for d in dims] if isinstance(dims, list | tuple) else [int(dims)]  # type: ignore[arg-type]


def _roots(call: Callable[..., fx.Node], size: fx.Node, dtype: torch.dtype) -> tuple[fx.Node, fx.Node]:
    """cos and sin of 2 pi j k / n, [n, n]. j k is taken modulo n as an integer, around zero: small angles are exact."""
    places = call(aten.arange.default, size)
    turns = call(aten.mul.Tensor, call(aten.unsqueeze.default, places, 1), places)
    total = call(aten.add.Tensor, call(aten.select.int, places, 0, -1), 1)  # n: a size is no tensor
    half = call(aten.floor_divide.default, total, 2)
    shifted = call(aten.remainder.Tensor, call(aten.add.Tensor, turns, half), total)
    around = call(aten.sub.Tensor, shifted, half)
    share = call(aten.div.Tensor, call(aten.to.dtype, around, dtype), call(aten.to.dtype, total, dtype))
    angle = call(aten.mul.Tensor, share, 2 * math.pi)
    return call(aten.cos.default, angle), call(aten.sin.default, angle)


def _along(call: Callable[..., fx.Node], x: fx.Node, dim: int, matrix: fx.Node) -> fx.Node:
    """The symmetric `matrix` [n, n] applied along one dimension of size n."""
    turned = call(aten.transpose.int, x, dim, -1)
    return call(aten.transpose.int, call(aten.matmul.default, turned, matrix), dim, -1)
