"""Subspaces: axes on which any basis will do, what makes and what reads them, and the statistics of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxslim.graph.axes.analysis import CallAxes
from fxslim.graph.axes.fibres import holders, moment
from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.notation import Kind, Symmetry
from fxslim.graph.axes.orientation import Orientations, orientations
from fxslim.graph.axes.terms import Axis
from fxslim.graph.axes.weights import weight_like
from fxslim.graph.errors import AnalysisError
from fxslim.graph.program import bind_symbols
from fxslim.passes.caches import CachePlace, cache_places
from fxslim.passes.statistics import CalibrationWalk

__all__ = ["Gathered", "Side", "Subspace", "find_subspaces", "gather_at", "leading"]


@dataclass(frozen=True)
class Side:
    """One operand of a contraction over the axis."""

    call: fx.Node
    operand: fx.Node
    dim: int
    reads: bool  # it reads the axis (changes with the inverse basis) rather than lives on it
    constant: bool  # a weight


@dataclass(frozen=True)
class Subspace:
    """A group whose basis may be changed: `sides` are the operands of the calls that sum over its axis, `weights` the
    dimensions of weights and `caches` those of caches on which it lies, each with whether it changes with the inverse
    basis."""

    group: Group
    sides: tuple[Side, ...]
    weights: tuple[tuple[str, int, bool], ...]
    rotations: bool = False  # only rotations are left: both sides hold the axis in one place, or its length is taken
    stream: bool = False  # its length is taken: a residual stream whose norms are plain
    caches: tuple[tuple[CachePlace, bool], ...] = ()

    @property
    def estimated(self) -> bool:
        """Whether what reads the axis is known from data alone."""
        return any(s.reads and not s.constant for s in self.sides)


@dataclass
class Gathered:
    """The second moments of one subspace: of what lives on the axis, and of what reads it."""

    living: Tensor | None = None  # [*batch, d, d], as `reading`
    reading: Tensor | None = None

    def add(self, side: Side, found: Tensor) -> None:
        """Sums up."""
        if side.reads:
            self.reading = found if self.reading is None else self.reading + found
        else:
            self.living = found if self.living is None else self.living + found


def find_subspaces(analysis: Analysis, groups: Sequence[Group]) -> tuple[list[Subspace], list[str]]:
    """The groups among `groups` whose basis may be changed, and in words why others may not that have the symmetry."""
    places = orientations(analysis.axes)
    constants = weight_like(analysis.program.graph)
    found, refused = [], []
    for group in groups:
        if group.symmetry in (Symmetry.GENERAL, Symmetry.ORTHOGONAL) and group.prunable and group.size > 1:
            try:
                found.append(_subspace(analysis, group, places, frozenset(constants)))
            except AnalysisError as error:
                refused.append(f"{group.name}: {error.what}")
    return found, refused


def _subspace(analysis: Analysis, group: Group, places: Orientations, constants: frozenset[fx.Node]) -> Subspace:
    caches = cache_places(analysis, group, places)
    sums = [c for c in analysis.axes.calls.values() if _sums_over(analysis, c, group.axis)]
    contractions = [c for c in sums if not _is_length(c)]
    operands = [(c, o, d) for c in contractions for o, d in _operands(analysis, c, group.axis)]
    if not operands:
        raise AnalysisError("nothing sums over it")
    nodes = analysis.program.weight_nodes()
    if group.symmetry is Symmetry.ORTHOGONAL:
        rotated = _rotated(analysis, group, operands, constants)
        return replace(rotated, stream=len(sums) > len(contractions), caches=tuple((place, False) for place in caches))
    found = {key: places.place(*key, group.axis) for key in dict.fromkeys((o, d) for _, o, d in operands)}
    on_weights = {
        (name, dim): places.place(node, dim, group.axis)
        for name, node in nodes.items()
        for dim in holders(analysis.axes.dims(node), group.axis)
    }
    on_caches = [(place, *places.place(place.node, place.dim, group.axis)) for place in caches]
    roots = {root for root, _ in (*found.values(), *on_weights.values())} | {root for _, root, _ in on_caches}
    if len(roots) != 1:
        raise AnalysisError("its places do not hang together")
    # A weight that is summed over reads the axis; of two activations the second one does.
    reader = next(((o, d) for _, o, d in operands if o in constants), (operands[1][1], operands[1][2]))
    flipped = found[reader][1]
    sides = tuple(Side(c.node, o, d, found[o, d][1] == flipped, o in constants) for c, o, d in operands)
    weights = tuple((name, dim, colour == flipped) for (name, dim), (_, colour) in on_weights.items())
    if not all(s.reads for s in sides if s.constant):
        raise AnalysisError("weights that sum over it stand on both sides")
    return Subspace(group, sides, weights, caches=tuple((place, colour == flipped) for place, _, colour in on_caches))


def _rotated(
    analysis: Analysis, group: Group, operands: Sequence[tuple[CallAxes, fx.Node, int]], constants: frozenset[fx.Node]
) -> Subspace:
    """A rotation is its own inverse transpose: of two operands either may be said to read the axis."""
    sides = tuple(Side(c.node, o, d, bool(i % 2), o in constants) for i, (c, o, d) in enumerate(operands))
    on_weights = tuple(
        (name, dim, False)
        for name, node in analysis.program.weight_nodes().items()
        for dim in holders(analysis.axes.dims(node), group.axis)
    )
    return Subspace(group, sides, on_weights, rotations=True)


def _is_length(call: CallAxes) -> bool:
    """Whether a call takes the length of its only operand, which no rotation changes."""
    return len(call.operands) == 1 and any(
        call.rule.kind(x) is Kind.REDUCE and call.rule.symmetry_of(x) is Symmetry.ORTHOGONAL for x in call.letters
    )


def _sums_over(analysis: Analysis, call: CallAxes, axis: Axis) -> bool:
    return any(
        call.rule.kind(x) is Kind.REDUCE and axis in analysis.axes.terms.atoms(e) for x, e in call.letters.items()
    )


def _operands(analysis: Analysis, call: CallAxes, axis: Axis) -> Iterator[tuple[fx.Node, int]]:
    """The two operands of a contraction that hold the axis, with its dimension."""
    found = [(o, d) for o in dict.fromkeys(call.operands) for d in holders(analysis.axes.dims(o), axis)]
    if len(found) != 2:
        raise AnalysisError(f"{call.node.name} sums over {len(found)} operands that hold it, not two")
    yield from found


def gather_at(
    analysis: Analysis, subspace: Subspace, call: fx.Node, walk: CalibrationWalk, batches: Sequence[Sequence[Tensor]],
    found: Gathered,
) -> int:  # fmt: skip
    """Adds the statistics of the sides at one call, before which the walk stands; returns how many sides there are."""
    group, sides = subspace.group, [s for s in subspace.sides if s.call is call]
    for side in sides:
        dims = analysis.axes.dims(side.operand)
        parts = (
            moment(value, dims, group.axis, group.batch, side.dim, bind_symbols(analysis.program, batches[i]))
            for i, value in zip(walk.mine, walk.values(side.operand), strict=True)
        )
        # A constant is the same for every batch.
        found.add(side, walk.first(parts) if side.constant else walk.total(parts))
    return len(sides)


def leading(group: Group, count: int) -> Tensor:
    """The first `count` coordinates, which matter most, of every row: [*batch, size] bool."""
    return (torch.arange(group.size) < count).expand(group.shape).clone()
