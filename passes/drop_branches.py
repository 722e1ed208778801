"""The drop-branches pass: residual branches are left out whole, x + f(x) becomes x.

Blocks that hardly turn their input can go (Men 2024, ShortGPT). The influence of a branch is 1 - E[cos(x, x + f(x))].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError, VerifyError
from fxslim.graph.evaluate import Environment, Evaluator
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.graph.verify import verify
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.same import relative_difference
from fxslim.passes.statistics import CalibrationWalk

__all__ = ["Branch", "DropBranches", "find_branches", "influences"]

aten = torch.ops.aten
_IMAGES, _CHANNELS = 4, 1  # dimensions of a batch of images, and which are the channels
TOLERANCE = 1e-9  # relative, in float64


@dataclass(frozen=True)
class Branch:
    """An addition of a value and of what was computed from it."""

    add: fx.Node
    skip: fx.Node
    branch: fx.Node


@dataclass(frozen=True)
class DropBranches(Pass):
    """Leaves residual branches out, named by their additions. The result is what the original computes with the
    branches' values set to zero."""

    name: ClassVar[str] = "drop-branches"
    preserves: ClassVar[bool] = False
    adds: tuple[str, ...]

    def requires(self, analysis: Analysis) -> None:
        """Every name is that of an addition of a residual branch.

        Raises:
            InputError: one is not.
        """
        known = {b.add.name for b in find_branches(analysis.program)}
        for name in self.adds:
            if name not in known:
                shown = ", ".join(sorted(known)) or "this program has none"
                raise InputError(f"{name!r} is no addition of a residual branch", remedy=f"there are: {shown}")

    def apply(self, analysis: Analysis) -> PassResult:
        """The program without the branches and without the weights that only they read."""
        rewriter = Rewriter(analysis.program, self.name)
        copies = rewriter.copies(analysis.axes)
        for branch in find_branches(analysis.program):
            if branch.add.name in self.adds:
                rewriter.replace(copies[branch.add], rewriter.now(copies[branch.skip]))
        rewriter.sweep()
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed, keeps its interface, and is the original with zeros for the branches (float64)."""
        verify(result, original)
        zeroed = _Zeroed(original, {b.add for b in find_branches(original) if b.add.name in self.adds})
        inputs = original.example_inputs
        for name, wanted, got in zip(
            original.output_names, zeroed.run(inputs), Evaluator(result, dtype=torch.float64).run(inputs), strict=True
        ):
            if isinstance(wanted, Tensor) and relative_difference(wanted, got) > TOLERANCE:
                raise VerifyError(f"the output {name!r} is not that of the original with zeros for the branches")


class _Zeroed(Evaluator):
    """The program with zeros for the values of some calls where they are added."""

    def __init__(self, program: Program, adds: set[fx.Node]) -> None:
        super().__init__(program, dtype=torch.float64)
        self._adds = {b.add: b for b in find_branches(program) if b.add in adds}

    def compute(self, node: fx.Node, env: Environment) -> Any:
        """The value of one node."""
        branch = self._adds.get(node)
        return super().compute(node, env) if branch is None else self.value(branch.skip, env) + 0


def find_branches(program: Program) -> list[Branch]:
    """The residual branches of a program, in its order: both terms of one shape, one computed from the other by way of
    weights."""
    ancestors: dict[fx.Node, frozenset[fx.Node]] = {}
    found = []
    for node in program.graph.nodes:
        inputs = node.all_input_nodes
        ancestors[node] = frozenset(inputs).union(*(ancestors[i] for i in inputs))
        if node.target is not aten.add.Tensor or len(inputs) != 2 or node.kwargs.get("alpha", 1) != 1:
            continue
        a, b = inputs
        values = [i.meta.get("val") for i in (a, b, node)]
        if not all(isinstance(v, Tensor) and v.is_floating_point() and v.shape == values[0].shape for v in values):
            continue
        for skip, branch in ((a, b), (b, a)):
            between = (ancestors[branch] | {branch}) - ancestors[skip] - {skip}
            by_weights = any(i.op == "get_attr" for n in between for i in n.all_input_nodes)
            if skip in ancestors[branch] and by_weights and skip.meta["val"].dtype == node.meta["val"].dtype:
                found.append(Branch(node, skip, branch))
    return found


def influences(program: Program, branches: Sequence[Branch], batches: Sequence[Sequence[Tensor]]) -> dict[str, float]:
    """1 - E[cos(x, x + f(x))] by name of the addition, over the last dimension, of images over the channels."""
    walk, found = CalibrationWalk(Evaluator(program), batches), dict[str, float]()
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for branch in sorted(branches, key=lambda b: order[b.add]):
        walk.advance_to(branch.add)
        pairs = zip(walk.values(branch.skip), walk.values(branch.branch), strict=True)
        dim = _CHANNELS if branch.add.meta["val"].dim() == _IMAGES else -1
        cosines = (F.cosine_similarity(x.double(), (x + f).double(), dim=dim) for x, f in pairs)
        total, count = walk.total(torch.stack([c.sum(), c.new_tensor(c.numel())]) for c in cosines)
        found[branch.add.name] = float(1 - total / count)
    return found
