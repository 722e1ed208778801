"""The change-basis pass: axes on which any basis will do are given the one in which cutting costs least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import ClassVar

from fxslim.graph.axes.fibres import transformed
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.basis import Basis
from fxslim.passes.caches import CacheMoves
from fxslim.passes.same import random_inputs, verify_outputs, verify_same_function
from fxslim.passes.spec import named_in, spec_name
from fxslim.passes.subspaces import Subspace

__all__ = ["ChangeBasis", "bases_of"]


@dataclass(frozen=True)
class ChangeBasis(Pass):
    """Rewrites the weights that make an axis and those that read it in new coordinates. The numerics are preserved;
    what a cache holds, in the example inputs too, is in new coordinates as well."""

    name: ClassVar[str] = "change-basis"
    groups: tuple[str, ...]  # names, so that the history of the program tells
    subspaces: tuple[Subspace, ...] = field(repr=False)  # of these groups
    bases: Mapping[str, Basis] = field(repr=False)  # by group name

    @staticmethod
    def of(subspaces: Sequence[Subspace], bases: Mapping[str, Basis]) -> ChangeBasis:
        """The pass for these subspaces."""
        return ChangeBasis(tuple(s.group.name for s in subspaces), tuple(subspaces), bases)

    def apply(self, analysis: Analysis) -> PassResult:
        """The same graph with other weights."""
        rewriter = Rewriter(analysis.program, self.name)
        nodes = analysis.program.weight_nodes()
        for subspace in self.subspaces:
            basis, group = self.bases[subspace.group.name], subspace.group
            for name in dict.fromkeys(name for name, _, _ in subspace.weights):
                matrices = {dim: basis.matrix(reads) for own, dim, reads in subspace.weights if own == name}
                old = rewriter.program.weights[name]
                new = transformed(old, analysis.axes.dims(nodes[name]), group.axis, group.batch, matrices)
                rewriter.set_weight(name, new.contiguous())
        moves = CacheMoves.of(analysis.program, self.subspaces, self.bases)
        if moves is not None:
            rewriter.program.example_inputs = tuple(moves.inputs(analysis.program.example_inputs))
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed, keeps its interface and computes the same; where it has caches also on random
        ones, which examples of zeros would hide."""
        moves = CacheMoves.of(original, self.subspaces, self.bases)
        verify_same_function(result, original, moves=moves)
        if moves is not None:
            verify_outputs(result, original, random_inputs(original), moves)


def bases_of(program: Program) -> frozenset[str]:
    """The groups of a program that have been given the basis in which cutting costs least, and nothing since: a slim
    program is another one, whose bases are still to come."""
    specs = takewhile(lambda text: spec_name(text) == ChangeBasis.name, reversed(program.history))
    return frozenset(name for text in specs for name in named_in(text))
