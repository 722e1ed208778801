"""Rules of windows and sampling other than convolution: padding, unfolding, grids, pooling with indices."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, NewSizes, names, rule, text
from fxslim.graph.axes.rules_lines import clause, filled

__all__: list[str] = []

aten = torch.ops.aten
GENERAL = Symmetry.GENERAL
WINDOW = "windows reach over neighbouring positions"


@rule(
    aten.pad.default, aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default,
    aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default,
)  # fmt: skip
def pad(call: Call) -> DimRule:
    """Padded dimensions stay; the others pass. Amounts are pairs, the last dimension first."""
    plain = call.op is aten.pad.default
    amounts = list(call.arg("pad" if plain else "padding"))
    letters = names(len(call.shapes[0]))
    padded = {len(letters) - 1 - i // 2 for i, amount in enumerate(amounts) if amount != 0}
    out = [f"p{n}" if d in padded else n for d, n in enumerate(letters)]
    fixed = clause("fixed", [x for d in sorted(padded) for x in (letters[d], out[d])])
    constant = plain and call.arg("mode") == "constant" and bool(call.arg("value"))
    default = Symmetry.PERMUTATION if constant else GENERAL
    return DimRule.parse(f"{text(letters)} -> {text(out)}{fixed}", default=default, why="the padding is a number")


@rule(aten.unfold.default)
def unfold(call: Call) -> DimRule:
    """Windows of one dimension, side by side in a new last one."""
    letters = names(len(call.shapes[0]))
    if not letters:
        return DimRule.parse("() -> 1", default=GENERAL)
    dim = call.dim("dimension", len(letters))
    out = [*letters[:dim], "i", *letters[dim + 1 :], "k"]
    fixed = clause("fixed", [letters[dim], "i", "k"])
    return DimRule.parse(f"{text(letters)} -> {text(out)}{fixed}", default=GENERAL, why=WINDOW)


@rule(aten.im2col.default, aten.col2im.default)
def columns(call: Call) -> DimRule:
    """Windows of an image as columns `c·k`, or back."""
    kernel = prod(call.arg("kernel_size"))
    unfolds = call.op is aten.im2col.default
    batch = "b " if len(call.shapes[0]) == (4 if unfolds else 3) else ""
    image, column = f"{batch}c h w", f"{batch}(c k) l"
    line = f"{image} -> {column}" if unfolds else f"{column} -> {image}"
    return DimRule.parse(f"{line} | fixed h w k l", default=GENERAL, sizes={"k": kernel}, why=WINDOW)


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(call: Call) -> DimRule:
    """Values at positions that a grid names: one for each position of the grid."""
    deep = len(call.shapes[0]) == 5
    source, outputs = ("h w z", "i j l") if deep else ("h w", "i j")
    return filled(
        call, f"b c {source}, b {outputs} r -> b c {outputs} | fixed {source} r | permutation b {outputs}", GENERAL,
        "its positions are read by number",
    )  # fmt: skip


@rule(aten.affine_grid_generator.default, literals=lambda call, new: _grid_size(call, new))
def affine_grid(call: Call) -> DimRule:
    """Positions of a grid under an affine map; their number is an argument."""
    outputs = "i j l" if len(call.arg("size")) == 5 else "i j"
    return filled(call, f"b r s -> b {outputs} r | fixed r s {outputs}", why="its values are positions")


def _grid_size(call: Call, new: NewSizes) -> Mapping[str, Any]:
    return {"size": [new.letter("b"), *call.arg("size")[1:]]}


_POOLS = {
    1: (aten.max_pool1d_with_indices.default, aten.adaptive_max_pool1d.default),
    2: (aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default),
    3: (aten.max_pool3d_with_indices.default, aten.adaptive_max_pool3d.default),
}


@rule(*_POOLS[1], *_POOLS[2], *_POOLS[3])
def pool_with_indices(call: Call) -> DimRule:
    """The largest of each window and where it was."""
    rank = next(n for n, ops in _POOLS.items() if call.op in ops)
    inputs, outputs = ("h w z"[: 2 * rank - 1], "i j l"[: 2 * rank - 1])
    return filled(call, f"* {inputs} -> * {outputs}, * {outputs} | fixed {inputs} {outputs}", why=WINDOW)


@rule(aten.max_unpool2d.default, aten.max_unpool3d.default)
def unpool(call: Call) -> DimRule:
    """Values back to the positions that they were the largest of."""
    inputs, outputs = ("h w", "i j") if call.op is aten.max_unpool2d.default else ("h w z", "i j l")
    return filled(call, f"* {inputs}, * {inputs} -> * {outputs} | fixed {inputs} {outputs}", why=WINDOW)
