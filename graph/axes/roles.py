"""What an axis is called: heads, neurons, channels, ...

Names for people. The analysis decides nothing by them; plans do, where they speak of kinds (`groups=`, what `fasp`
cuts, which counts are rounded).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxslim.graph.axes.notation import Kind, Symmetry, letters_of

if TYPE_CHECKING:
    from fxslim.graph.axes.analysis import CallAxes
    from fxslim.graph.axes.groups import Site

__all__ = ["KINDS", "STREAM", "Role", "classify"]

aten = torch.ops.aten

STREAM = "residual stream"
KINDS = (
    "neurons", "channels", "heads", "key-value heads", "value dims", "query-key dims", "rotary pairs",
    "recurrent units", STREAM,
    "rank", "kernel window", "features",
)  # fmt: skip

_CONVOLUTIONS = frozenset(
    {
        aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default,
        aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
        aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    }
)  # fmt: skip
_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})


class Role(Enum):
    """What one call does with an axis, as far as it helps to name it."""

    CHANNELS = "a convolution's channels"
    HEADS = "attention's heads"
    QUERY_KEY = "queries against keys"
    VALUE = "averaged by attention"
    SUMMED = "two activations are added"
    NORMALISED = "a normalisation runs over it"
    WINDOW = "a convolution's window"
    RECURRENT = "fed back by a recurrent layer"

    @staticmethod
    def name_of(uses: set[Role], symmetry: Symmetry, sites: Iterable[Site], summed: bool, shared_head: bool) -> str:
        """The kind of a group (one of `KINDS`)."""
        roles = [s.role for s in sites]
        if uses == {Role.WINDOW}:
            return "kernel window"
        if symmetry is Symmetry.GENERAL and uses <= {Role.CHANNELS} and sorted(roles) == ["consumes", "produces"]:
            return "rank"  # two weights and nothing else: their product is one weight of that rank
        if Role.RECURRENT in uses:
            return "recurrent units"
        if Role.CHANNELS in uses and Role.NORMALISED not in uses:
            return "channels"
        if Role.HEADS in uses:
            return "key-value heads" if shared_head else "heads"
        if Role.QUERY_KEY in uses:
            return "rotary pairs" if symmetry <= Symmetry.PAIRED else "query-key dims"
        if Role.VALUE in uses:
            return "value dims"
        if Role.NORMALISED in uses or (summed and roles.count("produces") > 1):
            return STREAM
        if "produces" in roles and "consumes" in roles:
            return "rank" if symmetry is Symmetry.GENERAL else "neurons"
        return "features"


def classify(call: CallAxes, letter: str, weights: Mapping[fx.Node, frozenset[str]]) -> Role | None:
    """What the call does with one of its letters, or None if it says nothing about the axis's name."""
    target, rule = call.node.target, call.rule
    if target in _CONVOLUTIONS:
        return Role.CHANNELS if rule.kind(letter) is not Kind.FIXED else Role.WINDOW
    if rule.kind(letter) is Kind.TIED:
        return Role.NORMALISED
    if rule.recurrent:
        return Role.RECURRENT if letter in rule.recurrent else None
    activations = [d for o, d in zip(call.operands, rule.operands, strict=True) if o not in weights]
    if target in _SUMS and len(activations) == 2 and all(letter in letters_of(d) for d in activations):
        return Role.SUMMED
    if rule.costs and len(activations) >= 2:
        return _in_attention(call, letter, [set(letters_of(d)) for d in activations])
    return None


def _in_attention(call: CallAxes, letter: str, activations: list[set[str]]) -> Role | None:
    """Two activations are contracted: shared letters that stay are heads, the summed one is queries against keys."""
    holding = sum(letter in letters for letters in activations[:3])
    if call.rule.kind(letter) is Kind.FIXED:
        return None
    if call.rule.kind(letter) is Kind.REDUCE:
        return Role.QUERY_KEY
    if holding > 1:
        return Role.HEADS
    return Role.VALUE if letter in activations[-1] or letter in activations[min(2, len(activations) - 1)] else None
