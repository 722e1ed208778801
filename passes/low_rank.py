"""Low ranks next to other cuts: which weights may become pairs, and what each costs at each rank.

The error of y = W x at rank r is least for the projection of y on its r principal directions: with C = E[x x^T] the
cost is the sum of the eigenvalues of W C W^T that are left out (SVD-LLM, Wang 2024; computed as in Swift-SVD 2026).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.passes.basis import Basis, optimal_basis
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.factorise import factorisable, full_rank_factors
from fxslim.passes.statistics import SecondMoment

__all__ = ["WORTH", "Matrix", "find_matrices", "pair_basis", "truncated"]

WORTH = 0.9
"""A pair is offered where it costs at most this share of its weight: two products take longer than one of the same
arithmetic (`python -m benchmarks.break_even`)."""


@dataclass(frozen=True)
class Matrix:
    """A weight [n, k] that may become a pair [r, k], [n, r]."""

    consumer: Consumer  # the only call that reads it
    outputs: int  # its dimension of size n
    shape: tuple[int, int]  # n, k

    @property
    def weight(self) -> str:
        """Its name."""
        return self.consumer.weight

    @property
    def size(self) -> int:
        """The full rank."""
        return min(self.shape)

    @cached_property
    def largest(self) -> int:
        """The largest rank at which the pair is worth it."""
        n, k = self.shape
        return int(WORTH * n * k / (n + k))


def find_matrices(analysis: Analysis, left_out: Container[str] = ()) -> list[Matrix]:
    """The weights that may become pairs, but for those `left_out` by name."""
    info, names = analysis.program.info, factorisable(analysis)
    found = []
    for consumer in find_consumers(analysis.axes)[0]:
        if consumer.weight in names and consumer.weight not in left_out and info[consumer.weight].trainable:
            _, n, k = consumer.shape(analysis.program)
            outputs = len(info[consumer.weight].shape) - 1 if consumer.transposed else 0
            matrix = Matrix(consumer, outputs, (n, k))
            if matrix.largest >= 1:
                found.append(matrix)
    return found


def pair_basis(weight: Tensor, moment: SecondMoment) -> Basis:
    """The basis of the axis between the factors of `weight: [n, k]`, for inputs of a second moment; its energy is what
    each rank costs, descending."""
    first, second = full_rank_factors(weight.double())
    return optimal_basis(first @ moment.matrix[0, :-1, :-1] @ first.mT, second.mT @ second)


def truncated(weight: Tensor, basis: Basis, rank: int) -> Tensor:
    """The weight [n, k] of the given rank that loses least."""
    first, second = full_rank_factors(weight.double())
    return second @ basis.backward[:, :rank] @ basis.forward[:rank] @ first
