"""The topologies of the public test suites of pruning tools, as own modules: see `CASES`.

Those suites assert that a forward pass runs. Here each module comes with the axes that a person reading it would call
prunable, so that over-caution fails too, and many with the cut module written by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.capture import capture
from tests.models import peers_blocks, peers_conv, peers_dense
from tests.models.peers_case import Case, alive

__all__ = ["CASES", "Peer", "peer"]

CASES: dict[str, Case] = {**peers_conv.CASES, **peers_blocks.CASES, **peers_dense.CASES}


@dataclass(frozen=True)
class Peer:
    """A captured case."""

    case: Case
    model: nn.Module
    inputs: tuple[Tensor, ...]
    analysis: Analysis

    @property
    def groups(self) -> list[Group]:
        """The groups that have something to lose."""
        return [g for g in self.analysis.prunable if g.size > 1]

    @property
    def refused(self) -> bool:
        """Whether the case's operator is one that the analysis does not know."""
        return self.case.refusal in self.analysis.unknown_ops

    @property
    def expected(self) -> list[tuple[str, str, int]]:
        """(key, site, size) of every group that the case names."""
        return [
            (f"{site}:{size}" if isinstance(sizes, tuple) else site, site, size)
            for site, sizes in self.case.groups.items()
            for size in (sizes if isinstance(sizes, tuple) else (sizes,))
        ]

    def named(self) -> dict[str, Group]:
        """The groups by the keys of the case. A key of two groups of one size names either.

        Raises:
            AssertionError: a group that the case names is not prunable, or one is that it does not name.
        """
        rest, found = self.groups, {}
        for key, site, size in self.expected:
            fitting = [g for g in rest if g.size == size and site in {f"{s.weight}[{s.dim}]" for s in g.sites}]
            assert fitting, f"{key} of size {size} should be prunable"
            rest.remove(fitting[0])
            found[key] = fitting[0]
        assert not rest, f"also prunable: {[g.name for g in rest]}"
        return found


@cache
def peer(name: str) -> Peer:
    """A case with weights that leave nothing dead; captured once, so nobody may change it."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    case = CASES[name]
    model = alive(case.build())
    inputs = tuple(make() for make in case.inputs)
    analysis = analyze(capture(model, inputs))
    torch.random.set_rng_state(state)
    return Peer(case, model, inputs, analysis)
