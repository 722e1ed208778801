"""Rules of normalisations and of softmax: their statistics tie the positions that they run over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.registry import Call, NewSizes, names, rule, text
from fxslim.graph.axes.rules_lines import clause

__all__: list[str] = []

aten = torch.ops.aten


def _normalized_shape(call: Call, new: NewSizes) -> Mapping[str, Any]:
    return {"normalized_shape": list(new.operand(0)[-len(call.arg("normalized_shape")) :])}


@rule(aten.layer_norm.default, aten.rms_norm.default, literals=_normalized_shape)
def layer_norm(call: Call) -> DimRule:
    """Statistics over the last dimensions. RMSNorm without a weight commutes with rotations of a last dimension."""
    rank, inner = len(call.shapes[0]), len(call.arg("normalized_shape"))
    outer, tied = names(rank - inner, "b"), names(inner, "d")
    affine = f", {text(tied)}" * (len(call.tensors) - 1)
    rotation = call.op is aten.rms_norm.default and len(call.tensors) == 1 and inner == 1
    clause = f" | orthogonal {text(tied)}" if rotation else ""
    return DimRule.parse(f"{text((*outer, *tied))}{affine} -> {text((*outer, *tied))} | tied {text(tied)}{clause}")


@rule(aten.batch_norm.default)
def batch_norm(call: Call) -> DimRule:
    """With running statistics each element is a function of itself; without, they run over batch and positions."""
    rank = len(call.shapes[0])
    dims = ("b", "c", *names(max(0, rank - 2), "p"))[:rank]
    clause = f" | tied {text([x for x in dims if x != 'c'])}" if call.arg("training") else ""
    return DimRule.parse(f"{text(dims)}{', c' * (len(call.tensors) - 1)} -> {text(dims)}{clause}")


@rule(aten.instance_norm.default)
def instance_norm(call: Call) -> DimRule:
    """Statistics over the positions of each channel, unless the running ones are used."""
    positions = names(len(call.shapes[0]) - 2, "p")
    dims = text(("b", "c", *positions))
    clause = f" | tied {text(positions)}" if call.arg("use_input_stats") else ""
    return DimRule.parse(f"{dims}{', c' * (len(call.tensors) - 1)} -> {dims}{clause}")


@rule(aten.group_norm.default, literals=lambda call, new: {"num_groups": new.letter("g")})
def group_norm(call: Call) -> DimRule:
    """Statistics over the `c` channels of a group and all positions; whole groups `g` may go."""
    groups, channels = int(call.arg("num_groups")), call.shapes[0][1]
    positions = names(len(call.shapes[0]) - 2, "p")
    c = "(g c)" if groups not in (1, channels) else ("g" if groups == channels else "c")
    tied = (*(("c",) if c != "g" else ()), *positions)
    clause = f" | tied {text(tied)}" if tied else ""
    dims = text(("b", c, *positions))
    return DimRule.parse(f"{dims}{f', {c}' * (len(call.tensors) - 1)} -> {dims}{clause}", sizes={"g": groups})


@rule(
    aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default,
    aten._safe_softmax.default,
)  # fmt: skip
def softmax(call: Call) -> DimRule:
    """The sum runs over `dim`."""
    (x,) = call.shapes
    dims = names(len(x))
    tied = clause("tied", [dims[call.dim("dim", len(x))]] if x else [])
    return DimRule.parse(f"{text(dims)} -> {text(dims)}{tied}")


@rule(aten.native_layer_norm.default, literals=_normalized_shape)
def native_layer_norm(call: Call) -> DimRule:
    """As `layer_norm`, with mean and deviation."""
    rank, inner = len(call.shapes[0]), len(call.arg("normalized_shape"))
    outer, tied = names(rank - inner, "b"), names(inner, "d")
    operands = ", ".join([text((*outer, *tied)), *[text(tied)] * (len(call.tensors) - 1)])
    statistics = text((*outer, *["1"] * inner))
    return DimRule.parse(f"{operands} -> {text((*outer, *tied))}, {statistics}, {statistics} | tied {text(tied)}")


@rule(aten._weight_norm.default)
def weight_norm(call: Call) -> DimRule:
    """v / |v| times g: the norm runs over all dimensions but `dim`."""
    letters = names(len(call.shapes[0]))
    scale = ["1" if size == 1 else n for n, size in zip(letters, call.shapes[1], strict=True)]
    tied = clause("tied", [n for n in letters if n not in scale])
    return DimRule.parse(f"{text(letters)}, {text(scale)} -> {text(letters)}{tied}")


@rule(aten.renorm.default)
def renorm(call: Call) -> DimRule:
    """Every position of `dim` is scaled down to a norm over all other dimensions."""
    letters = names(len(call.shapes[0]))
    tied = clause("tied", [n for d, n in enumerate(letters) if d != call.dim("dim", len(letters))])
    return DimRule.parse(f"{text(letters)} -> {text(letters)}{tied}")
