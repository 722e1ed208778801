"""Selections against brute force: every element of a tensor is kept iff all its coordinates are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor

from fxslim.graph.axes.select import Kept, Selection, coordinates
from fxslim.graph.axes.terms import Axis, Cat, Expr, expr_size

H, D, E, F = Axis(0, 3), Axis(1, 4), Axis(2, 5), Axis(3, 2)


def keep(axis: Axis, *positions: int) -> Kept:
    mask = torch.zeros(axis.size, dtype=torch.bool)
    mask[list(positions)] = True
    return Kept((), mask)


def rows(axis: Axis, batch: Axis, table: Sequence[Sequence[int]]) -> Kept:
    mask = torch.zeros(batch.size, axis.size, dtype=torch.bool)
    for row, positions in zip(mask, table, strict=True):
        row[list(positions)] = True
    return Kept((batch,), mask)


HEADS = keep(H, 0, 2)
DIMS = keep(D, 1, 3)
PER_HEAD = rows(D, H, [(0, 1), (2, 3), (0, 3)])


def walk(expr: Expr) -> Iterator[dict[Axis, int]]:
    """The coordinates of the axes at every position of a dimension, by plain recursion."""
    if not expr:
        yield {}
        return
    head, *rest = expr
    inner = list(walk(tuple(rest)))
    heads = (
        [{head: i} for i in range(head.size)] if isinstance(head, Axis) else [c for p in head.parts for c in walk(p)]
    )
    for outer, own in itertools.product(heads, inner):
        yield {**outer, **own}


def brute(tensor: Tensor, dims: Sequence[Expr], kept: Mapping[Axis, Kept]) -> list[float]:
    """The elements that remain, in the order of the smaller tensor: positions count among those of their row."""
    found = []
    for place in itertools.product(*(list(enumerate(walk(e))) for e in dims)):
        where = {a: i for _, coords in place for a, i in coords.items()}
        if all(bool(k.mask[(*(where[b] for b in k.batch), where[a])]) for a, k in kept.items() if a in where):
            key = tuple(_small(e, i, {**where, **own}, kept) for e, (i, own) in zip(dims, place, strict=True))
            found.append((key, float(tensor[tuple(i for i, _ in place)])))
    return [value for _, value in sorted(found)]


def _small(expr: Expr, index: int, where: Mapping[Axis, int], kept: Mapping[Axis, Kept]) -> tuple[int, ...]:
    """Where a position of a dimension stands among its like: rank by rank in a product, as it is in a concatenation."""
    if any(isinstance(f, Cat) for f in expr):
        return (index,)
    return tuple(_rank(f, where, kept) for f in expr if isinstance(f, Axis))


def _rank(axis: Axis, where: Mapping[Axis, int], kept: Mapping[Axis, Kept]) -> int:
    if axis not in kept:
        return where[axis]
    row = kept[axis].mask[tuple(where[b] for b in kept[axis].batch)]
    return int(row[: where[axis]].sum())


HALVES = (Cat(((E,), (E,))),)
FUSED = (Cat(((H, D), (H, D), (E,))),)

CASES: dict[str, tuple[tuple[Expr, ...], dict[Axis, Kept]]] = {
    "one axis": (((H,), (D,)), {D: DIMS}),
    "two axes": (((H,), (D,)), {H: HEADS, D: DIMS}),
    "a product": (((H, D), (E,)), {D: DIMS}),
    "both factors": (((H, D),), {H: HEADS, D: DIMS}),
    "per head in one dimension": (((E,), (H, D)), {D: PER_HEAD}),
    "per head in two dimensions": (((H,), (E,), (D,)), {D: PER_HEAD}),
    "per head, minor first": (((D, H),), {D: PER_HEAD}),
    "per head and fewer heads": (((H, D), (E,)), {H: HEADS, D: PER_HEAD}),
    "halves": ((HALVES, (D,)), {E: keep(E, 0, 3)}),
    "fused": ((FUSED, (F,)), {D: DIMS}),
    "fused, per head": ((FUSED,), {D: PER_HEAD}),
    "fused, per head, with heads": ((FUSED, (F,)), {H: HEADS, D: PER_HEAD, E: keep(E, 4)}),
    "size 1": (((), (H,), ()), {H: HEADS}),
    "a product with a concatenation": (((H, Cat(((F,), (E,)))),), {H: HEADS, E: keep(E, 1, 2)}),
    "twice in one tensor": (((H,), (H, D)), {D: DIMS}),
}


@pytest.mark.parametrize("name", CASES)
def test_take_is_brute_force(name: str) -> None:
    dims, kept = CASES[name]
    shape = [int(expr_size(e)) for e in dims]
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    selection = Selection(kept)
    got = selection.take(tensor, dims)
    assert got.flatten().tolist() == brute(tensor, dims, kept)
    assert list(got.shape) == [selection.size(e) for e in dims]
    mask = selection.mask(dims)
    assert mask is not None and int(mask.expand(shape).sum()) == got.numel()


@pytest.mark.parametrize("name", CASES)
def test_put_is_the_inverse_of_take(name: str) -> None:
    dims, kept = CASES[name]
    shape = [int(expr_size(e)) for e in dims]
    tensor, selection = torch.randn(shape), Selection(kept)
    assert torch.equal(
        selection.put(selection.take(tensor, dims), torch.zeros(shape), dims) != 0, selection.mask(dims).expand(shape)
    )  # type: ignore[union-attr]
    assert torch.equal(selection.put(selection.take(tensor, dims), tensor, dims), tensor)
    new = torch.randn_like(selection.take(tensor, dims))
    assert torch.equal(selection.take(selection.put(new, tensor, dims), dims), new)


def test_an_axis_on_two_dimensions_of_one_tensor() -> None:
    tensor = torch.arange(9.0).reshape(3, 3)
    got = Selection({H: HEADS}).take(tensor, ((H,), (H,)))
    assert got.tolist() == [[0.0, 2.0], [6.0, 8.0]]


def test_an_axis_multiplied_with_itself() -> None:
    got = Selection({H: HEADS}).take(torch.arange(9.0), ((H, H),))
    assert got.tolist() == [0.0, 2.0, 6.0, 8.0]


def test_tensors_without_a_selected_axis_are_returned_as_they_are() -> None:
    tensor = torch.randn(3, 5)
    selection = Selection({D: DIMS})
    assert selection.mask(((H,), (E,))) is None and not selection.touches(((H,), FUSED[:0]))
    assert selection.take(tensor, ((H,), (E,))) is tensor
    assert selection.put(tensor, torch.zeros(3, 5), ((H,), (E,))) is tensor


def test_symbolic_sizes_are_given_at_the_call() -> None:
    s = sympy.Symbol("s0", positive=True, integer=True)
    batch = Axis(9, s)
    selection = Selection({H: HEADS})
    tensor = torch.arange(21.0).reshape(7, 3)
    assert torch.equal(selection.take(tensor, ((batch,), (H,)), {s: 7}), tensor[:, [0, 2]])
    assert selection.size((batch, H)) == 2 * s
    flat = selection.take(tensor.flatten(), ((batch, H),), {s: 7})
    assert torch.equal(flat, tensor[:, [0, 2]].flatten())


def test_coordinates_of_a_fused_dimension() -> None:
    found = coordinates((Cat(((F, E), (E,))),))
    assert found[E][0].tolist() == [0, 1, 2, 3, 4] * 3
    assert found[F][0].tolist() == [0] * 5 + [1] * 5 + [-1] * 5


def test_a_batch_axis_that_does_not_accompany_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="does not accompany"):
        Selection({D: PER_HEAD}).take(torch.randn(4), ((D,),))


def test_the_count_is_the_same_in_every_row() -> None:
    assert PER_HEAD.count == 2 and HEADS.count == 2
