"""Jobs: the calls of a program as a runtime has to do them, each by its kind and the sizes that decide how long it
takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from fxslim.graph.axes.analysis import Axes, CallAxes
from fxslim.graph.axes.notation import letters_of
from fxslim.graph.axes.registry import Call
from fxslim.graph.axes.terms import Expr

__all__ = ["Job", "Kind", "find_jobs"]

Kind = Literal["matmul", "attention", "conv", "product", "pointwise"]
aten = torch.ops.aten

_ATTENTION = aten.scaled_dot_product_attention.default
_FREE = (
    "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "expand", "flatten", "unflatten", "detach", "alias",
    "lift_fresh_copy", "dropout", "to", "_to_copy", "contiguous", "sym_size",
)  # fmt: skip
_FOLDED = ("batch_norm", "_native_batch_norm_legit_no_training")  # into the convolution or product before
_FUSED = ("relu", "relu_", "hardtanh", "hardtanh_", "clamp")  # likewise, where nothing else reads what it reads
_OPERATORS = {
    "gelu": "Gelu", "softmax": "Softmax", "_softmax": "Softmax", "layer_norm": "LayerNormalization",
    "native_layer_norm": "LayerNormalization", "rms_norm": "LayerNormalization", "sigmoid": "Sigmoid",
    "silu": "Sigmoid", "tanh": "Tanh", "erf": "Erf", "exp": "Exp",
}  # fmt: skip
_REDUCING = ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "linalg_vector_norm")  # and poolings


@dataclass(frozen=True)
class Job:
    """One call. Its sizes, by kind: `matmul` batch, m, k, n; `attention` batch, q, t, width of q and k, width of v;
    `conv` rows, inputs and outputs of a group, groups, positions, kernel; `product` multiply-accumulates; `pointwise`
    elements."""

    node: str
    kind: Kind
    about: tuple[Any, ...]  # what else decides: a convolution's stride, a mask, the operator of a pointwise call
    sizes: tuple[Expr, ...]
    weight: str | None = None  # which the call reads as it is


def find_jobs(axes: Axes) -> list[Job]:
    """The jobs of a program in its order. Views cost nothing; a batch norm behind a convolution is part of it."""
    found: list[Job] = []
    for node, call in axes.calls.items():
        found += _heavy(axes, call) if call.rule.costs else _light(axes, node)
    return found


def _heavy(axes: Axes, call: CallAxes) -> list[Job]:
    resolve = axes.terms.resolve
    letters = {name: resolve(expr) for name, expr in call.letters.items()}
    if call.node.target is _ATTENTION:
        outer = [x for x in call.rule.costs[0] if x not in ("q", "t", "e")]
        batch = _product(letters[x] for x in outer if x in letters)
        sizes = (batch, *(letters.get(x, ()) for x in ("q", "t", "e", "v")))
        masked = _argument(call.node, "attn_mask") is not None or bool(_argument(call.node, "is_causal"))
        return [Job(call.node.name, "attention", (masked,), sizes)]
    weight = next((str(o.target) for o in call.operands if o.op == "get_attr" and len(axes.values[o][0]) > 1), None)
    if "conv" in str(call.node.target):
        return [_conv(axes, call, letters, weight)]
    return [_matmul(call, cost, letters, weight) for cost in call.rule.costs]


def _matmul(call: CallAxes, cost: tuple[str, ...], letters: dict[str, Expr], weight: str | None) -> Job:
    """A product of two operands as batches of [m, k] x [k, n], whatever order their dimensions are in."""
    known = [x for x in cost if x in letters]
    everything = _product(letters[x] for x in known)
    among = [set(letters_of(dims)) for dims in call.rule.operands]
    out = {x for dims in call.rule.results for x in letters_of(dims)}
    pairs = ((a, b) for i, a in enumerate(among) for b in among[i + 1 :] if set(known) <= a | b and a & b - out)
    pair = next(pairs, None)
    if pair is None:
        return Job(call.node.name, "product", (), (everything,), weight)
    left, right = pair
    parts: dict[str, list[Expr]] = {"b": [], "m": [], "k": [], "n": []}
    for x in known:
        where = "k" if x not in out else "b" if x in left and x in right else "m" if x in left else "n"
        parts[where].append(letters[x])
    sizes = tuple(_product(parts[x]) for x in ("b", "m", "k", "n"))
    return Job(call.node.name, "matmul", (weight is not None,), sizes, weight)


def _conv(axes: Axes, call: CallAxes, letters: dict[str, Expr], weight: str | None) -> Job:
    node = call.node
    x, w = (axes.dims(operand) for operand in call.operands[:2])
    transposed = "transpose" in str(node.target) or bool(_argument(node, "transposed"))
    rank = len(w) - 2
    channels = (letters.get("c", ()), letters.get("o", ()), letters.get("g", ()))
    rows = x[0] if len(x) == len(w) else ()
    about = (
        rank, transposed, *(_spread(_argument(node, name), rank) for name in ("stride", "padding", "dilation")),
    )  # fmt: skip
    return Job(node.name, "conv", about, (rows, *channels, *x[-rank:], *w[2:]), weight)


def _spread(value: Any, rank: int) -> tuple[int, ...] | str:
    if isinstance(value, str):
        return value
    values = tuple(int(v) for v in (value if isinstance(value, list | tuple) else (value,)))
    return values * rank if len(values) == 1 else values


def _argument(node: fx.Node, name: str) -> Any:
    try:
        return Call(node).arg(name)
    except KeyError:
        return None


def _light(axes: Axes, node: fx.Node) -> list[Job]:
    value = node.meta.get("val")
    name = node.target._schema.name.split("::")[-1] if isinstance(node.target, torch._ops.OpOverload) else ""
    first = value[0] if isinstance(value, list | tuple) and value else value
    if not isinstance(first, torch.Tensor) or not first.is_floating_point() or name in _FREE or _is_fused(node, name):
        return []
    before = [n for n in node.all_input_nodes if n.op != "get_attr" and n in axes.values and axes.values[n]]
    if not before:
        return []  # made of weights alone: it is folded
    read = name in _REDUCING or "pool" in name
    elements = _product(axes.terms.resolve(e) for e in axes.values[before[0] if read else node][0])
    return [Job(node.name, "pointwise", (_OPERATORS.get(name, "Add"),), (elements,))]


def _is_fused(node: fx.Node, name: str) -> bool:
    """Whether a runtime does it within the product or convolution before."""
    before = node.args[0] if node.args else None
    if name not in (*_FOLDED, *_FUSED) or not isinstance(before, fx.Node) or len(before.users) > 1:
        return False
    target = str(before.target)
    return "conv" in target or "linear" in target or "addmm" in target or any(f in target for f in _FOLDED)


def _product(exprs: Iterable[Expr]) -> Expr:
    return tuple(factor for expr in exprs for factor in expr)
