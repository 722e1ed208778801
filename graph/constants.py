"""Numbers that are read out of constant tensors become literals, and with them the sizes that depend on them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx

from fxslim.graph.dead_calls import remove_dead_calls
from fxslim.graph.errors import AnalysisError, VerifyError
from fxslim.graph.evaluate import Environment, Evaluator
from fxslim.graph.program import Program
from fxslim.graph.rewriter import evaluate_fake, fake_mode

__all__ = ["fold_items"]

aten = torch.ops.aten

_ITEMS = (aten.item.default, aten._local_scalar_dense.default)


def fold_items(program: Program, literals: Collection[str] = ()) -> None:
    """Replaces, in place, every `item` of a tensor that depends on no input and on no weight but `literals`,
    the tensors that are written into the code of the model, by its value.

    The exporter gives such a number a symbol of its own, since it never looks into tensors: what is as long as it says
    (a table of distances from `positions[0]` to `positions[-1]`) has a size that nothing can be compared with. Where
    the shapes cannot be derived from the numbers, all stays as it was.
    """
    changed = program.clone()
    values = _values(changed, literals)
    if not values:
        return
    try:
        _propagate(changed, values)
    except VerifyError:
        return
    remove_dead_calls(changed.graph)
    changed.graph.lint()
    program.graph = changed.graph


def _values(program: Program, literals: Collection[str]) -> dict[fx.Node, Any]:
    """The numbers that are known, by the node that reads them."""
    constant: set[fx.Node] = set()
    for node in program.graph.nodes:
        if (node.op == "call_function" and _is_pure(node) and constant.issuperset(node.all_input_nodes)) or (
            node.op == "get_attr" and node.target in literals and not program.weights[str(node.target)].is_meta
        ):
            constant.add(node)
    items = [node for node in program.graph.nodes if node.target in _ITEMS and node in constant]
    needed, stack = set[fx.Node](), [*items]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    evaluator = Evaluator(program)
    environment: Environment = {}
    try:
        for node in program.graph.nodes:
            if node in needed and node.op == "call_function":
                environment[node] = evaluator.compute(node, environment)
    except AnalysisError:
        return {}
    return {node: environment[node] for node in items}


def _is_pure(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def _propagate(program: Program, values: dict[fx.Node, Any]) -> None:
    """Writes the numbers where they are used, and derives anew all that depends on them."""
    touched: set[fx.Node] = set()
    with fake_mode(program):
        for node in list(program.graph.nodes):
            if node.op != "call_function":
                continue
            if node in values:
                value = values[node]
            elif node in touched:
                value = evaluate_fake(node)
            else:
                continue
            touched |= set(node.users)
            node.meta["val"] = value
            if isinstance(value, int | float):
                _write(node, value)


def _write(node: fx.Node, value: float) -> None:
    """`value` in place of a node, which is dead then."""
    for user in list(node.users):
        user.args, user.kwargs = pytree.tree_map_only(
            fx.Node, lambda n: value if n is node else n, (user.args, user.kwargs)
        )
