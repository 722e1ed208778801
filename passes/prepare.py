"""Preparation: passes that preserve the numerics and open a program to more cuts, before anything is planned."""

from __future__ import annotations

from collections.abc import Sequence

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.passes.base import Pass
from fxslim.passes.fold import FoldConstants
from fxslim.passes.split import SplitFused

__all__ = ["ALWAYS", "PREPARATIONS", "SPLIT", "preparations_of", "prepare"]

PREPARATIONS: dict[str, type[Pass]] = {FoldConstants.name: FoldConstants, SplitFused.name: SplitFused}
ALWAYS, SPLIT = (FoldConstants.name,), SplitFused.name


def prepare(program: Program | Analysis, names: Sequence[str] = ALWAYS) -> Analysis:
    """The analysis of the prepared program; of the program itself where the passes change nothing.

    Raises:
        InputError: there is no such preparation.
    """
    analysis = program if isinstance(program, Analysis) else analyze(program)
    for name in names:
        if name not in PREPARATIONS:
            raise InputError(f"there is no preparation {name!r}", remedy=f"there are {', '.join(PREPARATIONS)}")
        result = PREPARATIONS[name]()(analysis)
        if result.modified:
            analysis = analyze(result.program)
    return analysis


def preparations_of(program: Program) -> tuple[str, ...]:
    """The preparations that a program went through, in order: those that a plan for it has to repeat."""
    return tuple(name for name in program.history if name in PREPARATIONS)
