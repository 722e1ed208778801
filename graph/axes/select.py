"""Selections: which positions of which axes remain, and what that means for a tensor.

A selection of an axis may differ for each position of its *batch* axes (other value dimensions in every head); the count is the
same for all, so shapes stay rectangular and the kept elements of a tensor are simply those under a mask, in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sympy
import torch
from torch import Tensor

from fxslim.graph.axes.terms import Axis, Expr, Factor, Size, _simple, expr_size, factor_size

__all__ = ["Kept", "Selection", "accumulate", "coordinates", "sized"]


@dataclass(frozen=True)
class Kept:
    """The kept positions of one axis: `mask: [*batch, size]` bool, the same count in every row."""

    batch: tuple[Axis, ...]
    mask: Tensor
    count: int = field(init=False)  # positions that remain, in every row

    def __post_init__(self) -> None:
        rows = self.mask.reshape(-1, self.mask.shape[-1])
        object.__setattr__(self, "count", int(rows[0].sum()))


def coordinates(dims: Expr, symbols: Mapping[sympy.Symbol, int] | None = None) -> dict[Axis, list[Tensor]]:
    """For every axis of a dimension, its coordinate at each position: `[size]` int64, -1 where it does not occur.

    Occurrences in different parts of a concatenation share one entry; an axis that is multiplied with itself has several.
    """
    found: dict[Axis, list[Tensor]] = {}
    size = _number(expr_size(dims), symbols)
    _walk(dims, torch.arange(size), torch.ones(size, dtype=torch.bool), found, symbols)
    return found


def _walk(
    expr: Expr, index: Tensor, valid: Tensor, found: dict[Axis, list[Tensor]], symbols: Mapping[sympy.Symbol, int] | None
) -> None:
    stride = 1
    for factor in reversed(expr):
        size = _number(factor_size(factor), symbols)
        local = index.div(stride, rounding_mode="floor") % size
        if isinstance(factor, Axis):
            _merge(found.setdefault(factor, []), torch.where(valid, local, torch.full_like(local, -1)))
        else:
            start = 0
            for part in factor.parts:
                length = _number(expr_size(part), symbols)
                inside = valid & (local >= start) & (local < start + length)
                _walk(part, local - start, inside, found, symbols)
                start += length
        stride *= size


def _merge(entries: list[Tensor], new: Tensor) -> None:
    for i, old in enumerate(entries):
        if not bool(((old >= 0) & (new >= 0)).any()):
            entries[i] = torch.maximum(old, new)
            return
    entries.append(new)


def _number(size: Size, symbols: Mapping[sympy.Symbol, int] | None) -> int:
    return size if isinstance(size, int) else int(size.subs(dict(symbols or {})))


@dataclass(frozen=True)
class Selection:
    """The kept positions of several axes."""

    kept: Mapping[Axis, Kept] = field(default_factory=dict)

    def touches(self, dims: Sequence[Expr]) -> bool:
        """Whether any of the dimensions has a selected axis."""
        return any(self._selected(factor) for expr in dims for factor in expr)

    def _selected(self, factor: Factor) -> bool:
        if isinstance(factor, Axis):
            return factor in self.kept
        return any(self._selected(inner) for part in factor.parts for inner in part)

    def size(self, expr: Expr) -> Size:
        """The size of an expression after the selection."""
        return sized(expr, {axis: kept.count for axis, kept in self.kept.items()})

    def mask(self, dims: Sequence[Expr], symbols: Mapping[sympy.Symbol, int] | None = None) -> Tensor | None:
        """True where an element remains: bool, broadcastable to the tensor; None if nothing is removed."""
        if not self.touches(dims):
            return None
        coords = [coordinates(e, symbols) if e else {} for e in dims]
        result: Tensor | None = None
        for dim, own in enumerate(coords):
            for axis, occurrences in own.items():
                if axis in self.kept:
                    for occurrence in occurrences:
                        part = self._part(axis, occurrence, dim, coords)
                        result = part if result is None else result & part
        return result

    def _part(self, axis: Axis, occurrence: Tensor, dim: int, coords: list[dict[Axis, list[Tensor]]]) -> Tensor:
        """The mask of one occurrence: over its own dimension and those of its batch axes."""
        kept, rank = self.kept[axis], len(coords)
        index = [_along(self._batch_coordinate(b, dim, occurrence, coords), rank) for b in kept.batch]
        own = _along((dim, occurrence), rank)
        absent = own < 0
        mask = kept.mask.to(occurrence.device)
        return mask[(*(i.clamp(min=0) for i in index), own.clamp(min=0))] | absent

    @staticmethod
    def _batch_coordinate(
        axis: Axis, dim: int, occurrence: Tensor, coords: list[dict[Axis, list[Tensor]]]
    ) -> tuple[int, Tensor]:
        order = [dim, *(d for d in range(len(coords)) if d != dim)]
        for d in order:
            for candidate in coords[d].get(axis, []):
                if d != dim or bool((candidate[occurrence >= 0] >= 0).all()):
                    return d, candidate
        raise AssertionError(f"the batch axis {axis} does not accompany the selected axis")

    def take(self, tensor: Tensor, dims: Sequence[Expr], symbols: Mapping[sympy.Symbol, int] | None = None) -> Tensor:
        """The elements of `tensor` that remain, in their order, as a tensor of the smaller shape."""
        mask = self.mask(dims, symbols)
        if mask is None:
            return tensor
        shape = [_number(self.size(e), symbols) if e else tensor.shape[i] for i, e in enumerate(dims)]
        involved = [i for i in range(mask.dim()) if mask.shape[i] != 1]
        if len(involved) == 1:
            return tensor.index_select(involved[0], mask.flatten().nonzero().flatten().to(tensor.device))
        return tensor[mask.to(tensor.device).expand(tensor.shape)].reshape(shape)

    def put(self, values: Tensor, full: Tensor, dims: Sequence[Expr], symbols: Mapping[sympy.Symbol, int] | None = None) -> Tensor:
        """`full` with its remaining elements replaced by `values` (the inverse of `take`)."""
        mask = self.mask(dims, symbols)
        if mask is None:
            return values
        result = full.clone()
        result[mask.to(full.device).expand(full.shape)] = values.reshape(-1)
        return result


def sized(expr: Expr, counts: Mapping[Axis, int]) -> Size:
    """The size of an expression when the axes in `counts` have that many positions."""
    total: Size = 1
    for factor in expr:
        if isinstance(factor, Axis):
            total = total * counts.get(factor, factor.size)
        else:
            total = total * sum((sized(part, counts) for part in factor.parts), start=0)
    return _simple(total)


def accumulate(values: Tensor, dims: Sequence[Expr], axis: Axis, batch: tuple[Axis, ...]) -> Tensor:
    """The sums of `values` (a number for each element of a tensor with dimensions `dims`) by position of an axis.

    Returns [*batch, size], zero where the axis does not occur.
    """
    shape = [int(a.size) for a in (*batch, axis)]
    result = values.new_zeros(shape)
    coords = [coordinates(e) if e else {} for e in dims]
    for dim, own in enumerate(coords):
        for occurrence in own.get(axis, []):
            places = [Selection._batch_coordinate(b, dim, occurrence, coords) for b in batch] + [(dim, occurrence)]
            involved = sorted({d for d, _ in places})
            rest = [d for d in range(values.dim()) if d not in involved]
            reduced = values.sum(dim=rest) if rest else values
            index = torch.zeros([1] * len(involved), dtype=torch.long)
            for (place, coordinate), size in zip(places, shape, strict=True):
                index = index * size + _along((involved.index(place), coordinate.clamp(min=0)), len(involved))
            valid = _along((involved.index(dim), occurrence >= 0), len(involved)).expand(reduced.shape)
            result.view(-1).index_add_(0, index.expand(reduced.shape)[valid].to(values.device), reduced[valid.to(values.device)])
    return result


def _along(coordinate: tuple[int, Tensor], rank: int) -> Tensor:
    """A coordinate of one dimension, shaped to broadcast over a tensor of `rank` dimensions."""
    dim, values = coordinate
    return values.reshape([-1 if i == dim else 1 for i in range(rank)])
