"""The refit against textbook least squares, and in the corners where textbooks stop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxslim.passes import refit as refit_module
from fxslim.passes.refit import LADDER, refit, residual, shift_bias, solve_once
from fxslim.passes.statistics import SecondMoment

CLOSE = 1e-8  # normal equations in float64 square the condition number; these are well conditioned


def moment(x: Tensor) -> SecondMoment:
    return SecondMoment.of(x.unsqueeze(0) if x.dim() == 2 else x)


def correlated(tokens: int, columns: int, mean: float = 0.0) -> Tensor:
    """Columns that explain one another, as activations do."""
    return (
        torch.randn(tokens, columns).double() @ (torch.eye(columns) + 0.4 * torch.randn(columns, columns)).double()
        + mean
    )


def kept_of(columns: int, *removed: int) -> Tensor:
    mask = torch.ones(1, columns, dtype=torch.bool)
    mask[:, list(removed)] = False
    return mask


def test_keeping_everything_is_the_identity() -> None:
    x, w, b = moment(correlated(50, 6, 1.0)), torch.randn(1, 4, 6).double(), torch.randn(1, 4).double()
    result = refit(w, b, kept_of(6), x, x, ladder=(1e-1,))
    torch.testing.assert_close(result.weight, w)
    torch.testing.assert_close(result.bias, b)


@pytest.mark.parametrize("with_bias", [True, False])
def test_it_equals_least_squares(with_bias: bool) -> None:
    x = correlated(200, 6, 0.7)
    w, b = torch.randn(1, 4, 6).double(), torch.randn(1, 4).double() if with_bias else None
    kept = kept_of(6, 1, 4)
    result = refit(w, b, kept, moment(x), moment(x), ladder=(1e-13,))
    design = x[:, kept[0]]
    target = x @ w[0].T
    if b is not None:
        design, target = torch.cat([design, torch.ones(200, 1).double()], 1), target + b
    solution = torch.linalg.lstsq(design, target).solution.T
    assert result.accepted
    torch.testing.assert_close(result.weight[0][:, kept[0]], solution[:, :4], rtol=CLOSE, atol=CLOSE)
    assert bool((result.weight[0][:, ~kept[0]] == 0).all())
    if b is None:
        assert result.bias is None
    else:
        torch.testing.assert_close(result.bias[0], solution[:, 4], rtol=CLOSE, atol=CLOSE)


def test_blocks_are_solved_apart() -> None:
    x = torch.stack([correlated(100, 5), correlated(100, 5)])
    w, kept = torch.randn(2, 3, 5).double(), torch.cat([kept_of(5, 0, 2), kept_of(5, 3, 4)])
    both = refit(w, None, kept, moment(x), moment(x), ladder=(1e-12,))
    for block in range(2):
        own = slice(block, block + 1)
        alone = refit(w[own], None, kept[own], moment(x[own]), moment(x[own]), ladder=(1e-12,))
        torch.testing.assert_close(both.weight[own], alone.weight)


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_residual_is_never_raised(seed: int) -> None:
    torch.manual_seed(seed)
    x, w, b = moment(correlated(40, 8, 0.3)), torch.randn(1, 5, 8).double(), torch.randn(1, 5).double()
    kept = torch.rand(1, 8) < 0.6
    result = refit(w, b, kept, x, x)
    assert result.after <= result.before
    full = torch.cat([w, b.unsqueeze(-1)], -1)
    sliced = torch.cat([w * kept.unsqueeze(1), b.unsqueeze(-1)], -1)
    got = torch.cat([result.weight, result.bias.unsqueeze(-1)], -1)
    assert float(residual(full, got, x)) <= float(residual(full, sliced, x)) * (1 + CLOSE)


@pytest.mark.parametrize("strip", [1, 4, 384])
def test_the_residual_is_the_error_of_the_outputs(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refit_module, "_STRIP", strip)
    x, w, other = correlated(30, 5, 0.5), torch.randn(1, 4, 6).double(), torch.randn(1, 4, 6).double()
    ones = torch.cat([x, torch.ones(30, 1).double()], 1)
    direct = (ones @ w[0].T - ones @ other[0].T).square().sum()
    torch.testing.assert_close(residual(w, other, moment(x)), direct)


@pytest.mark.parametrize(("tokens", "tried"), [(400, 2), (10, 5)])
def test_ridges_are_tried_until_the_error_rises_where_data_is_plenty(
    tokens: int, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of them is the best of these; with little data there could be a further least."""
    x, asked = correlated(tokens, 6, 0.5), []
    solve = refit_module._solve
    monkeypatch.setattr(refit_module, "_solve", lambda s, p, ridge: asked.append(ridge) or solve(s, p, ridge))
    result = refit(torch.randn(1, 4, 6).double(), None, kept_of(6, 5), moment(x), moment(x))
    assert result.ridge == LADDER[0] and asked == [*LADDER[:tried], LADDER[0]]


