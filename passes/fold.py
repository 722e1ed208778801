"""The fold-constants pass: what depends on weights alone is computed once, at compile time."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from fxslim.graph.axes.analysis import Axes
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.notation import Kind
from fxslim.graph.axes.weights import weight_like
from fxslim.graph.evaluate import Environment, Evaluator
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.same import verify_same_function

__all__ = ["FoldConstants", "weight_value"]


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replaces computations over weights alone by their value where that is no larger than the weights.

    Weight normalisation, weight standardisation and spectral norms run over the inputs of a layer; folded, each row is
    a plain weight again and its columns can be cut exactly. The numerics are preserved.
    """

    name: ClassVar[str] = "fold-constants"

    def apply(self, analysis: Analysis) -> PassResult:
        """The program with folded weights, called `<weight>_folded`."""
        rewriter = Rewriter(analysis.program, self.name)
        copies, roots = rewriter.copies(analysis.axes), weight_like(analysis.program.graph)
        for node in analysis.program.graph.nodes:
            if node in roots and self._worth_it(analysis.axes, node, roots):
                value = weight_value(analysis.program, node)
                infos = [analysis.program.info[r] for r in roots[node]]
                name = _free_name(rewriter.program, sorted(roots[node]))
                weight = rewriter.add_weight(
                    name, value, copies[node],
                    trainable=value.is_floating_point() and any(w.trainable for w in infos),
                    persistent=any(w.persistent for w in infos),
                )  # fmt: skip
                rewriter.replace(copies[node], weight)
        if rewriter.modified:
            rewriter.sweep()
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed, keeps its interface and computes the same."""
        verify_same_function(result, original)

    @staticmethod
    def _worth_it(axes: Axes, node: fx.Node, roots: dict[fx.Node, frozenset[str]]) -> bool:
        """A tensor that activations meet, no larger than the weights that it replaces (nothing else reads them), whose
        computation mixes positions: one that acts position by position (1 + weight) ties nothing, and its weight keeps
        its name. Random numbers are no constants."""
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor) or all(u in roots for u in node.users):
            return False
        history = set(_ancestors(node))
        weights = [n for n in history if n.op == "get_attr"]
        tied = any(axes.program.info[str(n.target)].aliases for n in weights)
        closed = all(user in history for n in history if n is not node for user in n.users)
        if tied or not closed or any(_is_random(n) for n in history):
            return False
        mixing = any(_mixes(axes, n) for n in history if n.op == "call_function")
        return mixing and value.numel() <= sum(n.meta["val"].numel() for n in weights)


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _mixes(axes: Axes, node: fx.Node) -> bool:
    """Whether a call reads other positions than it writes: a sum, a statistic, or an operator that nothing is known
    of."""
    call = axes.calls.get(node)
    if call is None:
        return isinstance(node.meta.get("val"), Tensor) and node.target is not operator.getitem
    return any(call.rule.kind(x) in (Kind.REDUCE, Kind.TIED) for x in call.letters)


def _ancestors(node: fx.Node) -> Iterator[fx.Node]:
    seen, stack = set[fx.Node](), [node]
    while stack:
        current = stack.pop()
        if current not in seen:
            seen.add(current)
            yield current
            stack.extend(current.all_input_nodes)


def weight_value(program: Program, node: fx.Node) -> Tensor:
    """The value of a node that depends on weights alone (`weight_like`)."""
    if node.op == "get_attr":
        return program.weights[str(node.target)]
    needed = set(_ancestors(node))
    environment: Environment = {}
    evaluator = Evaluator(program)
    for current in program.graph.nodes:
        if current in needed and current.op == "call_function":
            environment[current] = evaluator.compute(current, environment)
    result: Any = environment[node]
    return torch.as_tensor(result).detach().clone().contiguous()


def _free_name(program: Program, roots: list[str]) -> str:
    """`<what the weights' names share>_folded`, numbered where that is taken."""
    stem = _shared_start(roots).rstrip("0123456789").rstrip("._") or roots[0]
    stem = stem.replace(".parametrizations.", ".").removesuffix(".original")
    names = (f"{stem}_folded{i or ''}" for i in range(len(program.info) + 1))
    return next(n for n in names if n not in program.info)


def _shared_start(names: list[str]) -> str:
    """The characters that all names begin with."""
    first, last = min(names), max(names)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
