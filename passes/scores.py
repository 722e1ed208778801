"""Importances from elsewhere: functions that score the positions of a group, by the names that plans know them by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.errors import FxslimError, InputError

__all__ = ["SCORES", "Score", "Scored", "add_score", "scored_elsewhere"]

Score = Callable[[Analysis, Group, Sequence[Sequence[Tensor]] | None], Tensor]
"""`score(analysis, group, batches)`: [*batch, size], larger is more important. `batches` are flat inputs, or None."""

_DEFECT = "this is a defect of the plug-in that has it"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Scored:
    """An importance from elsewhere, and whether it has nothing to go by without calibration data."""

    name: str
    score: Score
    needs_data: bool = False


SCORES: dict[str, Scored] = {}


def add_score(made: Scored, *, taken: Sequence[str] = (), replace: bool = False) -> None:
    """Makes an importance from elsewhere known by its name. Those of the package (`taken`) keep theirs.

    Raises:
        InputError: the name is not in kebab case or is taken, or the score cannot be called.
    """
    if not _NAME.fullmatch(made.name):
        raise InputError(f"an importance is called {made.name!r}", remedy="lower case, words joined by hyphens")
    if not callable(made.score):
        raise InputError(f"the importance {made.name!r} cannot be called: {made.score!r}")
    if made.name in taken:
        raise InputError(
            f"the importance {made.name!r} is one of fxslim's own", remedy="choose another name: papers refer to these"
        )
    if made.name in SCORES and not replace:
        raise InputError(
            f"there is an importance {made.name!r} already", at=SCORES[made.name].score.__module__,
            remedy="choose another name, or say replace=True if yours is to be used instead",
        )  # fmt: skip
    SCORES[made.name] = made


def scored_elsewhere(name: str, analysis: Analysis, group: Group, batches: Sequence[Sequence[Tensor]] | None) -> Tensor:
    """The scores that a registered importance gives a group: [*batch, size] float64.

    Raises:
        InputError: the function fails, or its scores have another shape, or one of them is not finite.
    """
    try:
        scores = SCORES[name].score(analysis, group, batches)
    except FxslimError:
        raise
    except Exception as error:  # foreign code raises anything
        raise InputError(
            f"the importance {name!r} failed: {type(error).__name__}: {error}", at=group.name, remedy=_DEFECT
        ) from error
    wrong = None
    if not isinstance(scores, Tensor) or tuple(scores.shape) != tuple(group.shape):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        wrong = f"{got} instead of scores of shape {tuple(group.shape)}"
    elif not bool(torch.isfinite(scores).all()):
        wrong = "scores that are not finite"
    if wrong is not None:
        raise InputError(f"the importance {name!r} gave {wrong}", at=group.name, remedy=_DEFECT)
    return scores.detach().double()
