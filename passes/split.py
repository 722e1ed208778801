"""The split-fused pass: a projection whose result is read part by part (queries, keys, values) becomes one for each.

A model that computes q, k and v in one matrix product and takes them apart by position (`unbind`, `[0]`) ties their
dimensions: a view `3·h·d` is rectangular. The analysis sees an axis of three positions that is only read by number; the
pass copies what lies between the weight and the readers, once for each position, and the copies share nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from fxslim.graph.axes.analysis import Axes
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.notation import Kind
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.axes.terms import Axis, Expr
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.same import verify_same_function

__all__ = ["SplitFused", "fused_axes"]

aten = torch.ops.aten
_MOST = 8  # positions: more than that is a sequence of steps, not a fused projection


@dataclass(frozen=True)
class FusedAxis:
    """An axis that is read by number only: its nodes from the weights to the readers, in order."""

    axis: Axis
    region: tuple[fx.Node, ...]  # weights and calls that carry it
    readers: tuple[fx.Node, ...]  # unbind or select


@dataclass(frozen=True)
class SplitFused(Pass):
    """Splits fused projections, so that V alone, or Q and K alone, can be cut. The numerics are preserved."""

    name: ClassVar[str] = "split-fused"

    def apply(self, analysis: Analysis) -> PassResult:
        """The program with one projection for each part; parts of `qkv.weight` are `qkv.weight_0`, ..."""
        rewriter = Rewriter(analysis.program, self.name)
        for fused in fused_axes(analysis.axes):
            parts = [_part(rewriter, analysis.axes, fused, i) for i in range(int(fused.axis.size))]
            for reader in fused.readers:
                _rewire(rewriter, analysis.axes, reader, parts)
        if rewriter.modified:
            rewriter.sweep()
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed, keeps its interface and computes the same."""
        verify_same_function(result, original)


def fused_axes(axes: Axes) -> list[FusedAxis]:
    """The axes of a program that lie on weights and are read by number only."""
    readers: dict[Axis, list[fx.Node]] = {}
    for node in axes.calls:
        axis = _read_axis(axes, node)
        if axis is not None:
            readers.setdefault(axis, []).append(node)
    found = (_fused(axes, axis, nodes) for axis, nodes in readers.items())
    return [f for f in found if f is not None]


def _read_axis(axes: Axes, node: fx.Node) -> Axis | None:
    """The axis whose positions an unbind or select reads one by one, if its dimension is that axis alone."""
    if node.target not in (aten.unbind.int, aten.select.int):
        return None
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if node.target is aten.select.int and not isinstance(node.args[2], int):
        return None  # the position is computed
    expr = axes.dims(source)[_dim(node)]
    if len(expr) != 1 or not isinstance(expr[0], Axis):
        return None
    size = expr[0].size
    return expr[0] if isinstance(size, int) and 1 < size <= _MOST else None


def _dim(node: fx.Node) -> int:
    dim = node.args[1] if len(node.args) > 1 else 0
    source = node.args[0]
    assert isinstance(dim, int) and isinstance(source, fx.Node)
    return dim % int(source.meta["val"].dim())


def _fused(axes: Axes, axis: Axis, readers: Sequence[fx.Node]) -> FusedAxis | None:
    """What carries the axis; None where something else than the readers ends it, a call does more than carry it along
    (a softmax over it, its reversal), or no product with a weight begins it."""
    region: list[fx.Node] = []
    met = False  # a reader: what comes behind it cannot be computed before it
    for node in axes.program.graph.nodes:
        met = met or node in readers
        if node in readers or node.op == "output" or node not in axes.values:
            continue
        if not any(_times(axes, dims, axis) for dims in axes.values[node]):
            continue
        if met or not _only_carries(axes, node, axis):
            return None
        region.append(node)
    inside = {*region, *readers}
    if not all(user in inside for node in region for user in node.users) or any(
        r.args[0] not in inside for r in readers
    ):
        return None
    products = [n for n in region if n in axes.calls and axes.calls[n].rule.costs]
    if not products or not any(n.op == "get_attr" for n in region):
        return None
    return FusedAxis(axis, tuple(region), tuple(readers))


def _only_carries(axes: Axes, node: fx.Node, axis: Axis) -> bool:
    """Whether a weight or call has the axis once in its only result, and the call passes it through."""
    if node.op == "placeholder" or len(axes.values[node]) != 1 or _times(axes, axes.values[node][0], axis) != 1:
        return False
    if node.op == "get_attr":
        return True
    call = axes.calls.get(node)
    if call is None:
        return False
    letters = [x for x, e in call.letters.items() if any(atom is axis for atom in axes.terms.atoms(e))]
    once = all(_times(axes, axes.dims(operand), axis) <= 1 for operand in call.operands)
    return once and all(call.rule.kind(x) is Kind.PASS for x in letters)


def _times(axes: Axes, dims: Sequence[Expr], axis: Axis) -> int:
    return sum(atom is axis for expr in dims for atom in axes.terms.atoms(expr))


def _part(rewriter: Rewriter, axes: Axes, fused: FusedAxis, index: int) -> dict[fx.Node, fx.Node]:
    mask = torch.zeros(int(fused.axis.size), dtype=torch.bool)
    mask[index] = True
    selection = Selection({fused.axis: Kept((), mask)})
    return rewriter.copy_sliced(axes, selection, fused.region, fused.readers[0], f"_{index}")


def _rewire(rewriter: Rewriter, axes: Axes, reader: fx.Node, parts: list[dict[fx.Node, fx.Node]]) -> None:
    """Whoever read position i of the reader's source reads the only position of the i-th copy."""
    source = reader.args[0]
    assert isinstance(source, fx.Node)
    copies = rewriter.copies(axes)
    if reader.target is aten.select.int:
        index = reader.args[2]
        assert isinstance(index, int)
        ours = copies[reader]
        rewriter.replace(ours, _only(rewriter, parts[index % len(parts)][source], _dim(reader), ours))
        return
    for user in list(copies[reader].users):
        assert user.target is operator.getitem and isinstance(user.args[1], int)
        rewriter.replace(user, _only(rewriter, parts[user.args[1]][source], _dim(reader), user))


def _only(rewriter: Rewriter, source: fx.Node, dim: int, before: fx.Node) -> fx.Node:
    """`source` without its dimension `dim` of size 1."""
    return rewriter.add_call(aten.squeeze.dims, (source, [dim]), like=before)