def test_uncorrelated_columns_leave_nothing_to_refit() -> None:
    """X^T X = I and no bias: the kept columns know nothing of the removed ones."""
    x = torch.linalg.qr(torch.randn(30, 6).double()).Q
    w, kept = torch.randn(1, 4, 6).double(), kept_of(6, 0, 5)
    result = refit(w, None, kept, moment(x), moment(x))
    torch.testing.assert_close(result.weight, w * kept.unsqueeze(1), rtol=CLOSE, atol=CLOSE)


def test_dead_columns_keep_their_weights() -> None:
    x = correlated(60, 6)
    x[:, 2] = 0
    w = torch.randn(1, 4, 6).double()
    result = refit(w, None, kept_of(6, 5), moment(x), moment(x), ladder=(1e-9,))
    assert result.accepted
    torch.testing.assert_close(result.weight[..., 2], w[..., 2])


@pytest.mark.parametrize("ladder", [LADDER, (0.0,)])
def test_a_rank_deficient_input_does_not_crash(ladder: tuple[float, ...]) -> None:
    """Fewer tokens than columns, and a column given twice."""
    x = correlated(3, 8)
    x[:, 1] = x[:, 0]
    w, b = torch.randn(1, 4, 8).double(), torch.randn(1, 4).double()
    result = refit(w, b, kept_of(8, 7), moment(x), moment(x), ladder=ladder)
    assert bool(torch.isfinite(result.weight).all())
    assert result.after <= result.before


def test_a_copy_of_a_removed_column_takes_over_its_weight() -> None:
    x = correlated(100, 5)
    x[:, 3] = x[:, 0]
    w = torch.randn(1, 4, 5).double()
    result = refit(w, None, kept_of(5, 3), moment(x), moment(x), ladder=(1e-12,))
    torch.testing.assert_close(result.weight[..., 0], w[..., 0] + w[..., 3], rtol=1e-6, atol=1e-6)
    assert result.after < 1e-12


def test_a_constant_column_goes_into_the_bias() -> None:
    x = correlated(100, 5)
    x[:, 3] = 2.5
    w, b = torch.randn(1, 4, 5).double(), torch.randn(1, 4).double()
    result = refit(w, b, kept_of(5, 3), moment(x), moment(x), ladder=(1e-12,))
    torch.testing.assert_close(result.bias[0], b[0] + 2.5 * w[0, :, 3], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.weight[..., :3], w[..., :3], rtol=1e-6, atol=1e-6)


def test_a_refit_that_does_not_carry_over_is_rejected() -> None:
    """On the training part column 1 repeats column 0; on the held-out part it is its negative."""
    x = correlated(60, 4)
    x[:, 1] = x[:, 0]
    other = x.clone()
    other[:, 1] = -other[:, 0]
    w, b, kept = torch.randn(1, 3, 4), torch.randn(1, 3), kept_of(4, 1)
    result = refit(w, b, kept, moment(x), moment(other))
    assert not result.accepted
    assert "held-out" in result.reason
    assert result.after == result.before
    assert torch.equal(result.weight, w * kept.unsqueeze(1))
    assert torch.equal(result.bias, b)


