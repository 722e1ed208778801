"""How far outputs are apart, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fxslim.passes.divergence import divergence


def test_logits_by_their_distributions() -> None:
    old, new = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log() + 3, torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log() - 1
    row = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence(["logits"], [old], [new]) == pytest.approx(row / 2, rel=1e-5)


def test_other_outputs_by_their_squared_error_over_the_variance() -> None:
    old, new = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 2.5, 3.0, 5.0])
    assert divergence(["output"], [old], [new]) == pytest.approx((0.25 + 1.0) / 14)
    assert divergence(["output"], [old + 100], [new + 100]) == pytest.approx((0.25 + 1.0) / 14)


def test_outputs_add_up_and_only_floats_count() -> None:
    a, b = torch.randn(5), torch.randn(5)
    both = divergence(["a", "b", "n", "c"], [a, b, torch.arange(3), 1], [a * 2, b + 1, torch.zeros(3).long(), 2])
    assert both == pytest.approx(divergence(["a"], [a], [a * 2]) + divergence(["b"], [b], [b + 1]))


def test_the_same_is_nothing() -> None:
    x = torch.randn(4, 7)
    assert divergence(["logits", "hidden"], [x, x], [x, x]) == 0.0
    assert divergence([], [], []) == 0.0


@pytest.mark.parametrize("name", ["logits", "hidden"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_any_more_is_infinitely_far(name: str, bad: float) -> None:
    old, new = torch.randn(4, 7), torch.randn(4, 7)
    new[1, 2] = bad
    assert divergence([name], [old], [new]) == math.inf


@pytest.mark.parametrize("name", ["logits", "hidden"])
def test_what_was_masked_before_is_left_out(name: str) -> None:
    """A vocabulary of which a part is ruled out by -inf: as if it were not there."""
    old, new = torch.randn(4, 7), torch.randn(4, 7)
    wanted = divergence([name], [old[:, :5]], [new[:, :5]])
    old[:, 5:] = new[:, 5:] = -math.inf
    assert divergence([name], [old], [new]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
def test_a_row_without_a_distribution_is_left_out(bad: float) -> None:
    """A padded row, all of it ruled out: as if it were not there."""
    old, new = torch.randn(4, 7), torch.randn(4, 7)
    wanted = divergence(["logits"], [old[:3]], [new[:3]])
    old[3] = new[3] = bad
    assert divergence(["logits"], [old], [new]) == pytest.approx(wanted, rel=1e-5)
    assert divergence(["logits"], [old[3:]], [new[3:]]) == 0.0


def test_what_replaces_a_cache_does_not_count() -> None:
    """What a cache holds is no output of the model: what it is for shows in the logits of the next step."""
    logits, cache = torch.randn(2, 3, 50), torch.randn(2, 2, 3, 4)
    names = ["logits", "present"]
    assert divergence(names, [logits, cache], [logits, cache + 1], {"present"}) == 0.0
    assert divergence(names, [logits, cache], [logits, cache + 1]) > 0.0


@pytest.mark.parametrize("now", [math.nan, math.inf, 7.0])
def test_what_was_masked_before_may_be_anything_now(now: float) -> None:
    """And does not hide what happened to the others in its row."""
    old, new = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, 2.0]]), torch.tensor([[9.0, -9.0, now], [0.0, 1.0, 2.0]])
    wanted = divergence(["logits"], [old[:1, :2]], [new[:1, :2]]) / 2
    assert wanted > 1 and divergence(["logits"], [old], [new]) == pytest.approx(wanted, rel=1e-5)


def test_few_rows_at_a_time_are_all_rows_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole chunks, with a shorter last one, and row by row where a row alone is larger; masked rows besides."""
    old, new = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    old[1, 2] = new[1, 2] = -math.inf
    wanted = divergence(["logits"], [old], [new])
    rows = [divergence(["logits"], [a[None]], [b[None]]) for a, b in zip(old.view(15, 8), new.view(15, 8), strict=True)]
    assert wanted == pytest.approx(sum(rows) / 14, rel=1e-6)
    for count in (1, 32, 40):
        monkeypatch.setattr("fxslim.passes.divergence._AT_ONCE", count)
        assert divergence(["logits"], [old], [new]) == pytest.approx(wanted, rel=1e-6)
