"""The prune pass: a plan becomes a smaller program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import PlanError
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.graph.stores import entry_in
from fxslim.graph.verify import verify
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.change_basis import bases_of
from fxslim.passes.plan import Plan

__all__ = ["Prune"]


@dataclass(frozen=True)
class Prune(Pass):
    """Removes what the plan does not keep: weights are sliced, shape constants recomputed, every shape derived
    again."""

    name: ClassVar[str] = "prune"
    plan: Plan
    restored: Mapping[str, Tensor] | None = None  # weights at their full width, refitted before they are sliced

    def requires(self, analysis: Analysis) -> None:
        """The plan was made for this program and names groups that may be cut; those of which it keeps a subspace
        are in the basis that it means."""
        self.plan.selection(analysis)
        if missing := [name for name in self.plan.subspaces if name not in bases_of(analysis.program)]:
            raise PlanError(
                f"the plan keeps subspaces of {len(missing)} groups, {missing[0]!r} first, whose bases are not known",
                rule="a basis comes from calibration data",
                remedy="give the calibration data that the plan was made with",
            )

    def apply(self, analysis: Analysis) -> PassResult:
        """The slim program."""
        rewriter = Rewriter(analysis.program, self.name)
        restored = self.restored or {}
        for name in restored:
            rewriter.set_weight(name, entry_in(restored, name))
        rewriter.slice(analysis.axes, self.plan.selection(analysis))
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed and keeps its interface (caches may shrink)."""
        verify(result, original)
