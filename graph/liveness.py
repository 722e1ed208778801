"""Liveness: how many bytes of activations a run holds before each call, and while the call runs; from shapes alone."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from fxslim.graph.axes.terms import size_of
from fxslim.graph.evaluate import last_uses
from fxslim.graph.program import Program, bind_symbols

__all__ = ["Liveness", "liveness", "number_of", "value_bytes"]

aten = torch.ops.aten
_MAYBE_COPIES = (aten.reshape.default, aten.contiguous.default, aten.flatten.using_ints)  # of what is not in order
_REORDER = (aten.transpose.int, aten.permute.default, aten.expand.default, aten.t.default)
_DOUBLE = 8


@dataclass(frozen=True)
class Liveness:
    """Bytes of one run, by the number of the node: `live` of what is needed there or later before it runs (one more
    for the end), `inner` while it runs, a masked copy of what it reads among it. Inputs and weights are not counted."""

    live: tuple[int, ...]
    inner: tuple[int, ...]


def liveness(program: Program, inputs: Sequence[Tensor], *, double: bool = False) -> Liveness:
    """Of a run on flat `inputs`, or on others of the same sizes; with `double` in float64."""
    symbols = bind_symbols(program, inputs)
    last, nodes = last_uses(program.graph), list(program.graph.nodes)
    roots, counted = dict[fx.Node, fx.Node](), dict[fx.Node, int]()
    readers = Counter[fx.Node]()  # values that are alive, by the one whose storage they share
    live, inner, now = [0], [], 0
    for node in nodes:
        if node.op != "call_function":
            roots[node], counted[node] = node, 0
            inner.append(now)
            live.append(now)
            continue
        root = roots[node] = _root(node, roots)
        if root is node:
            counted[node] = value_bytes(node, symbols, double=double)
            now += counted[node]
        readers[root] += 1
        read = [value_bytes(n, symbols, double=double) for n in node.all_input_nodes if n.op != "get_attr"]
        inner.append(now + max(read, default=0))
        for dead in last.get(node, ()):
            if dead.op == "call_function":
                readers[roots[dead]] -= 1
                if not readers[roots[dead]]:
                    now -= counted[roots[dead]]
        live.append(now)
    return Liveness(tuple(live), tuple(inner))


def value_bytes(node: fx.Node, symbols: Mapping[sympy.Symbol, int], *, double: bool = False) -> int:
    """Bytes of a node's value; sizes that depend on the values of data count as 1."""
    total = 0
    for tensor in pytree.tree_leaves(node.meta.get("val")):
        if isinstance(tensor, Tensor):
            numel = 1
            for size in tensor.shape:
                numel *= number_of(size, symbols)
            total += numel * (_DOUBLE if double and tensor.is_floating_point() else tensor.dtype.itemsize)
    return total


def number_of(size: Any, symbols: Mapping[sympy.Symbol, int]) -> int:
    """A size under the values of symbols; 1 where it depends on the values of data."""
    known: Any = size_of(size)
    known = known if isinstance(known, int) else known.subs(dict(symbols))
    return int(known) if isinstance(known, int) or known.is_number else 1


def _root(node: fx.Node, roots: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The node whose storage a call's value lies in: its own, or that of what it is a view of."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source not in roots:
        return node
    if node.target is operator.getitem:
        return roots[source]
    schema = node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
    if schema is None or not schema.returns or schema.returns[0].alias_info is None:
        return node
    if node.target in _MAYBE_COPIES and any(n.target in _REORDER for n in _views_back(node, roots)):
        return node
    return roots[source]


def _views_back(node: fx.Node, roots: Mapping[fx.Node, fx.Node]) -> Iterator[fx.Node]:
    """The views between a call and the node in whose storage its operand lies."""
    current: Any = node.args[0]
    while isinstance(current, fx.Node) and roots.get(current, current) is not current:
        yield current
        current = current.args[0] if current.args else None
