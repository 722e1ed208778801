"""What the command line accepts as MODEL: whatever `load_model` takes, and slim programs that were saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.graph.serialize import is_saved_program, load
from fxslim.passes.prepare import ALWAYS, SPLIT, prepare
from fxslim.sources import Source, load_model, refuse_bad_weights

__all__ = ["SLIM", "SavedSource", "open_model", "prepared", "saved_program"]

SLIM = "slim"
"""Name of the folder that holds the slim program inside a result of `fxslim slim`."""


@dataclass(frozen=True, eq=False)
class SavedSource(Source):
    """A saved program. It has no tokenizer and no task: data for it are arrays."""

    saved: Program | None = None

    @property
    def program(self) -> Program:
        """The program as it was loaded; clone it before rewriting."""
        assert self.saved is not None
        return self.saved


def saved_program(path: str | Path) -> Path | None:
    """The directory of the saved program at `path` (such a directory, or a result of `fxslim slim`), or None."""
    root = Path(path).expanduser()
    return next((place for place in (root, root / SLIM) if is_saved_program(place)), None)


def open_model(
    model: str, *, trust_pt2: bool = False, trust_remote_code: bool = False, dtype: str | None = None,
    task: str | None = None, stream: bool = False,
) -> Source:  # fmt: skip
    """The Source that `model` names. With `stream` its weights stay on disk, see `load_model`.

    Raises:
        InputError: nothing usable has this name, or loading it would run code that is not trusted.
    """
    place = saved_program(model)
    if place is None:
        return load_model(
            model, trust_pt2=trust_pt2, trust_remote_code=trust_remote_code, dtype=dtype, task=task, stream=stream
        )
    if task is not None:
        raise InputError("a saved program keeps its inputs", at=str(place), remedy="leave --task out")
    if dtype is not None:
        raise InputError("a saved program keeps its type", at=str(place), remedy="leave --dtype out")
    program = load(place, stream=stream)
    source = SavedSource(name=model, module=program.root(placeholders=True), saved=program)
    if not stream:
        refuse_bad_weights(source)
    return source


def prepared(
    program: Program, names: Sequence[str] | None = None, *, split_fused: bool = False, further: Sequence[str] = ()
) -> Analysis:
    """The analysis of a program prepared by the passes `names` (those of a plan), by default by those that always help,
    and by `further` ones that were asked for.

    Raises:
        InputError: there is no such preparation.
    """
    if names is None:
        names = (*ALWAYS, SPLIT) if split_fused else ALWAYS
    return prepare(program, (*names, *further))
