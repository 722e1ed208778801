"""The share-branches pass: residual branches of equal structure use one set of weights (Liu 2024, FoldGPT).

Matrices and larger tensors are shared; vectors (biases, scales and shifts of norms) stay each branch's own. Every
branch is still computed: the program holds fewer numbers and takes as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError, VerifyError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program, Weight
from fxslim.graph.rewriter import Rewriter
from fxslim.graph.verify import verify
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.drop_branches import Branch, find_branches
from fxslim.passes.isomorphic import same_places
from fxslim.passes.same import relative_difference
from fxslim.passes.spec import parse_pass, spec_name

__all__ = ["ShareBranches", "before_sharing", "replaced_by", "shared_weights", "sharing_steps"]

TOLERANCE = 1e-9  # relative, in float64


@dataclass(frozen=True)
class ShareBranches(Pass):
    """Lets residual branches, named by their additions, use the weights of the first one named. The result is what the
    original computes with the others' matrices replaced by the first's; the names of those remain as aliases."""

    name: ClassVar[str] = "share-branches"
    preserves: ClassVar[bool] = False
    adds: tuple[str, ...]

    def requires(self, analysis: Analysis) -> None:
        """Every name is that of an addition of a residual branch, all have the same structure and something to share.

        Raises:
            InputError: else.
        """
        shared_weights(analysis.program, self.adds)

    def apply(self, analysis: Analysis) -> PassResult:
        """The program in which each shared weight is one, read in several places."""
        rewriter = Rewriter(analysis.program, self.name)
        for other, kept in shared_weights(analysis.program, self.adds).items():
            rewriter.tie(kept, other)
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed, keeps its interface, and is the original with weights replaced (float64)."""
        verify(result, original)
        replaced = Evaluator(original, dtype=torch.float64)
        for other, kept in shared_weights(original, self.adds).items():
            replaced.set_weight(other, original.weights[kept])
        inputs = original.example_inputs
        for name, wanted, got in zip(
            original.output_names, replaced.run(inputs), Evaluator(result, dtype=torch.float64).run(inputs), strict=True
        ):
            if isinstance(wanted, Tensor) and relative_difference(wanted, got) > TOLERANCE:
                raise VerifyError(
                    f"the output {name!r} is not that of the original with the branches' weights replaced"
                )


def shared_weights(program: Program, adds: Sequence[str]) -> dict[str, str]:
    """The weights that go -> those that are used instead, when branches share the weights of the first one named.

    Raises:
        InputError: there are no two branches, one is no residual branch, they differ in structure, or there is nothing
            to share.
    """
    known = {b.add.name: b for b in find_branches(program)}
    for name in adds:
        if name not in known:
            shown = ", ".join(known) or "this program has none"
            raise InputError(f"{name!r} is no addition of a residual branch", remedy=f"there are: {shown}")
    if len(set(adds)) < max(2, len(adds)):
        raise InputError("weights are shared by two branches or more, each named once", remedy="name their additions")
    found: dict[str, str] = {}
    for name in adds[1:]:
        replaced = replaced_by(program, known[adds[0]], known[name])
        if not replaced:
            why = "differs in structure" if replaced is None else "has no matrix of its own"
            raise InputError(f"{name!r} cannot use the weights of {adds[0]!r}: it {why}", remedy="name other branches")
        found |= replaced
    return found


def replaced_by(program: Program, first: Branch, second: Branch) -> dict[str, str] | None:
    """The matrices of `second` -> those of `first` in their places; None where the structures differ."""
    places = same_places(program, first, second)
    info = program.info
    return places and {n: kept for n, kept in places.items() if _is_shared(info, n) and _is_shared(info, kept)}


def _is_shared(info: Mapping[str, Weight], name: str) -> bool:
    return info[name].trainable and sum(size > 1 for size in info[name].shape) > 1


def before_sharing(preparations: Sequence[str]) -> tuple[str, ...]:
    """The preparations, as text, but for those that share weights."""
    return tuple(text for text in preparations if spec_name(text) != ShareBranches.name)


def sharing_steps(preparations: Sequence[str]) -> list[ShareBranches]:
    """The preparations that share weights."""
    known = {ShareBranches.name: ShareBranches}
    return [parse_pass(text, known) for text in preparations if spec_name(text) == ShareBranches.name]
