"""What capture makes explicit, so that later stages meet one form of each idea.

Numerics are preserved: assertions and inference-time identities go, the softmax scale of attention becomes an argument,
equal splits become splits with sizes, views become reshapes, batch norm returns one tensor.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxslim.graph.dead_calls import remove_dead_calls
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
        aten.alias_copy.default,
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
        if handler is None:
            continue
        before = node.target
        handler(node)
        again = _HANDLERS.get(node.target) if node.target is not before else None
        if again is not None:  # a synonym: what it stands for has something to say too
            again(node)
    remove_dead_calls(program.graph)
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
    if node.target in (aten.chunk.default, aten.unsafe_chunk.default):
        size = -(-total // size)
    sizes = [min(size, total - start) for start in range(0, total, size)]
    node.target = aten.split_with_sizes.default
    node.args = (source, sizes, dim)


def _batch_norm(node: fx.Node) -> None:
    """The native forms return three tensors, of which inference reads the first; `batch_norm` returns that."""
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return
    if node.target is aten._native_batch_norm_legit.no_stats:  # statistics of what comes in: weight standardisation
        x, weight, bias, training, momentum, eps = node.args
        mean = var = None
    else:
        x, weight, bias, mean, var, momentum, eps = node.args
        training = False
    arguments = (x, weight, bias, mean, var, training, momentum, eps, False)
    with node.graph.inserting_before(node):
        new = node.graph.call_function(aten.batch_norm.default, arguments)
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
    dims = [d for d in wanted if isinstance(shape[d], int) and shape[d] == 1] if shape else []
    if not dims:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
        return
    node.target, node.args = aten.squeeze.dims, (source, dims)


def _listed(value: Any) -> list[int]:
    return [int(v) for v in (value if isinstance(value, list | tuple) else [value])]


_SYNONYMS = {
    "__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor", "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift", "absolute": "abs", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin",
    "arcsinh": "asinh", "arctan": "atan", "arctan2": "atan2", "arctanh": "atanh", "clip": "clamp", "concat": "cat",
    "concatenate": "cat", "diagonal_copy": "diagonal", "divide": "div", "expand_copy": "expand", "fix": "trunc",
    "ger": "outer", "greater": "gt", "greater_equal": "ge", "inverse": "linalg_inv", "less": "lt", "less_equal": "le",
    "linalg_matmul": "matmul", "linalg_matrix_exp": "matrix_exp", "det": "linalg_det", "multiply": "mul",
    "matrix_power": "linalg_matrix_power", "negative": "neg", "not_equal": "ne", "permute_copy": "permute",
    "slogdet": "linalg_slogdet", "special_digamma": "digamma",
    "special_erf": "erf", "special_erfc": "erfc", "special_erfinv": "erfinv", "special_exp2": "exp2",
    "special_expit": "sigmoid", "special_expm1": "expm1", "special_gammainc": "igamma",
    "special_gammaincc": "igammac", "special_gammaln": "lgamma", "special_i0": "i0", "special_log1p": "log1p",
    "special_logit": "logit", "special_logsumexp": "logsumexp", "special_multigammaln": "mvlgamma",
    "special_psi": "digamma", "special_sinc": "sinc", "special_xlogy": "xlogy",
    "split_with_sizes_copy": "split_with_sizes", "subtract": "sub", "t_copy": "t", "transpose_copy": "transpose",
    "true_divide": "div", "unbind_copy": "unbind", "unfold_copy": "unfold",
    "unsafe_split_with_sizes": "split_with_sizes", "unsqueeze_copy": "unsqueeze", "select_copy": "select",
    "slice_copy": "slice",
    "chain_matmul": "linalg_multi_dot",
}  # fmt: skip


def _synonyms() -> dict[object, object]:
    """Overload -> the overload of the plain name that takes the same arguments, with the same defaults."""
    found: dict[object, object] = {}
    for name, plain in _SYNONYMS.items():
        targets = {_arguments(op): op for op in _overloads(plain)}
        found |= {op: targets[_arguments(op)] for op in _overloads(name) if _arguments(op) in targets}
    return found


def _overloads(name: str) -> list[torch._ops.OpOverload]:
    packet = getattr(aten, name)
    every = [getattr(packet, overload) for overload in packet.overloads()]
    return [op for op in every if not op._schema.is_mutable and "Tensor" in str(op._schema)]


def _arguments(op: torch._ops.OpOverload) -> tuple[str, ...]:
    """The arguments as the schema has them; the first is called differently and always given by its place."""
    first, *others = op._schema.arguments
    return (str(first.type), *(f"{a.name}: {a.type} = {a.default_value}" for a in others))


_NAMES = _synonyms()


def _plain_name(node: fx.Node) -> None:
    """Operators that have several names go by one."""
    node.target = _NAMES[node.target]  # type: ignore[assignment]


def _stack(node: fx.Node) -> None:
    """Stacks of rows, columns and depths are concatenations, or stacks of vectors."""
    tensors = node.args[0]
    assert isinstance(tensors, list | tuple)
    ranks = {t.meta["val"].ndim for t in tensors if isinstance(t, fx.Node)}
    if len(ranks) != 1:
        return
    (rank,) = ranks
    if node.target is aten.hstack.default and rank > 0:
        node.target, node.args = aten.cat.default, (tensors, min(rank - 1, 1))
    elif node.target in (aten.vstack.default, aten.row_stack.default) and rank > 0:
        node.target, node.args = (aten.cat if rank > 1 else aten.stack).default, (tensors, 0)
    elif node.target is aten.column_stack.default and rank > 0:
        node.target, node.args = (aten.cat if rank > 1 else aten.stack).default, (tensors, 1)
    elif node.target is aten.dstack.default and rank > 2:
        node.target, node.args = aten.cat.default, (tensors, 2)


def _tile(node: fx.Node) -> None:
    """A tile repeats the last dimensions where it names fewer than there are."""
    source, repeats = node.args
    assert isinstance(source, fx.Node) and isinstance(repeats, list | tuple)
    missing = source.meta["val"].ndim - len(repeats)
    node.target, node.args = aten.repeat.default, (source, [*[1] * missing, *repeats])


def _cross(node: fx.Node) -> None:
    """Without a dimension it is the first one of size 3 now."""
    left, right, *rest = node.args
    dim = rest[0] if rest else node.kwargs.get("dim")
    if dim is None:
        dim = next((d for d, size in enumerate(node.meta["val"].shape) if size == 3), None)
    node.target, node.args, node.kwargs = aten.linalg_cross.default, (left, right), {"dim": dim}


def _flip(node: fx.Node) -> None:
    """Up and down is the first dimension, left and right the second."""
    dim = 0 if node.target is aten.flipud.default else 1
    node.target, node.args = aten.flip.default, (node.args[0], [dim])


def _special_softmax(node: fx.Node) -> None:
    node.target = (aten.softmax if node.target is aten.special_softmax.default else aten.log_softmax).int


def _narrow_copy(node: fx.Node) -> None:
    """A narrow is a slice with a length in place of an end."""
    source, dim, start, length = node.args
    if isinstance(start, int) and start >= 0 and isinstance(length, int):
        node.target, node.args = aten.slice.Tensor, (source, dim, start, start + length)


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


def _reversed_subtraction(node: fx.Node) -> None:
    """s - x is s + (-x), to the last bit; the ONNX exporter knows no `rsub` of a number."""
    source, number, *rest = node.args
    if rest or node.kwargs or not isinstance(source, fx.Node):
        return  # a factor on x: rare, and the exporter says so
    dtype, value = node.meta["val"].dtype, source.meta["val"]
    with node.graph.inserting_before(node):
        if value.dtype != dtype:  # first: an unsigned x has no negative
            source = node.graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
            source.meta = {**node.meta, "val": (value := aten._to_copy.default(value, dtype=dtype))}
        negative = node.graph.call_function(aten.neg.default, (source,))
    negative.meta = {**node.meta, "val": aten.neg.default(value)}
    node.target, node.args = aten.add.Tensor, (negative, number)


def _cat(node: fx.Node) -> None:
    """`cat` passes over empty tensors of one dimension, whatever the others are (an untouched cache is one)."""
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    rank = node.meta["val"].dim()
    kept = [p for p in parts if rank == 1 or not isinstance(p, fx.Node) or tuple(p.meta["val"].shape) != (0,)]
    types = [p.meta["val"].dtype for p in kept if isinstance(p, fx.Node)]
    if not types or functools.reduce(torch.promote_types, types) != node.meta["val"].dtype:
        return  # an empty part decides the type
    if len(kept) == 1 and isinstance(kept[0], fx.Node):
        node.replace_all_uses_with(kept[0])
        node.graph.erase_node(node)
    elif len(kept) < len(parts):
        node.args = (kept, *node.args[1:])


def _clamp(node: fx.Node) -> None:
    """Whole bounds of floating point numbers are written as such: the ONNX exporter promotes 1 beside 0.5 to a tensor,
    for which there is no overload."""
    source, *bounds = node.args
    if isinstance(source, fx.Node) and source.meta["val"].is_floating_point():
        node.args = (source, *(float(b) if isinstance(b, int) else b for b in bounds))


def _transposed_product(node: fx.Node) -> None:
    """x @ W^T is a linear layer without a bias, which statistics and refits know as one."""
    source, transposed = node.args
    assert isinstance(source, fx.Node) and isinstance(transposed, fx.Node)
    weight = transposed.args[0] if transposed.op == "call_function" else None
    if not isinstance(weight, fx.Node) or weight.op != "get_attr" or weight.meta["val"].dim() != 2:
        return
    if _swaps(transposed) and source.meta["val"].dim() > 0:
        node.target, node.args = aten.linear.default, (source, weight)


def _swaps(node: fx.Node) -> bool:
    """Whether a call on a matrix swaps its two dimensions."""
    if node.target in (aten.t.default, aten.numpy_T.default):
        return True
    if node.target is aten.transpose.int:
        return len({d % 2 for d in _listed(node.args[1:])}) == 2
    return node.target is aten.permute.default and [d % 2 for d in _listed(node.args[1])] == [1, 0]


_HANDLERS: dict[object, Callable[[fx.Node], None]] = {
    **dict.fromkeys(_ASSERTIONS, _erase),
    **dict.fromkeys(_IDENTITIES, _forward_input),
    aten.scaled_dot_product_attention.default: _explicit_scale,
    aten.squeeze.default: _squeeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.squeeze_copy.default: _squeeze,
    aten.squeeze_copy.dim: _squeeze,
    aten.squeeze_copy.dims: _squeeze,
    **dict.fromkeys(_NAMES, _plain_name),
    aten.clamp.default: _clamp,
    aten.matmul.default: _transposed_product,
    aten.mm.default: _transposed_product,
    aten.pad.default: _pad,
    aten.cat.default: _cat,
    aten.rsub.Scalar: _reversed_subtraction,
    **dict.fromkeys((aten.hstack.default, aten.vstack.default, aten.row_stack.default), _stack),
    **dict.fromkeys((aten.column_stack.default, aten.dstack.default), _stack),
    aten.tile.default: _tile,
    aten.cross.default: _cross,
    aten.fliplr.default: _flip,
    aten.flipud.default: _flip,
    aten.special_softmax.default: _special_softmax,
    aten.special_log_softmax.default: _special_softmax,
    aten.narrow_copy.default: _narrow_copy,
    aten.view.default: _reshape,
    aten.view_copy.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.split.Tensor: _split_sizes,
    aten.unsafe_split.Tensor: _split_sizes,
    aten.unsafe_chunk.default: _split_sizes,
    aten.chunk.default: _split_sizes,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten._native_batch_norm_legit.no_stats: _batch_norm,
}
