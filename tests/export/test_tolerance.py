from __future__ import annotations

import math

import pytest
import torch

from fxslim.export.tolerance import FLOAT32, HALF, TF32, TOLERANCES, compare, tolerance_for
from fxslim.graph.errors import InputError

SIZE = 1000


@pytest.fixture
def exact() -> torch.Tensor:
    return torch.randn(SIZE, dtype=torch.float64)


def test_another_rounding_of_the_same_values_passes(exact: torch.Tensor) -> None:
    rounded = exact.float()
    other = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    assert compare("y", other, rounded, exact, FLOAT32).ok


def test_a_small_error_everywhere_fails(exact: torch.Tensor) -> None:
    row = compare("y", (exact * (1 + 1e-5)).float(), exact.float(), exact, FLOAT32)
    assert not row.ok and row.rmse > row.allowed > row.noise_floor
    assert "rms error" in str(row.problem)


def test_an_error_as_large_as_the_reference_s_own_passes(exact: torch.Tensor) -> None:
    """A deep network in float32 is far from float64: the candidate may be as far, on the other side."""
    noise = 1e-3 * torch.randn(SIZE, dtype=torch.float64)
    assert compare("y", exact - noise, exact + noise, exact, FLOAT32).ok
    assert not compare("y", exact - 10 * noise, exact + noise, exact, FLOAT32).ok


def test_one_wrong_element_in_many_fails() -> None:
    exact = torch.randn(10**6, dtype=torch.float64)
    wrong = exact.float()
    wrong[123] += 1e-3
    row = compare("y", wrong, exact.float(), exact, FLOAT32)
    assert row.rmse < row.allowed
    assert not row.ok and "largest error" in str(row.problem)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_on_one_side_fails(exact: torch.Tensor, value: float) -> None:
    wrong = exact.float()
    wrong[3] = value
    row = compare("y", wrong, exact.float(), exact, FLOAT32)
    assert not row.ok and "not finite on one side" in str(row.problem)
    assert row.to_dict()["max_abs"] is None


def test_masked_values_that_agree_pass(exact: torch.Tensor) -> None:
    exact[:5] = -math.inf
    assert compare("y", exact.float(), exact.float(), exact, FLOAT32).ok


def test_nothing_finite_is_nothing_compared() -> None:
    nothing = torch.full((4,), math.nan)
    assert not compare("y", nothing, nothing, nothing.double(), FLOAT32).ok


def test_integers_must_be_equal() -> None:
    a = torch.arange(5)
    assert compare("ids", a, a.clone(), a, FLOAT32).ok
    row = compare("ids", a + torch.tensor([0, 0, 1, 0, 0]), a, a, FLOAT32)
    assert not row.ok and "1 of 5 integers differ" in str(row.problem)


def test_other_shapes_are_refused(exact: torch.Tensor) -> None:
    with pytest.raises(InputError):
        compare("y", exact[:-1], exact, exact, FLOAT32)


def test_a_constant_output_is_marked() -> None:
    zeros = torch.zeros(8)
    assert compare("y", zeros, zeros, zeros.double(), FLOAT32).constant
    ramp = torch.arange(8.0)
    assert not compare("y", ramp, ramp, ramp.double(), FLOAT32).constant


def test_the_tolerance_follows_provider_and_data() -> None:
    assert tolerance_for("CPUExecutionProvider", {torch.float32}) is FLOAT32
    assert tolerance_for("CUDAExecutionProvider", {torch.float32}) is FLOAT32
    assert tolerance_for("TensorrtExecutionProvider", {torch.float32}) is TF32
    assert tolerance_for("CPUExecutionProvider", {torch.float32, torch.bfloat16}) is HALF
    assert all(name == t.name and t.reason for name, t in TOLERANCES.items())
