"""Statistics of activations: sums that add up, gathered in one walk over the graph with all calibration batches side
by side.

The walk stops before a consumer, for all batches, so that what comes later sees the already compressed upstream.
Between stops only the values that are still needed are alive. Where several processes share the data, each walks with
its own batches, and the sums are those of all.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx

from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.consumers import Consumer
from fxslim.passes.team import Team, current_team, nothing_of

__all__ = ["CalibrationWalk", "SecondMoment", "digest"]

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

    @staticmethod
    def of(columns: Tensor) -> SecondMoment:
        """The second moment of [g, tokens, k]. Products in float32 at least, sums over batches in float64."""
        columns = columns if columns.dtype == torch.float64 else columns.float()  # half precision overflows in sums
        ones = columns.new_ones(*columns.shape[:2], 1)
        extended = torch.cat([columns, ones], dim=2)
        matrix = extended.transpose(1, 2) @ extended
        if not bool(matrix.isfinite().all()):
            raise InputError("squares of activations overflow", remedy="check the calibration data for extreme values")
        return SecondMoment(matrix.double())

    def __add__(self, other: SecondMoment) -> SecondMoment:
        return SecondMoment(self.matrix + other.matrix)

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


def split_rows(every: Sequence[Tensor], of: Callable[[Tensor], S]) -> tuple[S, S]:
    """The sums of a statistic of [g, tokens, k] over most rows, and over every eighth."""
    held = torch.arange(every[0].shape[1]) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    kept, left = ([of(part[:, rows]) for part in every] for rows in (~held, held))
    return reduce(operator.add, kept), reduce(operator.add, left)


def digest(batches: Iterable[Iterable[Tensor]]) -> str:
    """A hash of data: values, shapes and types of all tensors of all batches."""
    result = hashlib.sha256()
    for tensor in itertools.chain.from_iterable(batches):
        result.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        result.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


class CalibrationWalk:
    """Runs a program over all calibration batches up to a given node.

    With a `companion` (another evaluator of the same program) every batch runs through both, and statistics are taken
    over both.
    """

    def __init__(
        self, evaluator: Evaluator, batches: Sequence[Sequence[Tensor]], companion: Evaluator | None = None,
        team: Team | None = None,
    ) -> None:  # fmt: skip
        """`team` are the processes that divide the batches, by default those that this one is among."""
        if not batches:
            raise InputError("the calibration data is empty", remedy="give at least one batch")
        self.evaluator = evaluator
        self._evaluators = [evaluator] if companion is None else [evaluator, companion]
        self.team = current_team() if team is None else team
        self.batches = len(batches)
        self.mine = self.team.share(len(batches))
        self._runs = [(e, e.bind(batches[i])) for i in self.mine for e in self._evaluators]
        self._nodes: list[fx.Node] = list(evaluator.program.graph.nodes)
        self._index = {node: i for i, node in enumerate(self._nodes)}
        self._position = 0

    @property
    def passes(self) -> int:
        """How many evaluators every batch runs through: the values of a batch follow each other."""
        return len(self._evaluators)

    def advance_to(self, node: fx.Node) -> None:
        """Evaluates everything before `node`, batch by batch."""
        target = self._index[node]
        segment = self._nodes[self._position : target]
        for evaluator, environment in self._runs:
            evaluator.advance(environment, segment)
        self._position = max(self._position, target)

    def moment(self, consumer: Consumer) -> SecondMoment:
        """The second moment of a consumer's input over all batches."""
        return self.total(SecondMoment.of(consumer.columns(v)) for v in self.values(consumer.source))

    def total(self, parts: Iterable[S]) -> S:
        """The sum of what the batches give one by one, those of all processes."""
        return self.team.total(reduce(operator.add, parts))

    def split(self, columns: Iterable[Tensor], of: Callable[[Tensor], S], *, passes: int | None = None) -> tuple[S, S]:
        """The sums of a statistic over the part of the data that is learned from, and over the part that is held out.

        `columns` are values [g, tokens, k], those of the `passes` of a batch one after the other, by default as many as
        there are evaluators. Whole batches are held out; of a single batch every eighth row, the same rows of every
        pass.
        """
        passes = self.passes if passes is None else passes
        if self.batches == 1:
            return split_rows(list(columns), of)
        learned = self.batches - max(1, self.batches // HELD_OUT_EVERY)
        parts, own = map(of, columns), sum(i < learned for i in self.mine) * passes
        first = [reduce(operator.add, itertools.islice(parts, own))] if own else []
        second = [reduce(operator.add, parts)] if len(self.mine) * passes > own else []
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
        for number, (evaluator, environment) in enumerate(self._runs):
            value = evaluator.value(node, environment)
            if not bool(torch.isfinite(value).all()):
                batch = self.mine[number // self.passes]
                raise InputError(
                    f"the activation {node.name!r} is not finite for calibration batch {batch}",
                    remedy="check the calibration data for NaN or extreme values",
                )
            yield value
