"""Preparation: passes that come before the cuts of a plan. All preserve the numerics and open a program to more cuts,
but for two, which leave residual branches out and let them share weights."""

from __future__ import annotations

from collections.abc import Sequence

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.program import Program
from fxslim.passes.base import Pass
from fxslim.passes.drop_branches import DropBranches
from fxslim.passes.factorise import Factorise
from fxslim.passes.fold import FoldConstants
from fxslim.passes.fold_norms import FoldNorms
from fxslim.passes.share_branches import ShareBranches
from fxslim.passes.spec import parse_pass, spec_name
from fxslim.passes.split import SplitFused

__all__ = ["ALWAYS", "PREPARATIONS", "SPLIT", "preparations_of", "prepare"]

_PASSES: tuple[type[Pass], ...] = (FoldConstants, SplitFused, FoldNorms, Factorise, DropBranches, ShareBranches)
PREPARATIONS: dict[str, type[Pass]] = {kind.name: kind for kind in _PASSES}
ALWAYS, SPLIT = (FoldConstants.name,), SplitFused.name


def prepare(program: Program | Analysis, names: Sequence[str] = ALWAYS) -> Analysis:
    """The analysis of the prepared program; of the program itself where the passes change nothing.

    `names` are passes as text, options included: `factorise{weights=a.weight+b.weight}`. One with options that the
    program has gone through already is not repeated: the weights that it names are gone.

    Raises:
        InputError: there is no such preparation, its text is malformed, or it cannot be applied to this program.
    """
    analysis = program if isinstance(program, Analysis) else analyze(program)
    done = {text for text in analysis.program.history if text != spec_name(text)}
    steps = [parse_pass(name, PREPARATIONS) for name in names]
    for step in steps:
        if step.spec() in done:
            continue
        result = step(analysis)
        if result.modified:
            analysis = analyze(result.program)
    return analysis


def preparations_of(program: Program) -> tuple[str, ...]:
    """The preparations that a program went through, in order and with their options: those that a plan for it has to
    repeat."""
    return tuple(text for text in program.history if spec_name(text) in PREPARATIONS)
