"""Fibres against reshapes and einsums written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxslim.graph.axes.fibres import fibres, holders, moment, transformed
from fxslim.graph.axes.terms import Axis, Cat, Expr
from fxslim.graph.errors import AnalysisError

H, D, E, N, K, A, B = (Axis(i, n) for i, n in enumerate((3, 4, 2, 5, 6, 2, 3)))
CLOSE = 1e-12  # float64, a few products


def matrix(*shape: int) -> Tensor:
    """Well conditioned, so that it can be undone."""
    return torch.eye(shape[-1]).double() + 0.2 * torch.randn(shape).double()


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(
    ("expr", "axis", "wanted"),
    [
        ((D,), D, [[0, 1, 2, 3]]),
        ((A, B), B, [[0, 1, 2], [3, 4, 5]]),
        ((B, A), B, [[0, 2, 4], [1, 3, 5]]),
        ((Cat(((A,), (B,))),), A, [[0, 1]]),
        ((Cat(((A,), (B,))),), B, [[2, 3, 4]]),
        ((Cat(((B,), (A, B))),), B, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
        ((A, Cat(((E,), (B,)))), B, [[2, 3, 4], [7, 8, 9]]),
        ((Cat(((E,), (B,))), A), B, [[4, 6, 8], [5, 7, 9]]),
    ],
    ids=["alone", "minor", "major", "first part", "second part", "both parts", "outer", "inner"],
)
def test_fibres(expr: Expr, axis: Axis, wanted: list[list[int]]) -> None:
    found = fibres(expr, axis)
    assert sorted(found.tolist()) == wanted


def test_an_axis_times_itself_has_no_fibres() -> None:
    with pytest.raises(AnalysisError, match="multiplied with itself"):
        fibres((D, D), D)


def test_holders() -> None:
    assert holders([(H, D), (N,), (Cat(((N,), (E, D))),), ()], D) == [0, 2]
    assert holders([(H,)], D) == []


def test_one_basis_for_all_heads() -> None:
    weight, m = torch.randn(12, 5).double(), matrix(4, 4)
    got = transformed(weight, [(H, D), (N,)], D, (), {0: m})
    close(got, torch.einsum("ed,hdn->hen", m, weight.view(3, 4, 5)).reshape(12, 5))


def test_a_basis_for_each_head() -> None:
    weight, m = torch.randn(5, 12).double(), matrix(3, 4, 4)
    got = transformed(weight, [(N,), (H, D)], D, (H,), {1: m})
    close(got, torch.einsum("hed,nhd->nhe", m, weight.view(5, 3, 4)).reshape(5, 12))


def test_the_axis_before_the_heads() -> None:
    weight, m = torch.randn(12).double(), matrix(3, 4, 4)
    close(transformed(weight, [(D, H)], D, (H,), {0: m}), torch.einsum("hed,dh->eh", m, weight.view(4, 3)).reshape(12))


def test_a_part_of_a_concatenation() -> None:
    weight, m = torch.randn(9, 5).double(), matrix(4, 4)
    got = transformed(weight, [(Cat(((D,), (N,))),), (Axis(9, 5),)], D, (), {0: m})
    close(got[:4], m @ weight[:4])
    assert torch.equal(got[4:], weight[4:])


def test_queries_keys_and_values_in_one_weight() -> None:
    q, v = Axis(20, 4), Axis(21, 4)
    weight, m = torch.randn(36, 5).double(), matrix(3, 4, 4)
    got = transformed(weight, [(Cat(((H, q), (H, q), (H, v))),), (N,)], v, (H,), {0: m})
    assert torch.equal(got[:24], weight[:24])
    close(got[24:], torch.einsum("hed,hdn->hen", m, weight[24:].view(3, 4, 5)).reshape(12, 5))


def test_a_stack_of_matrices_has_a_basis_for_each() -> None:
    weight, m, back = torch.randn(2, 5, 6).double(), matrix(2, 6, 6), matrix(2, 5, 5)
    dims = [(E,), (N,), (K,)]
    close(transformed(weight, dims, K, (E,), {2: m}), torch.einsum("elk,enk->enl", m, weight))
    close(transformed(weight, dims, N, (E,), {1: back}), torch.einsum("emn,enk->emk", back, weight))


def test_two_batch_axes_on_different_dimensions() -> None:
    weight, m = torch.randn(2, 5, 12).double(), matrix(2, 3, 4, 4)
    got = transformed(weight, [(E,), (N,), (H, D)], D, (E, H), {2: m})
    close(got, torch.einsum("ehcd,enhd->enhc", m, weight.view(2, 5, 3, 4)).reshape(2, 5, 12))


def test_both_dimensions_of_a_weight() -> None:
    weight, m, back = torch.randn(4, 4).double(), matrix(4, 4), matrix(4, 4)
    close(transformed(weight, [(D,), (D,)], D, (), {0: m, 1: back}), m @ weight @ back.T)


@pytest.mark.parametrize(
    ("shape", "dims", "axis", "batch", "dim"),
    [
        ((12, 5), [(H, D), (N,)], D, (H,), 0),
        ((2, 5, 12), [(E,), (N,), (H, D)], D, (E, H), 2),
        ((9, 2), [(Cat(((D,), (N,))),), (A,)], D, (), 0),
        ((2, 5, 6), [(E,), (N,), (K,)], K, (E,), 2),
    ],
)
def test_the_inverse_undoes_it(
    shape: tuple[int, ...], dims: list[Expr], axis: Axis, batch: tuple[Axis, ...], dim: int
) -> None:
    weight = torch.randn(shape).double()
    m = matrix(*(int(b.size) for b in batch), int(axis.size), int(axis.size))
    there = transformed(weight, dims, axis, batch, {dim: m})
    assert float((there - weight).abs().max()) > 0.01
    close(transformed(there, dims, axis, batch, {dim: torch.linalg.inv(m)}), weight)


def test_the_weight_is_left_alone_and_its_type_stays() -> None:
    weight = torch.randn(4, 5)
    before = weight.clone()
    got = transformed(weight, [(D,), (N,)], D, (), {0: matrix(4, 4)})
    assert torch.equal(weight, before) and got.dtype is torch.float32


def test_a_moment_is_the_second_moment_of_the_rows() -> None:
    x = torch.randn(7, 5, 4).double()
    found, rows = moment(x, [(K,), (N,), (D,)], D, (), 2), x.reshape(-1, 4)
    close(found, rows.T @ rows)


def test_a_moment_for_each_head_and_one_over_all() -> None:
    x = torch.randn(7, 12).double()
    heads = x.view(7, 3, 4)
    apart = moment(x, [(K,), (H, D)], D, (H,), 1)
    close(apart, torch.einsum("thc,thd->hcd", heads, heads))
    close(moment(x, [(K,), (H, D)], D, (), 1), apart.sum(0))


def test_a_moment_on_a_stack() -> None:
    weight = torch.randn(2, 5, 6).double()
    found = moment(weight, [(E,), (N,), (K,)], K, (E,), 2)
    close(found, torch.einsum("enk,enl->ekl", weight, weight))


def test_moments_add_up() -> None:
    x, y = torch.randn(7, 4).double(), torch.randn(9, 4).double()
    dims: list[Expr] = [(K,), (D,)]
    both, whole = moment(x, dims, D, (), 1) + moment(y, dims, D, (), 1), moment(torch.cat([x, y]), dims, D, (), 1)
    close(both, whole)


def test_half_precision_does_not_overflow() -> None:
    x = torch.full((64, 4), 200.0, dtype=torch.float16)  # 64 · 200² is past what float16 holds
    found = moment(x, [(K,), (D,)], D, (), 1)
    close(found, torch.full((4, 4), 64 * 200.0**2).double())


def test_a_batch_axis_elsewhere_must_be_in_one_place() -> None:
    x = torch.randn(3, 3, 4)
    for dims in ([(H,), (H,), (D,)], [(N,), (K,), (D,)]):
        with pytest.raises(AnalysisError, match=r"lies on \d dimensions"):
            moment(x, dims, D, (H,), 2)


def test_a_batch_axis_must_accompany_every_fibre() -> None:
    with pytest.raises(AnalysisError, match="does not accompany"):
        moment(torch.randn(7, 16), [(K,), (Cat(((H, D), (D,))),)], D, (H,), 1)
    with pytest.raises(AnalysisError, match="does not accompany"):
        moment(torch.randn(8, 4), [(Cat(((H,), (N,))),), (D,)], D, (H,), 1)
