"""Widths by influence: the residual branches that turn their stream least lose most (MoDeGPT, Lin 2024, by the
influence of ShortGPT, Men 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.terms import Axis
from fxslim.graph.errors import InputError
from fxslim.passes.budget import Widths
from fxslim.passes.drop_branches import Branch, find_branches, influences

__all__ = ["branches_of", "by_influence", "removal_factors", "scaled_removal"]

_TEMPERATURE = 0.3  # MoDeGPT's epsilon: branches whose influence differs by this lose e times as much or as little


def by_influence(analysis: Analysis, groups: Sequence[Group], batches: Sequence[Sequence[Tensor]]) -> Widths:
    """The widths of groups where those inside residual branches lose by the influence of their branch; the others lose
    what the branches do on average.

    Raises:
        InputError: no group lies in a residual branch.
    """
    branches = find_branches(analysis.program)
    owners = branches_of(analysis, groups, branches)
    if not owners:
        raise InputError(
            "the budget 'influence' divides what residual branches lose, and none holds a group that may be cut",
            remedy="choose --budget uniform, or allow more groups",
        )
    own = [b for b in branches if b in owners.values()]
    factors = removal_factors(influences(analysis.program, own, batches))
    return scaled_removal({g.axis: factors[owners[g.name].add.name] if g.name in owners else 1.0 for g in groups})


def branches_of(analysis: Analysis, groups: Sequence[Group], branches: Sequence[Branch]) -> dict[str, Branch]:
    """By group name the innermost branch that holds every call that reads a weight of the group. A residual stream, and
    what lies outside all branches, has none."""
    inside = sorted(((_inside(b), b) for b in branches), key=lambda pair: len(pair[0]))
    nodes = analysis.program.weight_nodes()
    found = {}
    for group in groups:
        calls = {user for site in group.sites for user in nodes[site.weight].users}
        owner = next((branch for held, branch in inside if calls <= held), None)
        if owner is not None:
            found[group.name] = owner
    return found


def _inside(branch: Branch) -> set[fx.Node]:
    """The calls between the stream and the addition."""
    return _with_ancestors(branch.branch) - _with_ancestors(branch.skip)


def _with_ancestors(node: fx.Node) -> set[fx.Node]:
    found, waiting = set[fx.Node](), [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += current.all_input_nodes
    return found


def removal_factors(found: Mapping[str, float], temperature: float = _TEMPERATURE) -> dict[str, float]:
    """What each branch loses as a multiple of the mean: n softmax(-influence / temperature), one on average."""
    shares = torch.softmax(-torch.tensor(list(found.values()), dtype=torch.float64) / temperature, 0)
    return {name: float(share) * len(found) for name, share in zip(found, shares, strict=True)}


def scaled_removal(factors: Mapping[Axis, float]) -> Widths:
    """Widths at which a group loses its factor times one common share, at most everything. The common share exceeds 1
    where the least factor needs it to, so that a width of 0 leaves nothing of any group.
    """
    reach = max(1.0, *(1 / max(f, 1e-12) for f in factors.values()))

    def widths(width: float) -> dict[Axis, float]:
        removed = (1 - width) * reach
        return {axis: 1 - min(1.0, removed * factor) for axis, factor in factors.items()}

    return widths
