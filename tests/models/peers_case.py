"""What a case of the catalogue of topologies is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Case", "Keep", "alive", "ids", "image", "vector"]

Keep = Mapping[str, list[int]]
"""Kept positions by group: `weight[dim]`, or `weight[dim]:size` where a dimension holds several groups."""

Make = Callable[[], Tensor]


@dataclass(frozen=True)
class Case:
    """A topology of a public test suite as an own module, with what a person reading it would call prunable."""

    source: str  # whose tests have this topology, and what they call it
    build: Callable[[], nn.Module]
    inputs: tuple[Make, ...]
    groups: Mapping[str, int | tuple[int, ...]]  # weight[dim] that makes the axis -> its size, or the sizes of several
    by_hand: Callable[[Any, Keep, tuple[Tensor, ...]], Any] | None = None  # the cut module, from slices of its weights
    inexact: frozenset[str] = field(default=frozenset())  # groups that cross a normalisation or a softmax
    refusal: str = ""  # an operator that may have no rule: then it is named, and all that it touches is fixed


def image(channels: int, side: int = 6, batch: int = 2) -> Make:
    """A maker of [batch, channels, side, side]."""
    return lambda: torch.randn(batch, channels, side, side)


def vector(*shape: int) -> Make:
    """A maker of a tensor of this shape."""
    return lambda: torch.randn(shape)


def ids(rows: int, *shape: int) -> Make:
    """A maker of indices into a table with that many rows."""
    return lambda: torch.randint(0, rows, shape)


def alive(model: nn.Module) -> nn.Module:
    """The module with weights that hide nothing: no zeros, no ones, statistics of batch norms as after training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    return model.eval()
