"""First-order importance: how much the loss would change, to first order, if a position went (Molchanov 2019,
equation 7; LLM-Pruner, Ma 2023, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.select import accumulate
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program

__all__ = ["first_order", "self_loss"]


def first_order(analysis: Analysis, groups: Sequence[Group], batches: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """By group name the sum over the weights of a position of |sum of weight · gradient|: [*batch, size] float64.

    Raises:
        InputError: no output has a gradient, or one is not finite.
    """
    nodes, products = analysis.program.weight_nodes(), _products(analysis.program, batches)
    found = {}
    for group in groups:
        total = torch.zeros(group.shape, dtype=torch.float64)
        for name in dict.fromkeys(site.weight for site in group.sites):
            if name in products:
                total += accumulate(products[name], analysis.axes.dims(nodes[name]), group.axis, group.batch).abs()
        found[group.name] = total
    return found


def _products(program: Program, batches: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """weight · gradient of the mean loss, by name, in float64."""
    evaluator = Evaluator(program)
    weights = {n: program.weights[n].detach().clone() for n, w in program.info.items() if w.trainable}
    for name, weight in weights.items():
        evaluator.set_weight(name, weight.requires_grad_())
    for batch in batches:
        loss = self_loss(program, batch, _with_graph(evaluator, batch)) / len(batches)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
    found = {n: w.detach().double() * w.grad.double() for n, w in weights.items() if w.grad is not None}
    if not found:
        raise InputError("no output depends on a weight in a way that has a gradient", remedy="choose --importance obs")
    bad = next((n for n, v in found.items() if not bool(v.isfinite().all())), None)
    if bad is not None:
        raise InputError(f"the gradient of {bad!r} is not finite", remedy="check the calibration data for NaN")
    return found


def _with_graph(evaluator: Evaluator, batch: Sequence[Tensor]) -> list[Any]:
    """The outputs, which know how they came about."""
    environment = evaluator.bind(batch)
    with torch.enable_grad():
        for node in evaluator.program.graph.nodes:
            if node.op == "call_function":
                environment[node] = evaluator.compute(node, environment)
    return evaluator.outputs(environment)


def self_loss(program: Program, batch: Sequence[Tensor], outputs: Sequence[Any]) -> Tensor:
    """What is differentiated: of a causal language model the cross-entropy of its own text, of other logits that of the
    answer which the model gives, of anything else half the mean square."""
    named = dict(zip(program.output_names, outputs, strict=True))
    ids = dict(zip(program.input_names, batch, strict=True)).get("input_ids")
    logits = next((v for n, v in named.items() if "logits" in n and isinstance(v, Tensor)), None)
    if logits is not None and ids is not None and logits.shape[:-1] == ids.shape and ids.dim() == 2:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    if logits is not None:
        rows = logits.reshape(-1, logits.shape[-1])
        return F.cross_entropy(rows, rows.detach().argmax(-1))
    floats = [v for v in outputs if isinstance(v, Tensor) and v.is_floating_point() and v.requires_grad]
    return sum((v.square().mean() / 2 for v in floats), start=torch.zeros(()))
