"""Rules of convolutions, pooling and resampling. Spatial letters are fixed: windows mix neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, NewSizes, names, rule, text

__all__: list[str] = []

aten = torch.ops.aten
WINDOW = "windows reach over neighbouring positions"


def _spatial(rank: int) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Letters of input positions, of the kernel, of output positions."""
    return ("h", "w", "z")[:rank], ("y", "x", "u")[:rank], ("i", "j", "l")[:rank]


def _groups(call: Call, new: NewSizes) -> Mapping[str, Any]:
    return {"groups": new.letter("g")}


@rule(
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
    literals=_groups,
)  # fmt: skip
def conv(call: Call) -> DimRule:
    """Convolution over 1 to 3 spatial dimensions; `g` groups of `c` inputs and `o` outputs each."""
    return _conv_rule(call, transposed=False, groups=int(call.arg("groups")))


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input, literals=_groups)
def conv_transpose(call: Call) -> DimRule:
    """Transposed convolution: the weight is stored with its input channels first."""
    return _conv_rule(call, transposed=True, groups=int(call.arg("groups")))


@rule(aten.convolution.default, literals=_groups)
def convolution(call: Call) -> DimRule:
    """The general form of both."""
    return _conv_rule(call, transposed=bool(call.arg("transposed")), groups=int(call.arg("groups")))


def _conv_rule(call: Call, *, transposed: bool, groups: int) -> DimRule:
    x, weight = call.shapes[:2]
    positions, kernel, outputs = _spatial(len(weight) - 2)
    batch = ("b",) if len(x) == len(weight) else ()
    inputs, out_channels = (weight[0], weight[1]) if transposed else (weight[1] * groups, weight[0] // groups)
    g = ("g",) if groups > 1 else ()
    c = ("c",) if not g or inputs != groups else ()  # depthwise: one input channel in a group
    o = ("o",) if not g or out_channels != 1 else ()
    c_in, c_out = _product(g + c), _product(g + o)
    dims = text((c_in, *(o or "1"), *kernel)) if transposed else text((c_out, *(c or "1"), *kernel))
    bias = f", {c_out}" if len(call.tensors) == 3 else ""
    moved = positions if transposed else outputs  # a transposed convolution multiplies once for every input position
    permuted = (*(batch if bias else ()), *g)
    return DimRule.parse(
        f"{text((*batch, c_in, *positions))}, {dims}{bias} -> {text((*batch, c_out, *outputs))}"
        f" | fixed {text((*positions, *kernel, *outputs))}{f' | permutation {text(permuted)}' if permuted else ''}",
        default=Symmetry.GENERAL, sizes={"g": groups} if g else {},
        costs=[text((*batch, *g, *c, *o, *kernel, *moved))], why=WINDOW,
    )  # fmt: skip


def _product(letters: tuple[str, ...]) -> str:
    return letters[0] if len(letters) == 1 else f"({' '.join(letters)})"


_POOLS = {
    1: (aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default),
    2: (aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default),
    3: (aten.max_pool3d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default),
}


@rule(*_POOLS[1], *_POOLS[2], *_POOLS[3], aten._adaptive_avg_pool2d.default)
def pool(call: Call) -> DimRule:
    """Pooling over the last dimensions; averages take any basis of the channels, maxima scalings."""
    (x,) = call.shapes
    name = str(call.op)
    rank = next(n for n in _POOLS if f"pool{n}d" in name)
    outer = names(len(x) - rank)
    positions, _, outputs = _spatial(rank)
    default = Symmetry.SCALING if "max" in name else Symmetry.GENERAL
    return DimRule.parse(
        f"{text((*outer, *positions))} -> {text((*outer, *outputs))} | fixed {text((*positions, *outputs))}",
        default=default, why=WINDOW,
    )  # fmt: skip


@rule(
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec,
    aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default,
    aten.upsample_linear1d.vec, aten.upsample_trilinear3d.vec, aten.upsample_nearest3d.vec,
    aten.upsample_nearest1d.default, aten.upsample_nearest3d.default, aten.upsample_linear1d.default,
    aten.upsample_trilinear3d.default, aten._upsample_bilinear2d_aa.vec, aten._upsample_bilinear2d_aa.default,
    aten._upsample_bicubic2d_aa.vec, aten._upsample_bicubic2d_aa.default, aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact1d.default, aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact2d.default, aten._upsample_nearest_exact3d.vec,
    aten._upsample_nearest_exact3d.default,
)  # fmt: skip
def upsample(call: Call) -> DimRule:
    """Resampling of the positions behind batch and channels."""
    (x,) = call.shapes
    positions, _, outputs = _spatial(len(x) - 2)
    return DimRule.parse(
        f"{text(('b', 'c', *positions))} -> {text(('b', 'c', *outputs))} | fixed {text((*positions, *outputs))}",
        default=Symmetry.GENERAL, why=WINDOW,
    )  # fmt: skip


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(call: Call) -> DimRule:
    """Channels c·r·s become positions h·r and w·s."""
    factor = int(call.arg("upscale_factor"))
    outer = names(len(call.shapes[0]) - 3)
    return DimRule.parse(
        f"{text(outer) if outer else ''} (c r s) h w -> {text(outer) if outer else ''} c (h r) (w s) | fixed r s",
        default=Symmetry.GENERAL, sizes={"r": factor, "s": factor}, why="the factor is one argument for both",
    )  # fmt: skip


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(call: Call) -> DimRule:
    """Positions h·r and w·s become channels c·r·s."""
    factor = int(call.arg("downscale_factor"))
    outer = names(len(call.shapes[0]) - 3)
    return DimRule.parse(
        f"{text(outer) if outer else ''} c (h r) (w s) -> {text(outer) if outer else ''} (c r s) h w | fixed r s",
        default=Symmetry.GENERAL, sizes={"r": factor, "s": factor}, why="the factor is one argument for both",
    )  # fmt: skip


@rule(aten.channel_shuffle.default, literals=_groups)
def channel_shuffle(call: Call) -> DimRule:
    """g groups of c channels become c groups of g."""
    tail = names(len(call.shapes[0]) - 2, "p")
    return DimRule.parse(
        f"b (g c) {' '.join(tail)} -> b (c g) {' '.join(tail)}",
        default=Symmetry.GENERAL, sizes={"g": int(call.arg("groups"))},
    )  # fmt: skip
