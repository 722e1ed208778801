"""The contract of passes: `requires -> apply -> ensures(result)`; what was modified is counted by the rewriter."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import VerifyError
from fxslim.graph.program import Program
from fxslim.passes.spec import printed, spec_name

__all__ = ["Pass", "PassResult"]

DUMP = "FXSLIM_DUMP"  # a directory: the graph is written there after every pass


@dataclass(frozen=True)
class PassResult:
    """A new program and what was edited to make it."""

    program: Program
    edits: Counter[str]

    @property
    def modified(self) -> bool:
        """Whether anything was changed."""
        return bool(self.edits)


class Pass(ABC):
    """A step from a program to a program. Subclasses are frozen dataclasses whose fields are their options."""

    name: ClassVar[str]
    preserves: ClassVar[bool] = True  # whether the result computes what the program computed, to rounding

    def requires(self, analysis: Analysis) -> None:
        """Raises if the pass cannot be applied."""
        return

    @abstractmethod
    def apply(self, analysis: Analysis) -> PassResult:
        """The result, made through a `Rewriter`; the program analysed is left as it is."""

    @abstractmethod
    def ensures(self, result: Program, original: Program) -> None:
        """Raises `VerifyError` if the result does not hold what the pass promises."""

    def __call__(self, analysis: Analysis) -> PassResult:
        """Checks, applies, verifies."""
        self.requires(analysis)
        result = self.apply(analysis)
        if not isinstance(result, PassResult):
            raise VerifyError(f"the pass {self.name!r} returned {type(result).__name__}", remedy="return a PassResult")
        self.ensures(result.program, analysis.program)
        result.program.history.append(self.spec())
        _dump(result.program)
        return result

    def spec(self) -> str:
        """The pass as text: `name{option=value}` for options that print shortly. See `fxslim.passes.spec`."""
        values = {f.name: printed(getattr(self, f.name)) for f in fields(self)}  # type: ignore[arg-type]
        short = [f"{name}={value}" for name, value in values.items() if value is not None]
        return self.name + (f"{{{','.join(short)}}}" if short else "")


def _dump(program: Program) -> None:
    directory = os.environ.get(DUMP)
    if directory:
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        number = len(program.history)
        file = path / f"{number:02}_after_{spec_name(program.history[-1])}.txt"
        file.write_text(str(program.graph) + "\n", encoding="utf-8")
