"""Statistics of activations: sums that add up, gathered in one walk over the graph with all calibration batches side
by side.

The walk stops before a consumer, for all batches, so that what comes later sees the already compressed upstream.
Between stops only the values that are still needed are alive, in memory or on disk. Weights that are on disk are read
piece by piece, once for all batches; at a stop those of the call to come are in memory. Where several processes share
the data, each walks with its own batches, and the sums are those of all.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, TypeVar

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from fxslim.graph.errors import InputError, LocalError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.pieces import Environment, Shelf, pieces
from fxslim.graph.stores import WeightStore, raw_bytes
from fxslim.passes.consumers import Consumer
from fxslim.passes.team import Team, current_team, nothing_of

__all__ = ["CalibrationWalk", "Moments", "SecondMoment", "digest"]

_STRIP = 384  # columns whose products with all later ones are taken at once: half of the work, and products still fast
HELD_OUT_EVERY = 8  # one batch in so many judges what the others led to


class Sum(Protocol):
    """A statistic that adds up."""

    def __add__(self, other: Any, /) -> Any:
        """That of both parts together."""


S = TypeVar("S", bound=Sum)


@dataclass
class SecondMoment:
    """H = [X 1]^T [X 1] of a consumer's input: [g, k + 1, k + 1] float64. The last row holds sums, the corner the
    count."""

    matrix: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> SecondMoment:
        """The second moment of [g, tokens, k]."""
        return cls.over([columns])

    @classmethod
    def over(cls, parts: Iterable[Tensor]) -> SecondMoment:
        """The second moment of all tokens of parts [g, tokens, k] together. Products in float32 at least, sums over
        parts in float64.

        Raises:
            InputError: squares overflow, or there is no part.
        """
        matrix: Tensor | None = None
        for columns in parts:
            if matrix is None:
                blocks, _, width = columns.shape
                matrix = columns.new_zeros(blocks, width + 1, width + 1, dtype=torch.float64)
            _include(matrix, columns)
        if matrix is None:
            raise InputError("the calibration data is empty", remedy="give at least one batch")
        for start in range(0, matrix.shape[1], _STRIP):  # what lies below the diagonal is what lies above it
            end = start + _STRIP
            matrix[:, end:, start:end] = matrix[:, start:end, end:].transpose(1, 2)
        matrix[:, -1] = matrix[:, :, -1]
        if not is_finite(matrix):
            raise LocalError("squares of activations overflow", remedy="check the calibration data for extreme values")
        return cls(matrix)

    def __add__(self, other: SecondMoment) -> SecondMoment:
        return SecondMoment(self.matrix + other.matrix)

    def to(self, device: torch.device) -> SecondMoment:
        """The same on a device."""
        return SecondMoment(self.matrix.to(device))

    @property
    def count(self) -> int:
        """Number of tokens."""
        return int(self.matrix[0, -1, -1])

    def norms(self) -> Tensor:
        """The 2-norm of every column over all tokens: [g, k]."""
        return self.matrix.diagonal(dim1=1, dim2=2)[:, :-1].clamp(min=0).sqrt()

    def variances(self) -> Tensor:
        """The variance of every column over all tokens, times their number: [g, k]."""
        squares, sums = self.matrix.diagonal(dim1=1, dim2=2)[:, :-1], self.matrix[:, -1, :-1]
        return (squares - sums.square() / max(1, self.count)).clamp(min=0)


def _include(matrix: Tensor, columns: Tensor) -> None:
    """Adds [X 1]^T [X 1] of columns [g, tokens, k] to a matrix [g, k + 1, k + 1], on the diagonal and above."""
    columns = columns if columns.dtype == torch.float64 else columns.float()  # half precision overflows in sums
    width = columns.shape[2]
    for start in range(0, width, _STRIP):
        strip = slice(start, min(start + _STRIP, width))
        matrix[:, strip, start:-1] += columns[..., strip].transpose(1, 2) @ columns[..., start:]
    matrix[:, :-1, -1] += columns.sum(1, dtype=torch.float64)
    matrix[:, -1, -1] += columns.shape[1]


def is_finite(value: Tensor) -> bool:
    """Whether no number of a tensor is infinite or undefined, in one pass and without a copy."""
    if not value.is_floating_point() or not value.numel():
        return bool(torch.isfinite(value).all())
    return bool(torch.isfinite(torch.stack(torch.aminmax(value))).all())


class Moments(MutableMapping[fx.Node, SecondMoment]):
    """Second moments by node, on disk where a store spills."""

    def __init__(self, store: WeightStore) -> None:
        self._store = store.empty()
        self._nodes: dict[str, fx.Node] = {}

    def __getitem__(self, node: fx.Node) -> SecondMoment:
        return SecondMoment(self._store[node.name])

    def __setitem__(self, node: fx.Node, moment: SecondMoment) -> None:
        self._store[node.name], self._nodes[node.name] = moment.matrix, node

    def __delitem__(self, node: fx.Node) -> None:
        del self._store[node.name], self._nodes[node.name]

    def clear(self) -> None:
        """Forgets all, without reading those on disk."""
        self._store.clear()
        self._nodes.clear()

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)


def learned_of(batches: int) -> int:
    """How many of so many batches are learned from: the first ones. The others are held out."""
    return batches - max(1, batches // HELD_OUT_EVERY)


def split_rows(every: Sequence[Tensor], over: Callable[[Iterable[Tensor]], S]) -> tuple[S, S]:
    """The sums of a statistic of [g, tokens, k] over most rows, and over every eighth."""
    held = torch.arange(every[0].shape[1]) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return over(part[:, ~held] for part in every), over(part[:, held] for part in every)


def digest(batches: Iterable[Iterable[Tensor]]) -> str:
    """A hash of data: values, shapes and types of all tensors of all batches."""
    result = hashlib.sha256()
    for tensor in itertools.chain.from_iterable(batches):
        result.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        result.update(raw_bytes(tensor))
    return result.hexdigest()


class CalibrationWalk:
    """Runs a program over all calibration batches up to a given node.

    With a `companion` (another evaluator of the same program) every batch runs through both, or through one of them in
    turn, and statistics are taken over both. Where the program's store says that activations are offloaded, only those
    of the running batch are in memory.
    """

    def __init__(
        self, evaluator: Evaluator, batches: Sequence[Sequence[Tensor]], companion: Evaluator | None = None,
        team: Team | None = None, *, turns: Sequence[int] | None = None, few: bool = False,
    ) -> None:  # fmt: skip
        """`team` are the processes that divide the batches, by default those that this one is among. `turns` says of
        each batch which it runs through: 0 is the evaluator, 1 the companion; by default it runs through both. With
        `few` there may be fewer batches than processes: then only moments and totals are asked for."""
        if not batches:
            raise InputError("the calibration data is empty", remedy="give at least one batch")
        self.evaluator = evaluator
        self._evaluators = [evaluator] if companion is None else [evaluator, companion]
        self.team = current_team() if team is None else team
        self.batches = len(batches)
        self.mine = self.team.share(len(batches), few=few)
        # Evaluators that a batch runs through: its values follow each other.
        self.passes = len(self._evaluators) if turns is None else 1
        self._runs = [
            _Run(e, batches[i]) for i in self.mine for turn, e in enumerate(self._evaluators)
            if turns is None or turns[i] == turn
        ]  # fmt: skip
        self._nodes: list[fx.Node] = list(evaluator.program.graph.nodes)
        self._index = {node: i for i, node in enumerate(self._nodes)}
        self._position = 0
        self._held = ExitStack()  # weights of the call before which the walk stands
        weakref.finalize(self, self._held.close)

    def advance_to(self, node: fx.Node) -> None:
        """Evaluates everything before `node`, batch by batch; its own weights are in memory then."""
        target = self._index[node]
        if target < self._position:
            return
        for piece in pieces(self.evaluator.program, self._nodes[self._position : target]):
            with self._holding(piece):
                self._held.close()
                for run in self._runs:
                    run.advance(piece)
        held = self._holding([node])
        self._held.close()
        self._held.enter_context(held)
        self._position = target

    def _holding(self, piece: Sequence[fx.Node]) -> ExitStack:
        """Holds the weights of calls, as each evaluator has them, until it is closed."""
        with ExitStack() as stack:
            for evaluator in self._evaluators:
                stack.enter_context(evaluator.holding(piece))
            return stack.pop_all()

    def columns(self, consumer: Consumer) -> Iterator[Tensor]:
        """What a consumer reads in every batch, [g, tokens, k], where the program runs."""
        device = self.evaluator.device
        for value in self.values(consumer.source):
            yield consumer.columns(value if device is None else value.to(device))

    def moment(self, consumer: Consumer) -> SecondMoment:
        """The second moment of a consumer's input over all batches."""
        own = SecondMoment.over(self.columns(consumer)).to(torch.device("cpu")) if self.mine else None
        return self.team.total_of_few(own, self.batches)

    def total(self, parts: Iterable[S]) -> S:
        """The sum of what the batches give one by one, those of all processes."""
        return self.team.total_of_few(reduce(operator.add, parts) if self.mine else None, self.batches)

    def first(self, parts: Iterator[S]) -> S:
        """That of one batch, where all batches give the same."""
        own = next(parts) if self.mine else None
        found = self.team.handed(own) if self.batches < self.team.size else own
        assert found is not None
        return found

    def split(
        self, columns: Iterable[Tensor], over: Callable[[Iterable[Tensor]], S], *, passes: int | None = None
    ) -> tuple[S, S]:
        """The sums of a statistic over the part of the data that is learned from, and over the part that is held out.

        `columns` are values [g, tokens, k], those of the `passes` of a batch one after the other, by default as many as
        there are evaluators; `over` gives the statistic of such values together. Whole batches are held out; of a
        single batch every eighth row, the same rows of every pass.
        """
        passes = self.passes if passes is None else passes
        if self.batches == 1:
            return split_rows(list(columns), over)
        learned = learned_of(self.batches)
        parts, own = iter(columns), sum(i < learned for i in self.mine) * passes
        first = [over(itertools.islice(parts, own))] if own else []
        second = [over(parts)] if len(self.mine) * passes > own else []
        kept, left = first or [nothing_of(second[0])], second or [nothing_of(first[0])]
        return self.team.total(kept[0]), self.team.total(left[0])

    def pairs(self, node: fx.Node) -> Iterator[tuple[Tensor, Tensor]]:
        """The value of `node` in every batch beside that of the companion."""
        assert self.passes == 2, "there is a companion"
        values = self.values(node)
        return zip(values, values, strict=True)

    def values(self, node: fx.Node) -> Iterator[Tensor]:
        """The value of `node` in every batch of this process, from each evaluator.

        Raises:
            InputError: a value is not finite: the calibration data or the model overflows.
        """
        for number, run in enumerate(self._runs):
            value = run.value(node)
            if not is_finite(value):
                batch = self.mine[number // self.passes]
                raise LocalError(
                    f"the activation {node.name!r} is not finite for calibration batch {batch}",
                    remedy="check the calibration data for NaN or extreme values",
                )
            yield value


class _Run:
    """One batch on its way through one evaluator."""

    def __init__(self, evaluator: Evaluator, batch: Sequence[Tensor]) -> None:
        self._evaluator = evaluator
        self._values: Environment = _moved(evaluator.bind(batch), evaluator, back=True)
        weights = evaluator.program.weights
        self._shelf = Shelf(weights.spill) if weights.placement.offload and weights.spill is not None else None

    def advance(self, piece: Sequence[fx.Node]) -> None:
        """Evaluates the calls of a piece."""
        if self._shelf is None:
            self._values = _moved(self._values, self._evaluator)
            self._evaluator.advance(self._values, piece)
            self._values = _moved(self._values, self._evaluator, back=True)
            return
        self._values |= self._shelf.take(n for node in piece for n in node.all_input_nodes)
        self._values = _moved(self._values, self._evaluator)
        self._evaluator.advance(self._values, piece)
        self._shelf.put(_moved(self._values, self._evaluator, back=True))
        self._values = {}

    def value(self, node: fx.Node) -> Any:
        """The value of a node that lies before the call to come, and is needed there or later."""
        if node.op != "get_attr" and self._shelf is not None and node not in self._values:
            return self._shelf.value(node)
        return self._evaluator.value(node, self._values)


def _moved(values: Environment, evaluator: Evaluator, *, back: bool = False) -> Environment:
    """The values on the device of an evaluator, or back on the CPU, where they wait."""
    if evaluator.device is None:
        return values
    device = torch.device("cpu") if back else evaluator.device
    return {node: pytree.tree_map_only(Tensor, lambda v: v.to(device), value) for node, value in values.items()}
