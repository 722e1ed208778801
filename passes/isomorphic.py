"""Residual branches of equal structure: the same operators on the same shapes, whatever their weights are called.

Two branches are compared from their results upwards, call by call, down to the values that they branch off from. What
a branch reads besides (a mask, a table of rotations, a cache) is the same value, or was computed in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx

from fxslim.graph.axes.weights import weight_like
from fxslim.graph.program import Program
from fxslim.passes.drop_branches import Branch, find_branches

__all__ = ["neighbours", "same_places"]


def neighbours(program: Program) -> list[list[Branch]]:
    """Residual branches of equal structure along one stream, in the order of the graph, two or more in each list:
    attention with the next attention, whatever stands between them."""
    stream: dict[fx.Node, int] = {}
    kinds: list[tuple[int, list[Branch]]] = []
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for branch in find_branches(program):
        above = set(_reached(branch.skip, upwards=True))
        before = [add for add in stream if add in above]
        own = stream[max(before, key=order.__getitem__)] if before else len(stream)
        stream[branch.add] = own
        known = (run for of, run in kinds if of == own and same_places(program, run[-1], branch) is not None)
        run = next(known, None)
        if run is None:
            kinds.append((own, [branch]))
        else:
            run.append(branch)
    return [run for _, run in kinds if len(run) > 1]


def same_places(program: Program, first: Branch, second: Branch) -> dict[str, str] | None:
    """The weights of `second` -> those that stand in their places in `first`, where they are not the same already; None
    where the structures differ. Weights that something else than the branch reads as well are left out."""
    places = _places(first, second)
    if places is None:
        return None
    weights, behind = weight_like(program.graph), set(_reached(second.skip, upwards=False))
    inside = {node for node in places if node in behind or node in weights}
    return {
        str(node.target): str(other.target)
        for node, other in places.items()
        if node.op == "get_attr" and node is not other and inside.issuperset(node.users)
    }


def _places(first: Branch, second: Branch) -> dict[fx.Node, fx.Node] | None:
    """The nodes that `second` is computed by -> those in their places in `first`, one to one; None where there are
    none."""
    found: dict[fx.Node, fx.Node] = {}
    taken: set[fx.Node] = set()
    open_pairs = [(second.branch, first.branch)]
    while open_pairs:
        node, other = open_pairs.pop()
        if found.get(node) is other:
            continue
        if node in found or other in taken or (node is second.skip) != (other is first.skip):
            return None
        found[node] = other
        taken.add(other)
        if node is other or node is second.skip:
            continue
        if _shallow(node) != _shallow(other):
            return None
        open_pairs += zip(_operands(node), _operands(other), strict=True)
    return found


def _shallow(node: fx.Node) -> tuple[Any, ...]:
    """What is equal for two nodes in the same place: operator, arguments but for the nodes among them, shape and type
    of the value."""
    target = node.target if node.op == "call_function" else None
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda _: "%")
    return node.op, target, args, kwargs, _form(node.meta.get("val"))


def _operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, each as often as it stands there."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, dict(node.kwargs)), found.append)
    return found


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)}"
    return ",".join(map(_form, value)) if isinstance(value, list | tuple) else str(value)


def _reached(node: fx.Node, *, upwards: bool) -> Iterator[fx.Node]:
    """A node and all that it is computed from, or all that is computed from it."""
    seen, stack = {node}, [node]
    while stack:
        current = stack.pop()
        yield current
        new = [n for n in (current.all_input_nodes if upwards else current.users) if n not in seen]
        seen.update(new)
        stack += new
