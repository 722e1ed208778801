"""How much of the calibration data a survey looks at: what ranks sizes needs fewer rows than what is refitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import sympy
import torch
from torch import Tensor, fx

from fxslim.graph.axes.analysis import Axes, CallAxes
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.notation import Kind
from fxslim.graph.axes.weights import weight_like
from fxslim.graph.liveness import number_of
from fxslim.graph.program import bind_symbols
from fxslim.passes.consumers import find_consumers

__all__ = ["ENOUGH", "FEWEST", "LEAST", "drawn", "enough"]

ENOUGH = 4.0  # rows for each column of the weight that has the fewest
LEAST = 4096  # rows, whatever the columns: what is estimated from them is right to a few per cent
FEWEST = 4  # batches

_Symbols = Mapping[sympy.Symbol, int]
_Need = tuple[int, Callable[[_Symbols], int]]  # columns, and the rows that a batch gives


def drawn(batches: Sequence[Sequence[Tensor]], count: int) -> Sequence[Sequence[Tensor]]:
    """That many of the batches, the same ones every time, in their order: drawn at random, as batches may come in a
    rhythm (sources in turn)."""
    return [batches[i] for i in sorted(_order(len(batches))[:count])]


def enough(analysis: Analysis, batches: Sequence[Sequence[Tensor]]) -> int:
    """How many batches, as they are drawn, give `ENOUGH` rows for each column of every weight that is summed over, and
    `LEAST` in all; at least `FEWEST`, at most all."""
    needs = _needs(analysis)
    if not needs:
        return len(batches)
    left = [max(LEAST, math.ceil(ENOUGH * columns)) for columns, _ in needs]
    known: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    count = 0
    for i in _order(len(batches)):
        if count >= FEWEST and max(left) <= 0:
            break
        shapes = tuple(tuple(value.shape) for value in batches[i])
        if shapes not in known:
            symbols = bind_symbols(analysis.program, batches[i])
            known[shapes] = [rows(symbols) for _, rows in needs]
        left = [missing - rows for missing, rows in zip(left, known[shapes], strict=True)]
        count += 1
    return count


def _order(count: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return order


def _needs(analysis: Analysis) -> list[_Need]:
    """What every call needs that sums over a weight: of consumers, and of weights that stand in several places or are
    used otherwise. Where the sizes cannot be told: more than there is."""
    program, constants = analysis.program, weight_like(analysis.program.graph)
    consumers = find_consumers(analysis.axes)[0]
    found: list[_Need] = [(c.shape(program)[2], lambda symbols, c=c: c.rows(program, symbols)) for c in consumers]  # type: ignore[misc]
    own = {c.node for c in consumers}
    for node, call in analysis.axes.calls.items():
        weights = [o for o in call.operands if o in constants and o.meta["val"].dim() > 1]
        if node not in own and len(weights) == 1 and any(call.rule.kind(x) is Kind.REDUCE for x in call.letters):
            found.append(_contraction(analysis.axes, call, weights[0]))
    return found


def _contraction(axes: Axes, call: CallAxes, weight: fx.Node) -> _Need:
    """Of one operand with a weight: the columns are what is summed over, the rows what is left of the operand, for each
    position of what both have (experts) apart."""
    others = [o for o in call.operands if o is not weight]
    reduced = [axes.terms.resolve(e) for x, e in call.letters.items() if call.rule.kind(x) is Kind.REDUCE]
    dims, shape = axes.dims(weight), weight.meta["val"].shape
    columns = math.prod(int(size) for size, e in zip(shape, dims, strict=True) if e in reduced)
    if len(others) != 1 or not any(e in reduced for e in dims) or not all(isinstance(size, int) for size in shape):
        return 1, lambda symbols: 0
    read = others[0].meta["val"].shape
    both = math.prod(
        int(size) for size, e in zip(shape, dims, strict=True) if e not in reduced and e in axes.dims(others[0])
    )
    return columns, lambda symbols: math.prod(number_of(size, symbols) for size in read) // (columns * both)
