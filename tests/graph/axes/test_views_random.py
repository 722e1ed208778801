"""Random reshapes, joins and cuts: the rules that are computed instead of written, against the operators."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxslim.graph.axes.oracle import Sample, check
from fxslim.graph.axes.select import coordinates
from fxslim.graph.axes.terms import Reason, Terms

aten = torch.ops.aten
TOTALS = (24, 36, 48, 60)
few = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def shapes(draw: st.DrawFn, total: int) -> list[int]:
    shape = []
    while total > 1:
        size = draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0]))
        shape.append(size)
        total //= size
    for _ in range(draw(st.integers(0, 1))):
        shape.insert(draw(st.integers(0, len(shape))), 1)
    return shape


pairs = st.sampled_from(TOTALS).flatmap(lambda n: st.tuples(shapes(n), shapes(n)))


@few
@given(pairs)
def test_reshape(pair: tuple[list[int], list[int]]) -> None:
    before, after = pair
    x = torch.arange(float(torch.Size(before).numel()), dtype=torch.float64).reshape(before)
    sample = Sample(aten.reshape.default, (x, after))
    assert sample.rule is not None
    assert check(sample, sample.rule) == []


@few
@given(pairs)
def test_unfixed_axes_have_one_coordinate(pair: tuple[list[int], list[int]]) -> None:
    """Also where layouts conflict: an axis that is not fixed means the same positions on both sides."""
    t = Terms()
    left, right = (tuple(f for n in shape for f in t.fresh(n)) for shape in pair)
    t.unify(left, right, Reason("met"))
    fixed = {a for expr, _ in t.fixations for a in t.atoms(expr)}
    ours, theirs = coordinates(t.resolve(left)), coordinates(t.resolve(right))
    for axis in (ours.keys() | theirs.keys()) - fixed:
        assert torch.equal(ours[axis][0], theirs[axis][0])


@few
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2))
def test_cat_and_split(sizes: list[int], dim: int) -> None:
    parts = [torch.randn([n if d == dim else 2 + d for d in range(3)], dtype=torch.float64) for n in sizes]
    for sample in (
        Sample(aten.cat.default, (parts, dim - 3)),
        Sample(aten.split_with_sizes.default, (torch.cat(parts, dim), sizes, dim)),
    ):
        assert sample.rule is not None
        assert check(sample, sample.rule) == []


@few
@given(st.integers(-9, 9), st.integers(-9, 12), st.integers(1, 4))
def test_slice(start: int, end: int, step: int) -> None:
    x = torch.randn(3, 8, dtype=torch.float64)
    sample = Sample(aten.slice.Tensor, (x, 1, start, end, step))
    assert sample.rule is not None
    if sample.call.results[0][1] != 0:
        assert [v for v in check(sample, sample.rule) if "missed" not in v] == []


@few
@given(st.lists(st.integers(-2, 2), min_size=2, max_size=4).filter(lambda p: len(p) % 2 == 0))
def test_pad(amounts: list[int]) -> None:
    sample = Sample(aten.constant_pad_nd.default, (torch.randn(6, 5, dtype=torch.float64), amounts))
    assert sample.rule is not None
    assert [v for v in check(sample, sample.rule) if "missed" not in v] == []
