"""Numbers in a graph that depend on shapes, recomputed from the axes.

A view's sizes, a slice's bounds, a group count: every such argument is owned by its operator's *literals* function,
which states it in terms of the rule's letters. Nothing is patched by pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx

from fxslim.graph.axes.analysis import Axes, CallAxes
from fxslim.graph.axes.registry import REGISTRY, Call, NewSizes
from fxslim.graph.axes.select import Selection
from fxslim.graph.axes.terms import Size

__all__ = ["literals_for", "new_literals", "replace_arguments"]


def new_literals(
    axes: Axes, call: CallAxes, selection: Selection, symbols: Mapping[sympy.Symbol, int] | None = None
) -> dict[str, Any]:
    """The arguments of a call that change under a selection, by the names of its schema.

    Sizes are integers, or expressions over the exporter's symbols where `symbols` does not give their values.
    """
    target = call.node.target
    entry = REGISTRY.get(target) if isinstance(target, torch._ops.OpOverload) else None
    if entry is None or entry.literals is None:
        return {}
    if not any(selection.touches((axes.terms.resolve(e),)) for e in call.letters.values()):
        return {}
    return literals_for(axes, call, selection, symbols)


def literals_for(
    axes: Axes, call: CallAxes, selection: Selection, symbols: Mapping[sympy.Symbol, int] | None = None
) -> dict[str, Any]:
    """All arguments of a call that its operator's literals function owns, also where the selection changes nothing."""
    entry = REGISTRY[call.node.target]  # type: ignore[index]
    assert entry.literals is not None
    sizes = {letter: _value(selection.size(axes.terms.resolve(e)), symbols) for letter, e in call.letters.items()}
    return dict(entry.literals(Call(call.node), NewSizes(sizes, call.rule)))


def _value(size: Size, symbols: Mapping[sympy.Symbol, int] | None) -> Size:
    return int(size.subs(dict(symbols))) if symbols and not isinstance(size, int) else size


def replace_arguments(
    node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`args` and `kwargs` with the arguments named in `new` replaced; -1 stays in lists of sizes."""
    if not new:
        return args, dict(kwargs)
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    names = [a.name for a in schema]
    listed = list(args)
    named = dict(kwargs)
    for name, value in new.items():
        index = names.index(name)
        if index < len(listed):
            listed[index] = _keep_open(listed[index], value)
        elif name in named or value != schema[index].default_value:  # writing down a default would change nothing
            named[name] = _keep_open(named.get(name), value)
    return tuple(listed), named


def _keep_open(old: Any, new: Any) -> Any:
    """In a list of sizes an old -1 (to be inferred) stays."""
    if isinstance(old, list | tuple) and isinstance(new, list):
        return [o if isinstance(o, int) and o == -1 else n for o, n in zip(old, new, strict=True)]
    return new
