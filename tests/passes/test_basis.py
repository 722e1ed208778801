"""The best basis against explicit errors, random subspaces, and the optimum by singular values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxslim.passes.basis import Basis, optimal_basis

CLOSE = 1e-9  # relative: roots and inverses of well conditioned float64 matrices


def mixed(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns).double() @ (torch.eye(columns) + 0.5 * torch.randn(columns, columns)).double()


def error(x: Tensor, c: Tensor, basis: Basis, rank: int) -> float:
    """||C a - C P a||² over the rows a of x, where P keeps the first coordinates."""
    kept = basis.backward[:, :rank] @ basis.forward[:rank]
    return float((x @ c.T - x @ kept.T @ c.T).square().sum())


def found(x: Tensor, c: Tensor) -> Basis:
    return optimal_basis(x.T @ x, c.T @ c)


@pytest.mark.parametrize("readers", [4, 9], ids=["fewer readers", "more readers"])
def test_what_is_left_out_is_what_it_costs(readers: int) -> None:
    x, c = mixed(50, 6), mixed(readers, 6)
    basis = found(x, c)
    losses, scale = basis.losses(), float((x @ c.T).square().sum())
    for rank in range(7):
        assert float(losses[rank]) == pytest.approx(error(x, c, basis, rank), rel=CLOSE, abs=CLOSE * scale)
    assert bool((losses[1:] <= losses[:-1]).all())
    assert float(losses[6]) == 0.0


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_random_subspace_is_better(rank: int) -> None:
    """Any rank, not only orthogonal projections: P = A B with any A and the B that is best for it."""
    x, c = mixed(60, 6), mixed(5, 6)
    least = float(found(x, c).losses()[rank])
    target = x @ c.T
    for _ in range(200):
        coordinates = x @ torch.randn(6, rank).double()
        best_reading = torch.linalg.lstsq(coordinates, target).solution
        assert least <= float((target - coordinates @ best_reading).square().sum()) * (1 + CLOSE)


def test_it_is_the_optimum_by_singular_values() -> None:
    """Eckart and Young: the least error at rank r is what the singular values of S^1/2 C^T behind the r-th leave."""
    x, c = mixed(60, 6), mixed(8, 6)
    values, vectors = torch.linalg.eigh(x.T @ x)
    root = vectors * values.sqrt() @ vectors.T
    singular = torch.linalg.svdvals(root @ c.T)
    wanted = singular.square().flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(found(x, c).losses()[:-1], wanted, rtol=CLOSE, atol=0)


def test_white_inputs_give_the_plain_svd_of_the_product() -> None:
    """a = W x with X^T X = I: keeping r coordinates of a is the best approximation of C W by rank r."""
    made, c = mixed(6, 9), mixed(8, 6)
    basis = optimal_basis(made @ made.T, c.T @ c)
    u, s, v = torch.linalg.svd(c @ made, full_matrices=False)
    torch.testing.assert_close(basis.energy, s.square()[:6], rtol=CLOSE, atol=0)
    for rank in (1, 2, 4):
        got = c @ basis.backward[:, :rank] @ basis.forward[:rank] @ made
        torch.testing.assert_close(got, u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_product_of_low_rank_is_cut_to_it_without_loss(rank: int) -> None:
    x = torch.randn(40, rank).double() @ mixed(rank, 6)
    c = mixed(5, 6)
    basis = found(x, c)
    scale = float((x @ c.T).square().sum())
    assert error(x, c, basis, rank) < 1e-20 * scale
    assert float(basis.losses()[rank]) < 1e-12 * scale
    assert float(basis.losses()[rank - 1]) > 1e-6 * scale


def test_forward_and_backward_are_inverse() -> None:
    basis = found(mixed(50, 6), mixed(8, 6))
    torch.testing.assert_close(basis.backward @ basis.forward, torch.eye(6).double(), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(basis.forward @ basis.backward, torch.eye(6).double(), rtol=CLOSE, atol=CLOSE)


def test_coordinates_come_by_what_they_cost() -> None:
    energy = found(mixed(50, 6), mixed(8, 6)).energy
    assert bool((energy[1:] <= energy[:-1]).all())


@pytest.mark.parametrize(
    ("tokens", "readers"), [(3, 8), (40, 2), (2, 2), (40, 0), (0, 8), (0, 0)],
    ids=["S singular", "K singular", "both singular", "K zero", "S zero", "both zero"],
)  # fmt: skip
def test_singular_moments_leave_the_function_as_it_is(tokens: int, readers: int) -> None:
    """C P a = C a for every a, also for those that the data did not show."""
    x, c = mixed(tokens, 6), mixed(readers, 6)
    basis, other = found(x, c), mixed(30, 6)
    assert all(bool(t.isfinite().all()) for t in (basis.forward, basis.backward, basis.energy))
    torch.testing.assert_close(c @ basis.backward @ basis.forward @ other.T, c @ other.T, rtol=1e-8, atol=1e-8)


def test_scale_does_not_matter() -> None:
    x, c = mixed(50, 6), mixed(8, 6)
    plain = found(x, c)
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(
            optimal_basis(x.T @ x * scale, c.T @ c / scale).energy, plain.energy, rtol=1e-8, atol=0
        )


def test_batch_positions_are_independent() -> None:
    x, c = torch.stack([mixed(50, 6) for _ in range(3)]), torch.stack([mixed(8, 6) * (i + 1) for i in range(3)])
    together = optimal_basis(x.mT @ x, c.mT @ c)
    apart = [found(x[i], c[i]) for i in range(3)]
    for i, own in enumerate(apart):
        torch.testing.assert_close(together.energy[i], own.energy, rtol=CLOSE, atol=0)
        for rank in range(7):
            part = Basis(together.forward[i], together.backward[i], together.energy[i])
            assert error(x[i], c[i], part, rank) == pytest.approx(error(x[i], c[i], own, rank), rel=1e-8, abs=1e-15)
    torch.testing.assert_close(together.losses(), torch.stack([b.losses() for b in apart]).sum(0), rtol=CLOSE, atol=0)


def test_a_ridge_keeps_what_the_reader_was_not_seen_to_read() -> None:
    """Without one the direction of K's null space is dropped; with one it is a coordinate like others."""
    x = mixed(50, 4)
    gram = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    plain, ridged = optimal_basis(x.T @ x, gram), optimal_basis(x.T @ x, gram, ridge=1e-6)
    assert torch.linalg.matrix_rank(plain.backward @ plain.forward) == 3
    torch.testing.assert_close(ridged.backward @ ridged.forward, torch.eye(4).double(), rtol=1e-6, atol=1e-6)
    assert float(ridged.energy[-1]) < 1e-4 * float(ridged.energy[0])
