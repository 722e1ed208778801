"""Norms: where a program normalises along the last dimension, and what it does to the result before weights sum over
it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxslim.graph.axes.analysis import Axes
from fxslim.graph.axes.notation import Kind, Symmetry
from fxslim.graph.axes.registry import Call
from fxslim.graph.axes.terms import Axis

__all__ = ["Affine", "Statistic", "Stream", "find_streams"]

aten = torch.ops.aten
_SINGLE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Affine:
    """scale · x + shift along the axis, as a part of a norm or a multiplication of its own."""

    node: fx.Node
    scale: fx.Node | None  # [d], read or computed from weights alone
    shift: fx.Node | None


@dataclass(frozen=True)
class Statistic:
    """A call that takes the mean square along the axis: a norm, or `mean(x^2)` written out."""

    node: fx.Node
    source: fx.Node  # x
    centred: bool = False  # the mean is subtracted first


@dataclass(frozen=True)
class Stream:
    """An axis on which nothing but norms and linear maps act: a residual stream, once what the norms do besides their
    statistic is done by the weights around them."""

    axis: Axis
    affines: tuple[Affine, ...]
    statistics: tuple[Statistic, ...]


def find_streams(axes: Axes, weights: Mapping[fx.Node, frozenset[str]]) -> list[Stream]:
    """The streams of a program. `weights` are its nodes that depend on weights alone (`weight_like`)."""
    statistics: dict[Axis, list[Statistic]] = {}
    for node in axes.calls:
        found = _statistic(axes, node)
        axis = None if found is None else last_axis(axes, found.source)
        if found is not None and axis is not None:
            statistics.setdefault(axis, []).append(found)
    streams = []
    for axis, own in statistics.items():
        affines = tuple(a for n in axes.calls if (a := _affine(axes, n, axis, weights)) is not None)
        known = {n for a in affines for n in _nodes_of_affine(a)} | {n for s in own for n in _nodes(s)}
        if all(_linear(axes, node, axis) for node in axes.calls if node not in known):
            streams.append(Stream(axis, affines, tuple(own)))
    return streams


def last_axis(axes: Axes, node: fx.Node) -> Axis | None:
    """The axis that the last dimension of a value is, where it is one of a fixed size."""
    dims = axes.dims(node) if axes.values.get(node) else ()
    if not dims or len(dims[-1]) != 1 or not isinstance(dims[-1][0], Axis):
        return None
    return dims[-1][0] if isinstance(dims[-1][0].size, int) else None


def _statistic(axes: Axes, node: fx.Node) -> Statistic | None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype not in _SINGLE:
        return None  # half precision: a sum of squares overflows where the norm's own kernel does not
    call = Call(node)
    if node.target in (aten.layer_norm.default, aten.rms_norm.default):
        if len(call.arg("normalized_shape")) == 1:
            return Statistic(node, call.arg("input"), node.target is aten.layer_norm.default)
    elif node.target is aten.mean.dim and call.arg("keepdim"):
        squares = call.tensors[0]
        if squares.meta["val"].dtype != node.meta["val"].dtype:
            return None
        rank = squares.meta["val"].dim()
        if [d % rank for d in call.arg("dim") or ()] == [rank - 1] and (source := _squared(squares)) is not None:
            return Statistic(node, source)
    return None


def _squared(node: fx.Node) -> fx.Node | None:
    """x, where a value is x^2."""
    if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
        return node.args[0]  # type: ignore[return-value]
    if node.target is aten.square.default or (node.target is aten.mul.Tensor and node.args[0] is node.args[1]):
        return node.args[0]  # type: ignore[return-value]
    return None


def _affine(axes: Axes, node: fx.Node, axis: Axis, weights: Mapping[fx.Node, frozenset[str]]) -> Affine | None:
    if node in weights or last_axis(axes, node) is not axis:
        return None
    call = Call(node)
    if node.target in (aten.layer_norm.default, aten.rms_norm.default):
        scale = call.arg("weight")
        shift = call.arg("bias") if node.target is aten.layer_norm.default else None
        vectors = [v for v in (scale, shift) if v is not None]
        return Affine(node, scale, shift) if vectors and all(v in weights for v in vectors) else None
    if node.target is aten.mul.Tensor and len(call.tensors) == 2:
        for scale, other in (call.tensors, reversed(call.tensors)):
            own = scale in weights and scale.meta["val"].numel() == axis.size and last_axis(axes, scale) is axis
            if own and other not in weights and last_axis(axes, other) is axis:
                return Affine(node, scale, None)
    return None


def _nodes_of_affine(affine: Affine) -> Iterator[fx.Node]:
    """The node, and what computes its scale and shift (1 + weight)."""
    yield affine.node
    stack = [v for v in (affine.scale, affine.shift) if v is not None]
    while stack:
        yield (node := stack.pop())
        stack += node.all_input_nodes


def _nodes(statistic: Statistic) -> Iterator[fx.Node]:
    yield statistic.node
    if statistic.node.target is aten.mean.dim:
        yield statistic.node.all_input_nodes[0]


def _linear(axes: Axes, node: fx.Node, axis: Axis) -> bool:
    """Whether a call treats all bases of the axis alike, or all those that rotations lead to."""
    call = axes.calls[node]
    for letter, expr in call.letters.items():
        if axis in axes.terms.atoms(expr):
            if call.rule.kind(letter) not in (Kind.PASS, Kind.REDUCE):
                return False
            if call.rule.symmetry_of(letter) not in (Symmetry.GENERAL, Symmetry.ORTHOGONAL):
                return False
    return True
