"""Ranks by depth: the share that a weight keeps changes linearly from the first layer to the last (the layer-wise rank
map of LR-SMS, Fernandez-Lopez 2024, for a trained model).

The paper also has attention keep less than feed-forward layers. That is knowledge of one architecture, and of training
at low rank from scratch; nothing in a graph says it, and it is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from torch import fx

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.program import Program

__all__ = ["SLOPE", "Ranked", "by_depth", "depths"]

# The first weights keep a fourth more than the mean and the last a fourth less: errors made early pass through all that
# follows. The value is this project's, by measurement (docs/methods.md).
SLOPE = 0.25


class Ranked(Protocol):
    """A weight [n, k] that may become a pair."""

    @property
    def name(self) -> str:
        """Of the weight."""

    @property
    def limit(self) -> float:
        """n k / (n + k): at this rank the pair costs what the weight does."""


def by_depth(analysis: Analysis, slope: float) -> Callable[[Sequence[Ranked], float, int], dict[str, int]]:
    """The rule that gives a weight at depth d, from 0 to 1, the share s (1 + slope (1 - 2 d)) of its break-even rank:
    ranks fall with depth where `slope` is positive and rise where it is negative. The level s belongs to the degree to
    which all are cut: at 0 every weight is whole, at 1 every rank the lowest."""

    def ranks(candidates: Sequence[Ranked], removed: float, round_to: int) -> dict[str, int]:
        depth = depths(analysis.program, [c.name for c in candidates])
        level = (1 - removed) / (1 - abs(slope))
        shares = {c.name: level * (1 + slope * (1 - 2 * depth[c.name])) for c in candidates}
        return {c.name: max(round_to, int(shares[c.name] * c.limit / round_to) * round_to) for c in candidates}

    return ranks


def depths(program: Program, names: Collection[str]) -> dict[str, float]:
    """How deep the named weights lie: how many of them are on the longest way to each, 0 for the first and 1 for the
    deepest; all halfway where none follows another. Weights that read the same value are equally deep."""
    before: dict[fx.Node, int] = {}
    found: dict[str, int] = {}
    for node in program.graph.nodes:
        own = [str(i.target) for i in node.all_input_nodes if i.op == "get_attr" and i.target in names]
        level = max((before[i] for i in node.all_input_nodes), default=0)
        before[node] = level + bool(own)
        found |= {name: level for name in own if name not in found}
    deepest = max(found.values(), default=0)
    return {name: level / deepest if deepest else 0.5 for name, level in found.items()}
