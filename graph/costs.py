"""Costs of a program, whole or under given counts of its axes: parameters, multiply-accumulate operations, bytes."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx

from fxslim.graph.axes.analysis import Axes
from fxslim.graph.axes.terms import Axis, Expr
from fxslim.graph.errors import InputError
from fxslim.graph.latency import Clock, TimeModel
from fxslim.graph.program import bind_symbols
from fxslim.graph.sizes import Counter

__all__ = ["CostModel", "LowRank", "Target"]

Target = Literal["params", "macs", "latency"]


@dataclass(frozen=True)
class LowRank:
    """A weight that stands as a pair [r, k], [n, r] instead of [n, k]."""

    outputs: int  # its dimension of size n
    rank: int


class CostModel:
    """Counts from shapes alone. Dynamic sizes have the values of the example inputs, data-dependent ones count as 1."""

    def __init__(
        self, axes: Axes, uncounted: Container[str] = (), original: CostModel | None = None, clock: Clock | None = None,
        inputs: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        """The costs of the program that `axes` are of; weights named in `uncounted` cost no parameters. `original` is
        what shares are taken of where the program was prepared: preparation may add weights. Latency needs a clock.
        Dynamic sizes are those of flat `inputs`, by default the example's."""
        self.original = original or self
        self._counter = Counter(bind_symbols(axes.program, inputs or axes.program.example_inputs))
        self.clock = clock
        self._times = None if clock is None else TimeModel(axes, clock)
        nodes = axes.program.weight_nodes()
        info = axes.program.info
        trainable = {name: axes.dims(node) for name, node in nodes.items() if info[name].trainable}
        self.uncounted = frozenset(name for name in trainable if name in uncounted)
        self._weights = {name: dims for name, dims in trainable.items() if name not in uncounted}
        self._uncounted = {name: trainable[name] for name in self.uncounted}
        self._bytes = {name: info[name].dtype.itemsize for name in nodes}
        self._buffers = {name: axes.dims(node) for name, node in nodes.items() if not info[name].trainable}
        # Of a call, with the weights that it reads.
        self._products: list[tuple[fx.Node, tuple[Expr, ...], tuple[str, ...]]] = []
        for node, call in axes.calls.items():
            read = tuple(str(o.target) for o in call.operands if o.op == "get_attr")
            for letters in call.rule.costs:
                dims = tuple(axes.terms.resolve(call.letters[x]) for x in letters if x in call.letters)
                self._products.append((node, dims, read))

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
        for _, dims, read in self._products:
            macs = self._product(dims, counts)
            name = next((n for n in read if n in ranks), None) if ranks else None
            if name is not None and ranks is not None:  # once for each position of the output, as the weight was
                weight = self._weights.get(name) or self._uncounted.get(name) or self._buffers[name]
                macs = macs // self._product(weight, counts) * self._pair(weight, ranks[name], counts)
            total += macs
        return total

    def macs_by_call(self) -> dict[fx.Node, int]:
        """Multiply-accumulate operations of every call that has any."""
        found: dict[fx.Node, int] = {}
        for node, dims, _ in self._products:
            found[node] = found.get(node, 0) + self._product(dims, None)
        return found

    def bytes(self, counts: Mapping[Axis, int] | None = None) -> int:
        """Bytes of all weights and buffers in their own types."""
        every = {**self._weights, **self._uncounted, **self._buffers}
        return sum(self._product(dims, counts) * self._bytes[name] for name, dims in every.items())

    def of(
        self, target: Target, counts: Mapping[Axis, int] | None = None, ranks: Mapping[str, LowRank] | None = None
    ) -> int:
        """Parameters, MACs or nanoseconds, under given counts of axes, and with the weights named in `ranks` as pairs.

        Raises:
            InputError: latency is asked for, and there is no clock.
        """
        if target == "latency":
            return self.nanoseconds(counts, ranks)
        return self.params(counts, ranks) if target == "params" else self.macs(counts, ranks)

    def nanoseconds(self, counts: Mapping[Axis, int] | None = None, ranks: Mapping[str, LowRank] | None = None) -> int:
        """The expected time of one run in ns, for the clock's inputs.

        Raises:
            InputError: there is no clock.
        """
        return round(self.times.nanoseconds(counts, ranks))

    @property
    def times(self) -> TimeModel:
        """The times of the program's jobs.

        Raises:
            InputError: there is no clock.
        """
        if self._times is None:
            raise InputError("latency is a matter of the machine", remedy="give a clock: fxslim.export.clock")
        return self._times

    def whole(self, target: Target) -> int:
        """What shares are taken of: the parameters, MACs or nanoseconds of the program as it came."""
        return self.original.of(target)

    def change(self, after: CostModel | None = None, counts: Mapping[Axis, int] | None = None) -> dict[str, list[int]]:
        """Parameters, MACs, bytes, and with a clock nanoseconds: those of the program as it came, and of `after` (this
        one) under `counts`."""
        before, slim = self.original, after or self
        time = {"latency": [before.nanoseconds(), slim.nanoseconds(counts)]} if slim.clock is not None else {}
        return {
            **time,
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
            total *= self._counter.number(expr, counts)
        return total