def test_an_accepted_refit_uses_all_data() -> None:
    both, w = correlated(80, 5), torch.randn(1, 3, 5).double()
    x, y = both[:40], both[40:]
    kept = kept_of(5, 4)
    result = refit(w, None, kept, moment(x), moment(x) + moment(y), ladder=(1e-12,))
    everything = torch.cat([x, x, y])
    target = everything @ w[0].T
    solution = torch.linalg.lstsq(everything[:, :4], target).solution.T
    torch.testing.assert_close(result.weight[0, :, :4], solution, rtol=1e-6, atol=1e-6)
    assert result.tokens == 120


def test_second_moments_add_up() -> None:
    x, y = correlated(7, 3), correlated(9, 3)
    added = moment(x) + moment(y)
    torch.testing.assert_close(added.matrix, moment(torch.cat([x, y])).matrix)
    assert added.count == 16
    torch.testing.assert_close(added.norms()[0], torch.cat([x, y]).norm(dim=0))


def test_a_bias_takes_over_constant_columns_exactly() -> None:
    w, b = torch.randn(1, 4, 6).double(), torch.randn(1, 4).double()
    x = correlated(60, 6)
    x[:, [1, 4]] = torch.tensor([2.5, -0.5]).double()
    kept = kept_of(6, 1, 4)
    found = shift_bias(w, b, kept, moment(x[:40]), moment(x[40:]))
    assert found.accepted and found.before > 0.01 and found.after < 1e-12
    torch.testing.assert_close(found.bias, b + 2.5 * w[..., 1] - 0.5 * w[..., 4], rtol=CLOSE, atol=CLOSE)
    assert torch.equal(found.weight, w * kept.unsqueeze(1)), "weights that stay are as they were"


def test_a_bias_takes_over_the_mean_of_all_data() -> None:
    w, b, x = torch.randn(1, 4, 6).double(), torch.randn(1, 4).double(), correlated(64, 6, mean=3.0)
    found = shift_bias(w, b, kept_of(6, 2), moment(x[:48]), moment(x[48:]))
    assert found.accepted and found.after < found.before and found.bias is not None
    torch.testing.assert_close(found.bias[0], b[0] + w[0, :, 2] * x[:, 2].mean(), rtol=CLOSE, atol=CLOSE)


def test_without_a_bias_nothing_is_added() -> None:
    w, x = torch.randn(1, 4, 6).double(), correlated(60, 6, mean=3.0)
    found = shift_bias(w, None, kept_of(6, 2), moment(x[:40]), moment(x[40:]))
    assert not found.accepted and found.bias is None and found.reason == "there is no bias"
    assert found.before == found.after > 0


def test_a_bias_that_held_out_data_does_not_confirm_is_left() -> None:
    w, b, x = torch.randn(1, 4, 6).double(), torch.randn(1, 4).double(), correlated(60, 6)
    found = shift_bias(w, b, kept_of(6, 2), moment(x + 3.0), moment(x - 3.0))
    assert not found.accepted and torch.equal(found.bias, b) and found.reason


@pytest.mark.parametrize("with_bias", [True, False])
def test_one_solve_is_the_refit_at_that_ridge(with_bias: bool) -> None:
    torch.manual_seed(5)
    x, kept = moment(correlated(60, 6, 0.5)), kept_of(6, 0, 3)
    w, b = torch.randn(1, 4, 6).double(), torch.randn(1, 4).double() if with_bias else None
    judged, solved = refit(w, b, kept, x, x, ladder=(1e-4,)), solve_once(w, b, kept, x, 1e-4)
    assert judged.accepted and solved is not None
    torch.testing.assert_close(solved[0], judged.weight, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(solved[1], judged.bias, rtol=CLOSE, atol=CLOSE)


def test_one_solve_of_what_is_no_second_moment_is_none() -> None:
    x, kept, w = moment(correlated(60, 4)), kept_of(4, 0), torch.randn(1, 3, 4).double()
    assert solve_once(w, None, kept, SecondMoment(-x.matrix), 1e-4) is None
    assert solve_once(w, None, kept, x, 1e-4) is not None
