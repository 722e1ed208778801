"""What the sweep needs to know of a model: how to build it small, how to call it, which dimensions are dynamic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Build", "Case"]


@dataclass(frozen=True)
class Case:
    """A model in evaluation mode with random weights and one call of it.

    `dims` names dynamic dimensions by argument, as `fxslim.capture` takes them: `{"input_ids": {0: "batch"}}` for
    keyword arguments, a tuple for positional ones. `static` says why none are dynamic where that is so.
    """

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dims: Any = None
    static: str = ""


Build = Callable[[], Case]
