"""The refit of a shared weight: least squares over all its branches at once, kept where held-out data agrees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxslim.api import apply_plan, compress, make_plan, prepare
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.passes.divergence import divergence
from fxslim.passes.plan import Plan
from fxslim.passes.restore_shared import Use, solve_shared
from fxslim.passes.statistics import SecondMoment
from tests.passes.residual import Layered, batches, layered

N, K, ROWS = 3, 4, 50
CLOSE = 1e-6
TINY = 1e-12  # a ridge that does not show


def use(seed: int, *, biased: bool = True, moved: float = 0.0) -> tuple[Use, Tensor, Tensor]:
    """A use with what its call reads now [rows, k], and returned [rows, n]."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(1, ROWS, K, generator=generator, dtype=torch.float64) + 0.5
    now = draw + moved * torch.randn(1, ROWS, K, generator=generator, dtype=torch.float64)
    target = torch.randn(1, N, K + 1, generator=generator, dtype=torch.float64)
    target[..., -1] *= biased
    moment = SecondMoment.of(torch.cat([draw, now], dim=2))
    return Use(target, moment, biased), now[0], draw[0] @ target[0, :, :-1].T + target[0, :, -1]


def test_the_moments_say_what_the_data_says() -> None:
    found, x, y = use(0, moved=0.3)
    weight = torch.randn(1, N, K + 1, dtype=torch.float64)
    ones = torch.ones(ROWS, 1, dtype=torch.float64)
    wanted = y - torch.cat([x, ones], 1) @ weight[0].T
    assert found.residual(weight) == pytest.approx(float(wanted.square().sum()), rel=1e-9)
    assert found.energy == pytest.approx(float(y.square().sum()), rel=1e-9)


@pytest.mark.parametrize("biased", [True, False])
def test_the_solution_is_that_of_least_squares_over_all_branches(biased: bool) -> None:
    uses = [use(seed, biased=biased, moved=0.3) for seed in (1, 2, 3)]
    found = solve_shared([u for u, _, _ in uses], torch.zeros(1, N, K, dtype=torch.float64), TINY)
    assert found is not None
    rows = []
    for number, (_, x, _) in enumerate(uses):
        own = torch.zeros(ROWS, len(uses), dtype=torch.float64)
        own[:, number] = biased  # each branch has a bias of its own
        rows.append(torch.cat([x, own], 1))
    expected = torch.linalg.lstsq(torch.cat(rows), torch.cat([y for _, _, y in uses]), driver="gelsd").solution.T
    for number, solution in enumerate(found):
        torch.testing.assert_close(solution[0, :, :-1], expected[:, :K], rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(solution[0, :, -1], expected[:, K + number], rtol=CLOSE, atol=CLOSE)


def test_for_equal_moments_it_is_the_average() -> None:
    one, two = use(1)[0], use(2)[0]
    two = Use(two.target, one.moment, True)
    found = solve_shared([one, two], torch.zeros(1, N, K, dtype=torch.float64), TINY)
    assert found is not None
    average = (one.target + two.target)[..., :-1] / 2
    torch.testing.assert_close(found[0][..., :-1], average, rtol=CLOSE, atol=CLOSE)


def test_a_large_ridge_keeps_what_is_shared_and_no_data_is_no_crash() -> None:
    start = torch.randn(1, N, K, dtype=torch.float64)
    found = solve_shared([use(1)[0], use(2)[0]], start, 1e9)
    assert found is not None
    torch.testing.assert_close(found[0][..., :-1], start, rtol=CLOSE, atol=CLOSE)
    dead = Use(use(1)[0].target, SecondMoment.of(torch.zeros(1, ROWS, 2 * K, dtype=torch.float64)), True)
    found = solve_shared([dead], start, TINY)
    assert found is not None and torch.equal(found[0][..., :-1], start), "dead columns keep their weights"


def distance(program: Program) -> float:
    """From the original, on rows that nobody saw."""
    (x,) = batches(1, seed=11)[0]
    return divergence(("y",), [Layered()(x).detach()], Evaluator(program).run([x]))


def test_restoration_brings_the_output_closer_and_keeps_what_is_shared_one() -> None:
    analysis, data = layered(), batches(6)
    plan, applied = compress(analysis, 0.7, share=True, calibration=data)
    copied = apply_plan(analysis, plan, "none").program
    assert applied.restoration is not None and any(row.accepted for row in applied.restoration.rows)
    assert distance(applied.program) < 0.7 * distance(copied)
    assert applied.program.fingerprint() == copied.fingerprint()
    again = apply_plan(analysis, Plan.from_json(plan.to_json()), calibration=data).program
    for name, tensor in applied.program.weights.items():
        torch.testing.assert_close(again.weights[name], tensor)


def test_a_refit_is_judged_by_the_output_on_the_last_batch() -> None:
    analysis, data = layered(), batches(4)
    plan = make_plan(analysis, 0.7, share=True, calibration=data)
    copied = apply_plan(analysis, plan, "none").program
    (x,) = data[-1]
    whole = Evaluator(analysis.program).run([x])
    noise = [(100 * torch.randn_like(b[0]),) for b in data[:-1]]  # what is fitted to these serves nothing else
    made = apply_plan(analysis, plan, calibration=[*noise, (x,)])
    assert made.restoration is not None
    rejected = [row for row in made.restoration.rows if not row.accepted]
    assert all(row.reason and row.ridge is None and row.after == row.before for row in rejected)
    found, before = (divergence(("y",), whole, Evaluator(p).run([x])) for p in (made.program, copied))
    assert found <= before


def test_identical_branches_need_no_refit() -> None:
    analysis = layered(identical=(1, 2))
    plan, applied = compress(analysis, 0.85, share=True, calibration=batches(3))
    copied = apply_plan(analysis, plan, "none").program
    for name, tensor in applied.program.weights.items():
        torch.testing.assert_close(tensor, copied.weights[name], rtol=CLOSE, atol=CLOSE)


def test_a_program_that_shares_already_has_nothing_to_refit_from() -> None:
    analysis, data = layered(), batches(2)
    plan = make_plan(analysis, 0.7, share=True, calibration=data)
    done = prepare(analysis, plan.prepare)
    assert apply_plan(done, plan, "none").program.parameters() == plan.predicted["params"][1]
    with pytest.raises(InputError, match="one set of them already"):
        apply_plan(done, plan, calibration=data)
