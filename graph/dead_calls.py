"""Calls whose value nothing reads."""

from __future__ import annotations

import torch
from torch import fx

__all__ = ["remove_dead_calls"]


def remove_dead_calls(graph: fx.Graph) -> None:
    """Erases what nothing reads and what does nothing but return a value: weights too, but no inputs.

    torch counts attention as a call with an effect, for it may draw a dropout: what nobody reads draws for nobody.
    """
    graph.eliminate_dead_code(is_impure_node=_has_effect)


def _has_effect(node: fx.Node) -> bool:
    target = node.target
    if node.op == "call_function" and isinstance(target, torch._ops.OpOverload):
        draws = torch.Tag.nondeterministic_seeded in target.tags
        return target._schema.is_mutable if draws else node.is_impure()
    return node.is_impure()
