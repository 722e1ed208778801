"""Which values of a graph are weights: read, computed from weights alone, or chosen among them by index."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

__all__ = ["STACK", "chosen_weights", "weight_like"]

aten = torch.ops.aten
STACK = 3  # dimensions of matrices one after the other


def weight_like(graph: fx.Graph) -> dict[fx.Node, frozenset[str]]:
    """Nodes whose value depends on weights alone -> the names of those weights."""
    found: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found[node] = frozenset({str(node.target)})
        elif node.op == "call_function" and node.all_input_nodes and all(n in found for n in node.all_input_nodes):
            found[node] = frozenset().union(*(found[n] for n in node.all_input_nodes))
    return found


def chosen_weights(graph: fx.Graph, weights: Mapping[fx.Node, frozenset[str]]) -> dict[fx.Node, frozenset[str]]:
    """Nodes that hold matrices chosen by index among stacked weights (the experts of a mixture), and their views.

    A row chosen from a table (an embedding) is an activation: only stacks of matrices count.
    """
    found: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            continue
        if node.target in (aten.index.Tensor, aten.index_select.default) and source in weights:
            if source.meta["val"].dim() >= STACK:
                found[node] = weights[source]
        elif source in found and len(node.all_input_nodes) == 1:
            found[node] = found[source]
    return found
