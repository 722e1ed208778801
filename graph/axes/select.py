"""Selections: which positions of which axes remain, and what that means for a tensor.

A selection of an axis may differ for each position of its *batch* axes (other value dimensions in every head); the
count is the same for all, so shapes stay rectangular. The kept elements of a tensor are those under a mask: in their
order where a batch axis is major to the selected one, else each at the place that its rank among the kept of its row
gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sympy
import torch
from torch import Tensor

from fxslim.graph.axes.terms import Axis, Expr, Factor, Size, expr_size, factor_size, simplified

__all__ = ["Kept", "Selection", "accumulate", "coordinates", "number_of", "sized"]


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

    Occurrences in different parts of a concatenation share one entry; an axis that is multiplied with itself has
    several.
    """
    found: dict[Axis, list[Tensor]] = {}
    size = number_of(expr_size(dims), symbols)
    _walk(dims, torch.arange(size), torch.ones(size, dtype=torch.bool), found, symbols)
    return found


def _walk(
    expr: Expr,
    index: Tensor,
    valid: Tensor,
    found: dict[Axis, list[Tensor]],
    symbols: Mapping[sympy.Symbol, int] | None,
) -> None:
    stride = 1
    for factor in reversed(expr):
        size = number_of(factor_size(factor), symbols)
        local = index.div(stride, rounding_mode="floor") % size
        if isinstance(factor, Axis):
            _merge(found.setdefault(factor, []), torch.where(valid, local, torch.full_like(local, -1)))
        else:
            start = 0
            for part in factor.parts:
                length = number_of(expr_size(part), symbols)
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


def number_of(size: Size, symbols: Mapping[sympy.Symbol, int] | None) -> int:
    """A size as a number, given the values of the exporter's symbols."""
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
        shape = [number_of(self.size(e), symbols) if e else tensor.shape[i] for i, e in enumerate(dims)]
        involved = [i for i in range(mask.dim()) if mask.shape[i] != 1]
        if len(involved) == 1:
            index = mask.flatten().nonzero().flatten()
            if self._varies(dims):
                index = index[self._place(involved[0], dims, symbols).flatten()[index].argsort()]
            return tensor.index_select(involved[0], index.to(tensor.device))
        values = tensor[mask.to(tensor.device).expand(tensor.shape)]
        if self._varies(dims):
            values = torch.empty_like(values).index_copy_(
                0, self._places(mask, dims, symbols).to(tensor.device), values
            )
        return values.reshape(shape)

    def put(
        self, values: Tensor, full: Tensor, dims: Sequence[Expr], symbols: Mapping[sympy.Symbol, int] | None = None
    ) -> Tensor:
        """`full` with its remaining elements replaced by `values` (the inverse of `take`)."""
        mask = self.mask(dims, symbols)
        if mask is None:
            return values
        flat = values.reshape(-1)
        if self._varies(dims):
            flat = flat[self._places(mask.expand(full.shape), dims, symbols).to(flat.device)]
        result = full.clone()
        result[mask.to(full.device).expand(full.shape)] = flat
        return result

    def _varies(self, dims: Sequence[Expr]) -> bool:
        """Whether a selection that differs by batch position lies on the dimensions: kept elements then need not be
        in order."""
        return any(Selection({axis: kept}).touches(dims) for axis, kept in self.kept.items() if kept.batch)

    def _places(self, mask: Tensor, dims: Sequence[Expr], symbols: Mapping[sympy.Symbol, int] | None) -> Tensor:
        """For every element under a mask of the full shape, in order, its flat position in the smaller tensor."""
        shape = [number_of(expr_size(e), symbols) if e else mask.shape[i] for i, e in enumerate(dims)]
        total = torch.zeros([1] * len(dims), dtype=torch.long)
        for dim, expr in enumerate(dims):
            total = total * number_of(self.size(expr), symbols) + self._place(dim, dims, symbols)
        full = mask.expand(shape)
        return total.expand(shape)[full.to(total.device)]

    def _place(self, dim: int, dims: Sequence[Expr], symbols: Mapping[sympy.Symbol, int] | None) -> Tensor:
        """Where the positions of a dimension lie in the smaller tensor, broadcastable to the full one; meaningless
        for removed."""
        coords = [coordinates(e, symbols) if e else {} for e in dims]
        index = torch.arange(number_of(expr_size(dims[dim]), symbols))
        return self._renumber(dims[dim], index, torch.ones_like(index, dtype=torch.bool), dim, coords, symbols)

    def _renumber(
        self, expr: Expr, index: Tensor, valid: Tensor, dim: int, coords: list[dict[Axis, list[Tensor]]],
        symbols: Mapping[sympy.Symbol, int] | None,
    ) -> Tensor:  # fmt: skip
        total, stride, small_stride = torch.zeros([1] * len(coords), dtype=torch.long), 1, 1
        for factor in reversed(expr):
            size = number_of(factor_size(factor), symbols)
            local = index.div(stride, rounding_mode="floor") % size
            if isinstance(factor, Axis):
                new = self._rank(factor, torch.where(valid, local, -1), dim, coords)
            else:
                new = torch.zeros([1] * len(coords), dtype=torch.long)
                start = small_start = 0
                for part in factor.parts:
                    length = number_of(expr_size(part), symbols)
                    inside = valid & (local >= start) & (local < start + length)
                    moved = self._renumber(part, local - start, inside, dim, coords, symbols) + small_start
                    new = torch.where(_along((dim, inside), len(coords)), moved, new)
                    start, small_start = start + length, small_start + number_of(self.size(part), symbols)
            total = total + new * small_stride
            stride, small_stride = stride * size, small_stride * number_of(self.size((factor,)), symbols)
        return total

    def _rank(self, axis: Axis, occurrence: Tensor, dim: int, coords: list[dict[Axis, list[Tensor]]]) -> Tensor:
        """How many positions before this one remain, in its batch row."""
        rank, kept = len(coords), self.kept.get(axis)
        own = _along((dim, occurrence), rank).clamp(min=0)
        if kept is None:
            return own
        index = [_along(self._batch_coordinate(b, dim, occurrence, coords), rank).clamp(min=0) for b in kept.batch]
        return (kept.mask.to(occurrence.device).long().cumsum(-1) - 1)[(*index, own)]


def sized(expr: Expr, counts: Mapping[Axis, int]) -> Size:
    """The size of an expression when the axes in `counts` have that many positions."""
    total: Size = 1
    for factor in expr:
        if isinstance(factor, Axis):
            total = total * counts.get(factor, factor.size)
        else:
            total = total * sum((sized(part, counts) for part in factor.parts), start=0)
    return simplified(total)


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
            result.view(-1).index_add_(
                0, index.expand(reduced.shape)[valid].to(values.device), reduced[valid.to(values.device)]
            )
    return result


def _along(coordinate: tuple[int, Tensor], rank: int) -> Tensor:
    """A coordinate of one dimension, shaped to broadcast over a tensor of `rank` dimensions."""
    dim, values = coordinate
    return values.reshape([-1 if i == dim else 1 for i in range(rank)])
