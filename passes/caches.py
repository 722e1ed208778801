"""Caches in other coordinates: an axis that a cache of the program holds may be given another basis.

What a cache holds is then in new coordinates, and so is what replaces it: fed with its own output, the program computes
what it did (an empty cache, and one of zeros, is the same in both). A cache that was filled by another program has to
be moved first. So only caches that were declared at capture change their basis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from fxslim.graph.axes.fibres import holders, transformed
from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.orientation import Orientations
from fxslim.graph.axes.terms import Axis, Expr
from fxslim.graph.errors import AnalysisError
from fxslim.graph.program import Program, bind_symbols
from fxslim.passes.basis import Basis

if TYPE_CHECKING:
    from fxslim.passes.subspaces import Subspace

__all__ = ["CacheMoves", "CachePlace", "cache_notes", "cache_places", "in_new_coordinates"]


@dataclass(frozen=True)
class CachePlace:
    """A dimension of a cache input, or of the output that replaces it, on which an axis lies."""

    node: fx.Node
    back: bool  # of the output that replaces the cache
    index: int  # among the inputs, or the outputs
    dim: int
    dims: tuple[Expr, ...]  # of all its dimensions


def cache_places(analysis: Analysis, group: Group, places: Orientations) -> tuple[CachePlace, ...]:
    """Where the caches hold the axis of a group, going in and coming back.

    Raises:
        AnalysisError: a cache was not declared, or comes back in another basis than it goes in.
    """
    if group.caches and analysis.program.caches is None:
        raise AnalysisError(
            f"a cache of the user lies in its basis: {group.caches[0]!r} was not declared with capture(caches=)"
        )
    found: list[CachePlace] = []
    for name in group.caches:
        into, back = list(_going_in(analysis, name, group.axis)), list(_coming_back(analysis, name, group.axis))
        if [_colour(places, p, group.axis) for p in into] != [_colour(places, p, group.axis) for p in back]:
            raise AnalysisError(f"the cache {name!r} comes back in another basis")
        found += [*into, *back]
    return tuple(found)


def _going_in(analysis: Analysis, cache: str, axis: Axis) -> Iterator[CachePlace]:
    nodes = analysis.program.graph.find_nodes(op="placeholder")
    index = analysis.program.input_names.index(cache)
    return _on(analysis, nodes[index], axis, False, index)


def _coming_back(analysis: Analysis, cache: str, axis: Axis) -> Iterator[CachePlace]:
    index = analysis.program.output_names.index(analysis.axes.caches[cache])
    return _on(analysis, analysis.program.output_nodes[index], axis, True, index)


def _on(analysis: Analysis, node: object, axis: Axis, back: bool, index: int) -> Iterator[CachePlace]:
    if isinstance(node, fx.Node) and node in analysis.axes.values:
        dims = analysis.axes.dims(node)
        for dim in holders(dims, axis):
            yield CachePlace(node, back, index, dim, dims)


def _colour(places: Orientations, place: CachePlace, axis: Axis) -> object:
    return place.dim, places.place(place.node, place.dim, axis)


@dataclass(frozen=True)
class CacheMoves:
    """How the inputs and outputs of a program change with the bases of its axes: caches do, all others stay."""

    program: Program  # in the old bases
    subspaces: tuple[Subspace, ...]
    bases: Mapping[str, Basis]  # by group name

    @staticmethod
    def of(program: Program, subspaces: Sequence[Subspace], bases: Mapping[str, Basis]) -> CacheMoves | None:
        """The moves of these subspaces, None where no cache lies in one."""
        moved = tuple(s for s in subspaces if s.caches)
        return CacheMoves(program, moved, bases) if moved else None

    def inputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Flat inputs in new coordinates, from those in old ones."""
        return self._moved(tensors, tensors, back=False)

    def outputs(self, values: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
        """Flat outputs in new coordinates, from those in old ones for the inputs `tensors` (in either)."""
        return self._moved(values, tensors, back=True)

    def _moved(self, values: Sequence[Any], tensors: Sequence[Tensor], *, back: bool) -> list[Any]:
        found, symbols = list(values), bind_symbols(self.program, tensors)
        for subspace in self.subspaces:
            basis, group = self.bases[subspace.group.name], subspace.group
            for place, reads in subspace.caches:
                old = found[place.index] if place.back == back else None
                if old is not None and old.numel():  # an empty cache is the same in every basis
                    matrices = {place.dim: basis.matrix(reads)}
                    found[place.index] = transformed(old, place.dims, group.axis, group.batch, matrices, symbols)
        return found


def in_new_coordinates(moves: CacheMoves | None, batches: Sequence[Sequence[Tensor]]) -> Sequence[Sequence[Tensor]]:
    """Batches of flat inputs as the program in new bases takes them."""
    return batches if moves is None else [moves.inputs(batch) for batch in batches]


def cache_notes(subspaces: Sequence[Subspace]) -> list[str]:
    """What the user of a plan with these subspaces has to know of the caches."""
    names = sorted({name for s in subspaces if s.caches for name in s.group.caches})
    if not names:
        return []
    return [f"in bases of their own: {', '.join(names)}; start with empty caches, or what the slim program returned"]
