"""Plans at random, for tests of what must hold of any plan."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.passes.importance import top
from fxslim.passes.plan import Cut, Plan

__all__ = ["plan_of", "random_cut"]


def random_cut(group: Group, count: int, generator: torch.Generator, *, alike: bool = False) -> Cut:
    """Any `count` positions of a group; others for each position of its batch axes, unless `alike`."""
    shape = [] if alike else [int(a.size) for a in group.batch]
    return Cut.from_mask(group, top(torch.rand([*shape, group.size], generator=generator), count))


def plan_of(analysis: Analysis, cuts: Iterable[Cut]) -> Plan:
    """The plan of these cuts for a program."""
    return Plan(analysis.program.fingerprint(), tuple(cuts))
