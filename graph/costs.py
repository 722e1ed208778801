"""Costs of a program, whole or under given counts of its axes: parameters, multiply-accumulate operations, bytes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

from fxslim.graph.axes.analysis import Axes
from fxslim.graph.axes.terms import Axis, Expr
from fxslim.graph.program import bind_symbols

__all__ = ["CostModel", "LowRank", "Target"]

Target = Literal["params", "macs"]


@dataclass(frozen=True)
class LowRank:
    """A weight that stands as a pair [r, k], [n, r] instead of [n, k]."""

    outputs: int  # its dimension of size n
    rank: int


class CostModel:
    """Counts from shapes alone. Dynamic sizes have the values of the example inputs, data-dependent ones count as 1."""

    def __init__(self, axes: Axes, uncounted: Container[str] = (), original: CostModel | None = None) -> None:
        """The costs of the program that `axes` are of; weights named in `uncounted` cost no parameters. `original` is
        what shares are taken of where the program was prepared: preparation may add weights."""
        self.original = original or self
        self._symbols = bind_symbols(axes.program, axes.program.example_inputs)
        self._numbers: dict[Axis, int] = {}
        nodes = axes.program.weight_nodes()
        info = axes.program.info
        trainable = {name: axes.dims(node) for name, node in nodes.items() if info[name].trainable}
        self.uncounted = frozenset(name for name in trainable if name in uncounted)
        self._weights = {name: dims for name, dims in trainable.items() if name not in uncounted}
        self._uncounted = {name: trainable[name] for name in self.uncounted}
        self._bytes = {name: info[name].dtype.itemsize for name in nodes}
        self._buffers = {name: axes.dims(node) for name, node in nodes.items() if not info[name].trainable}
        self._products: list[tuple[tuple[Expr, ...], tuple[str, ...]]] = []  # of a call, and the weights it reads
        for call in axes.calls.values():
            read = tuple(str(o.target) for o in call.operands if o.op == "get_attr")
            for letters in call.rule.costs:
                dims = tuple(axes.terms.resolve(call.letters[x]) for x in letters if x in call.letters)
                self._products.append((dims, read))

    def params(self, counts: Mapping[Axis, int] | None = None, ranks: Mapping[str, LowRank] | None = None) -> int:
        """Trainable scalars, tied ones once."""
        if not ranks:
            return sum(self._product(dims, counts) for dims in self._weights.values())
        return sum(
            self._pair(dims, ranks[name], counts) if name in ranks else self._product(dims, counts)
            for name, dims in self._weights.items()
        )

    def macs(self, counts: Mapping[Axis, int] | None = None, ranks: Mapping[str, LowRank] | None = None) -> int:
        """Multiply-accumulate operations of linear maps, convolutions and attention, for the example's sizes."""
        total = 0
        for dims, read in self._products:
            macs = self._product(dims, counts)
            name = next((n for n in read if n in ranks), None) if ranks else None
            if name is not None and ranks is not None:  # once for each position of the output, as the weight was
                weight = self._weights.get(name) or self._uncounted.get(name) or self._buffers[name]
                macs = macs // self._product(weight, counts) * self._pair(weight, ranks[name], counts)
            total += macs
        return total

    def bytes(self, counts: Mapping[Axis, int] | None = None) -> int:
        """Bytes of all weights and buffers in their own types."""
        every = {**self._weights, **self._uncounted, **self._buffers}
        return sum(self._product(dims, counts) * self._bytes[name] for name, dims in every.items())

    def of(
        self, target: Target, counts: Mapping[Axis, int] | None = None, ranks: Mapping[str, LowRank] | None = None
    ) -> int:
        """Parameters or MACs, under given counts of axes, and with the weights named in `ranks` as pairs."""
        return self.params(counts, ranks) if target == "params" else self.macs(counts, ranks)

    def whole(self, target: Target) -> int:
        """What shares are taken of: the parameters or MACs of the program as it came."""
        return self.original.of(target)

    def change(self, after: CostModel | None = None, counts: Mapping[Axis, int] | None = None) -> dict[str, list[int]]:
        """Parameters, MACs and bytes: those of the program as it came, and of `after` (this one) under `counts`."""
        before, slim = self.original, after or self
        return {
            "params": [before.params(), slim.params(counts)],
            "macs": [before.macs(), slim.macs(counts)],
            "bytes": [before.bytes(), slim.bytes(counts)],
        }

    def _pair(self, dims: tuple[Expr, ...], pair: LowRank, counts: Mapping[Axis, int] | None) -> int:
        """Scalars of the two weights that stand for one of `dims`."""
        outputs = self._product((dims[pair.outputs],), counts)
        return pair.rank * (outputs + self._product(dims, counts) // outputs)

    def _product(self, dims: tuple[Expr, ...], counts: Mapping[Axis, int] | None) -> int:
        total = 1
        for expr in dims:
            total *= self._count(expr, counts or {})
        return total

    def _count(self, expr: Expr, counts: Mapping[Axis, int]) -> int:
        """The size of a dimension as a number. Budgets ask for it many thousand times: no symbols are handled here
        twice."""
        total = 1
        for factor in expr:
            if isinstance(factor, Axis):
                total *= counts[factor] if factor in counts else self._whole(factor)
            else:
                total *= sum(self._count(part, counts) for part in factor.parts)
        return total

    def _whole(self, axis: Axis) -> int:
        """The size as a number; one that depends on the values of the data counts as 1."""
        if axis not in self._numbers:
            size = axis.size if isinstance(axis.size, int) else axis.size.subs(self._symbols)
            self._numbers[axis] = int(size) if isinstance(size, int) or size.is_number else 1
        return self._numbers[axis]
