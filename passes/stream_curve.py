"""What a residual stream costs at each size: measured at several, because everything reads it and all readers are
refitted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Group
from fxslim.graph.program import Program
from fxslim.graph.stores import WeightStore
from fxslim.passes.basis import Basis
from fxslim.passes.consumers import Consumer
from fxslim.passes.refit import solve_once
from fxslim.passes.statistics import CalibrationWalk, Moments, SecondMoment
from fxslim.passes.subspaces import leading

__all__ = ["SHARES", "Readers", "interpolated"]

SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25)  # of the stream, at which its effect is measured
_RIDGE = 1e-4


@dataclass
class Readers:
    """The linear maps that read a stream through its norms, and the second moment of what each of them reads: one for
    all that share their input."""

    group: Group
    consumers: list[Consumer]
    moments: Moments

    @staticmethod
    def of(group: Group, store: WeightStore) -> Readers:
        """None yet; their moments will be on disk where the store spills."""
        return Readers(group, [], Moments(store))

    def visit(self, consumer: Consumer | None, walk: CalibrationWalk) -> None:
        """Takes a reader, before which the walk stands; others than plain linear maps of the stream are left as they
        are."""
        if consumer is None or self.group.batch:  # a basis for each head: its readers see all of them
            return
        if consumer.features != (self.group.axis,) or consumer.blocks != 1 or consumer.window != 1:
            return
        self.consumers.append(consumer)
        if consumer.source not in self.moments:
            self.moments[consumer.source] = walk.moment(consumer)

    def change_basis(self, basis: Basis) -> None:
        """The moments in new coordinates."""
        if not self.moments:
            return
        size = self.group.size
        forward = torch.eye(size + 1, dtype=torch.float64)  # the constant stays what it is
        forward[:size, :size] = basis.forward.reshape(size, size)
        for node, moment in self.moments.items():
            self.moments[node] = SecondMoment(forward @ moment.matrix @ forward.mT)

    def refitted(self, program: Program, count: int) -> WeightStore:
        """The readers' weights by name, refitted to the first `count` coordinates of a program in the new basis."""
        found = program.weights.empty()
        kept = leading(self.group, count).reshape(1, -1)
        for consumer in self.consumers:
            matrix, bias = consumer.parameters(program)
            solved = solve_once(matrix, bias, kept, self.moments[consumer.source], _RIDGE)
            if solved is not None:
                found.update(consumer.stored(program, *solved))
        return found

    def effects(self, measure: Callable[[Tensor, Mapping[str, Tensor]], float], program: Program) -> dict[int, float]:
        """The effect on the output at several sizes. `measure` takes a mask and the weights that replace others."""
        sizes = sorted({max(1, round(share * self.group.size)) for share in SHARES} - {self.group.size})
        return {n: measure(leading(self.group, n), self.refitted(program, n)) for n in sizes}


def interpolated(size: int, effects: Mapping[int, float]) -> Tensor:
    """Losses between measured sizes: [size + 1], infinite below the smallest. Their roots are close to linear: the
    effect of a small error is quadratic in it."""
    known: Sequence[tuple[int, float]] = [*sorted(effects.items()), (size, 0.0)]
    losses = torch.full((size + 1,), float("inf"), dtype=torch.float64)
    for (low, high_loss), (high, low_loss) in itertools.pairwise(known):
        losses[low], losses[high] = high_loss, low_loss
        if math.isfinite(high_loss) and math.isfinite(low_loss):  # else what is between them is infinite, as it is
            steps = torch.linspace(0, 1, high - low + 1, dtype=torch.float64)
            losses[low : high + 1] = (high_loss**0.5 * (1 - steps) + low_loss**0.5 * steps).square()
    return losses.flip(0).cummax(0).values.flip(0)
