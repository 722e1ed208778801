"""Fibres: the positions of a dimension that differ in one axis alone; what a change of basis of the axis acts on.

A dimension `h·d` has, for the axis d, one fibre for each position of h. Along a fibre a matrix can be applied, and over
the fibres of a tensor second moments of the axis can be summed, apart for each position of the batch axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import sympy
import torch
from torch import Tensor

from fxslim.graph.axes.select import coordinates, number_of
from fxslim.graph.axes.terms import Axis, Expr, expr_size, factor_size
from fxslim.graph.errors import AnalysisError

__all__ = ["fibres", "holders", "moment", "transformed"]

Symbols = Mapping[sympy.Symbol, int]


def holders(dims: Sequence[Expr], axis: Axis) -> list[int]:
    """The dimensions that hold an axis."""
    return [i for i, expr in enumerate(dims) if _holds(expr, axis)]


def _holds(expr: Expr, axis: Axis) -> bool:
    return any(f is axis or (not isinstance(f, Axis) and any(_holds(p, axis) for p in f.parts)) for f in expr)


def fibres(expr: Expr, axis: Axis, symbols: Symbols | None = None) -> Tensor:
    """The fibres of an axis in a dimension: [fibres, d] positions, each row in the order of the axis.

    Raises:
        AnalysisError: the axis is multiplied with itself.
    """
    found: Tensor | None = None
    stride = 1
    inner = torch.zeros(1, dtype=torch.long)  # offsets of the factors behind
    for factor in reversed(expr):
        size = number_of(factor_size(factor), symbols)
        steps = torch.arange(size) * stride
        own = _own(factor, axis, symbols)
        if own is None:
            if found is not None:
                found = (steps[:, None, None] + found[None]).reshape(-1, found.shape[1])
            inner = (steps[:, None] + inner[None]).flatten()
        elif found is not None:
            raise AnalysisError(f"the axis {axis} is multiplied with itself: it has no basis of its own")
        else:
            found = (own[:, None] * stride + inner[None, :, None]).reshape(-1, own.shape[1])
        stride *= size
    assert found is not None, "the axis lies in the dimension"
    return found


def _own(factor: object, axis: Axis, symbols: Symbols | None) -> Tensor | None:
    """The fibres inside one factor, None where it does not hold the axis."""
    if factor is axis:
        return torch.arange(number_of(axis.size, symbols)).unsqueeze(0)
    if isinstance(factor, Axis) or not _holds((factor,), axis):  # type: ignore[arg-type]
        return None
    start, parts = 0, []
    for part in factor.parts:  # type: ignore[attr-defined]
        if _holds(part, axis):
            parts.append(fibres(part, axis, symbols) + start)
        start += number_of(expr_size(part), symbols)
    return torch.cat(parts)


def transformed(
    tensor: Tensor, dims: Sequence[Expr], axis: Axis, batch: tuple[Axis, ...], matrices: Mapping[int, Tensor],
    symbols: Symbols | None = None,
) -> Tensor:  # fmt: skip
    """`tensor` with a matrix applied along each of the dimensions `matrices`: new = M[batch position] @ old, for
    `M: [*batch, d, d]`. Computed in float64, returned in the type of `tensor`. `symbols` are the values of
    dynamic sizes.

    Raises:
        AnalysisError: a batch axis does not accompany the axis in a way that can be told apart.
    """
    result = tensor.detach().double().clone()
    for dim, matrix in matrices.items():
        flat = matrix.double().reshape(-1, *matrix.shape[-2:])
        for view, own_dims, own_dim, fixed in _slices(result, dims, dim, batch, symbols):
            rows = fibres(own_dims[own_dim], axis, symbols)
            moved = view.movedim(own_dim, 0)
            chosen = flat[_numbers(own_dims[own_dim], rows, batch, fixed, symbols)]
            values = moved[rows].reshape(*rows.shape, -1)
            moved[rows] = (chosen @ values).reshape(moved[rows].shape)
    return result.to(tensor.dtype)


def moment(
    tensor: Tensor, dims: Sequence[Expr], axis: Axis, batch: tuple[Axis, ...], dim: int, symbols: Symbols | None = None
) -> Tensor:
    """The second moment of an axis on a dimension of a tensor, summed over everything else: [*batch, d, d] float64."""
    shape = [int(a.size) for a in batch]
    size = number_of(axis.size, symbols)
    total = torch.zeros(torch.Size(shape).numel(), size, size, dtype=torch.float64)
    for view, own_dims, own_dim, fixed in _slices(tensor.detach(), dims, dim, batch, symbols):
        rows = fibres(own_dims[own_dim], axis, symbols)
        numbers = _numbers(own_dims[own_dim], rows, batch, fixed, symbols)
        values = view.movedim(own_dim, 0)[rows].reshape(*rows.shape, -1)
        values = values if values.dtype == torch.float64 else values.float()  # half precision overflows in sums
        total.index_add_(0, numbers, (values @ values.transpose(1, 2)).double())
    return total.reshape(*shape, size, size)


def _slices(
    tensor: Tensor, dims: Sequence[Expr], dim: int, batch: tuple[Axis, ...], symbols: Symbols | None = None
) -> Iterator[tuple[Tensor, tuple[Expr, ...], int, dict[Axis, int]]]:
    """Views of the tensor in which every batch axis lies on the dimension itself or has one known position."""
    away = next((b for b in batch if not _holds(dims[dim], b)), None)
    if away is None:
        yield tensor, tuple(dims), dim, {}
        return
    where = holders(dims, away)
    if len(where) != 1:
        raise AnalysisError(f"the batch axis {away} lies on {len(where)} dimensions beside the axis, not on one")
    (other,) = where
    (coordinate,) = coordinates(dims[other], symbols)[away]
    if bool((coordinate < 0).any()):
        raise AnalysisError(f"the batch axis {away} does not accompany the axis at every position")
    rest = tuple(b for b in batch if b is not away)
    left = (*dims[:other], *dims[other + 1 :])
    for position, value in enumerate(coordinate.tolist()):
        for view, own, own_dim, fixed in _slices(
            tensor.select(other, position), left, dim - (other < dim), rest, symbols
        ):
            yield view, own, own_dim, {**fixed, away: value}


def _numbers(
    expr: Expr, rows: Tensor, batch: tuple[Axis, ...], fixed: Mapping[Axis, int], symbols: Symbols | None
) -> Tensor:
    """For every fibre, its position among those of the batch axes together: [fibres]."""
    found = coordinates(expr, symbols)
    number = torch.zeros(len(rows), dtype=torch.long)
    for axis in batch:
        if axis in fixed:
            own = torch.full_like(number, fixed[axis])
        else:
            candidates = [c[rows[:, 0]] for c in found[axis] if bool((c[rows] >= 0).all())]
            if len(candidates) != 1:
                raise AnalysisError(f"the batch axis {axis} does not accompany the axis at every position")
            own = candidates[0]
        number = number * number_of(axis.size, symbols) + own
    return number
