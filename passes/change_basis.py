"""The change-basis pass: axes on which any basis will do are given the one in which cutting costs least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fxslim.graph.axes.fibres import transformed
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.basis import Basis
from fxslim.passes.same import verify_same_function
from fxslim.passes.subspaces import Subspace

__all__ = ["ChangeBasis"]


@dataclass(frozen=True)
class ChangeBasis(Pass):
    """Rewrites the weights that make an axis and those that read it in new coordinates. The numerics are preserved."""

    name: ClassVar[str] = "change-basis"
    groups: str  # names of the groups, joined with +
    subspaces: tuple[Subspace, ...] = field(repr=False)
    bases: Mapping[str, Basis] = field(repr=False)  # by group name

    def apply(self, analysis: Analysis) -> PassResult:
        """The same graph with other weights."""
        rewriter = Rewriter(analysis.program, self.name)
        nodes = analysis.program.weight_nodes()
        for subspace in self.subspaces:
            basis, group = self.bases[subspace.group.name], subspace.group
            for name in dict.fromkeys(name for name, _, _ in subspace.weights):
                matrices = {
                    dim: basis.backward.mT if reads else basis.forward
                    for own, dim, reads in subspace.weights
                    if own == name
                }
                old = rewriter.program.weights[name]
                new = transformed(old, analysis.axes.dims(nodes[name]), group.axis, group.batch, matrices)
                rewriter.set_weight(name, new.contiguous())
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed, keeps its interface and computes the same."""
        verify_same_function(result, original)
