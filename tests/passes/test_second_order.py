"""Second-order elimination against least squares on explicit data, and greedy choice against trying everything."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis
from fxslim.passes.consumers import find_consumers
from fxslim.passes.importance import owners, problem
from fxslim.passes.second_order import RIDGE, Elimination, Problem, eliminate
from fxslim.passes.statistics import SecondMoment
from tests.passes.conftest import Analyse

CLOSE = 1e-7  # relative; inverses are updated step by step


def correlated(tokens: int, columns: int) -> Tensor:
    return torch.randn(tokens, columns).double() @ (torch.eye(columns) + 0.4 * torch.randn(columns, columns)).double()


def one(x: Tensor, w: Tensor, owner: Tensor | None = None) -> Problem:
    """A single block: x [tokens, k], w [n, k]."""
    own = torch.arange(w.shape[1]) if owner is None else owner
    return Problem(w.unsqueeze(0), (x.T @ x).unsqueeze(0), own.unsqueeze(0))


def damped(x: Tensor) -> Tensor:
    """Rows that stand for the ridge: least squares on them is least squares with it."""
    damping = RIDGE * x.square().sum(0).mean()
    return torch.cat([x, damping.sqrt() * torch.eye(x.shape[1]).double()])


def least(x: Tensor, w: Tensor, kept: Tensor) -> tuple[float, Tensor]:
    """The least error with the kept columns alone, and the weight that has it: [n, k]."""
    design, target = damped(x), damped(x) @ w.T
    solution = torch.linalg.lstsq(design[:, kept], target).solution
    full = torch.zeros_like(w)
    full[:, kept] = solution.T
    return float((target - design[:, kept] @ solution).square().sum()), full


def removals(run: list[Elimination]) -> list[int]:
    """The positions in the order in which they went."""
    return [int((a.mask & ~b.mask).nonzero()) for a, b in itertools.pairwise(run)]


def stepwise(problems: list[Problem], size: int) -> list[Elimination]:
    """Down to one position, a state after every step."""
    run = [eliminate(problems, (size,), size)]
    for count in range(size - 1, 0, -1):
        run.append(eliminate(problems, (size,), count, start=run[-1]))
    return run


def test_white_inputs_select_by_magnitude() -> None:
    x, w = torch.linalg.qr(torch.randn(40, 8).double()).Q, torch.randn(5, 8).double()
    squares = w.square().sum(0)
    assert removals(stepwise([one(x, w)], 8)) == squares.argsort()[:-1].tolist()
    done = eliminate([one(x, w)], (8,), 3)
    torch.testing.assert_close(float(done.losses[3]), float(squares.sort().values[:5].sum()) * (1 + RIDGE))
    torch.testing.assert_close(done.weights[0][0], w * done.mask, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_the_cost_is_the_error_of_least_squares_at_every_count(seed: int) -> None:
    torch.manual_seed(seed)
    x, w = correlated(60, 9), torch.randn(4, 9).double()
    for state in stepwise([one(x, w)], 9):
        error, weight = least(x, w, state.mask)
        count = int(state.mask.sum())
        assert float(state.losses[count]) == pytest.approx(error, rel=CLOSE, abs=1e-9)
        torch.testing.assert_close(state.weights[0][0], weight, rtol=CLOSE, atol=CLOSE)


def test_the_curve_is_filled_as_far_as_it_was_followed() -> None:
    x, w = correlated(60, 9), torch.randn(4, 9).double()
    losses = eliminate([one(x, w)], (9,), 4).losses
    assert losses.shape == (10,) and float(losses[9]) == 0.0
    assert bool(losses[:4].isinf().all()) and bool(losses[4:].isfinite().all())
    assert bool((losses[4:-1] > losses[5:]).all())


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_greedy_by_trying_everything(seed: int) -> None:
    torch.manual_seed(seed)
    x, w = correlated(60, 7), torch.randn(4, 7).double()
    kept, order = torch.ones(7, dtype=torch.bool), []
    while int(kept.sum()) > 1:
        tried = {}
        for j in kept.nonzero().flatten().tolist():
            without = kept.clone()
            without[j] = False
            tried[j] = least(x, w, without)[0]
        order.append(min(tried, key=tried.__getitem__))
        kept[order[-1]] = False
    assert removals(stepwise([one(x, w)], 7)) == order


def test_scores_are_the_costs_of_going_alone() -> None:
    x, w = correlated(60, 7), torch.randn(4, 7).double()
    scores = one(x, w).scores(7)
    for j in range(7):
        kept = torch.ones(7, dtype=torch.bool)
        kept[j] = False
        assert float(scores[j]) == pytest.approx(least(x, w, kept)[0], rel=CLOSE)
        assert one(x, w).remove(torch.tensor([j])) == pytest.approx(float(scores[j]), rel=CLOSE)


def test_the_window_of_a_convolution_goes_as_a_whole() -> None:
    x, w = correlated(80, 12), torch.randn(5, 12).double()
    owner = torch.arange(4).repeat_interleave(3)
    for position, score in enumerate(one(x, w, owner).scores(4).tolist()):
        assert score == pytest.approx(least(x, w, owner != position)[0], rel=CLOSE)
    state = eliminate([one(x, w, owner)], (4,), 2)
    error, weight = least(x, w, state.mask[owner])
    assert float(state.losses[2]) == pytest.approx(error, rel=CLOSE)
    torch.testing.assert_close(state.weights[0][0], weight, rtol=CLOSE, atol=CLOSE)


def test_columns_of_other_groups_stay_and_help() -> None:
    x, w = correlated(60, 8), torch.randn(4, 8).double()
    x[:, 7] = x[:, 0] + x[:, 1]  # what is lost with 0 or 1 can be taken from here
    owner = torch.tensor([0, 1, 2, 3, -1, -1, -1, -1])
    state = eliminate([one(x, w, owner)], (4,), 2)
    kept = torch.cat([state.mask, torch.ones(4, dtype=torch.bool)])
    error, weight = least(x, w, kept)
    assert float(state.losses[2]) == pytest.approx(error, rel=CLOSE)
    torch.testing.assert_close(state.weights[0][0], weight, rtol=CLOSE, atol=CLOSE)
    assert not bool(state.mask[:2].all())


def test_rows_of_the_batch_lose_equal_numbers() -> None:
    """The second row is a hundred times smaller: by cost alone it would lose everything first."""
    x, w = correlated(90, 12), torch.randn(4, 12).double()
    w[:, 6:] *= 0.01
    state = eliminate([one(x, w)], (2, 6), 2)
    assert state.mask.sum(1).tolist() == [2, 2]
    error, weight = least(x, w, state.mask.flatten())
    assert float(state.losses[2]) == pytest.approx(error, rel=CLOSE)
    torch.testing.assert_close(state.weights[0][0], weight, rtol=CLOSE, atol=CLOSE)


def test_blocks_are_apart() -> None:
    """A grouped convolution: positions 0..3 in one block, 4..7 in the other."""
    xs, w = [correlated(60, 4), correlated(60, 4)], torch.randn(2, 3, 4).double()
    both = Problem(w, torch.stack([x.T @ x for x in xs]), torch.arange(8).view(2, 4))
    state = eliminate([both], (8,), 4, single=True)
    wanted = [least(xs[i], w[i], state.mask.view(2, 4)[i]) for i in range(2)]
    assert float(state.losses[4]) == pytest.approx(sum(e for e, _ in wanted), rel=CLOSE)
    for i in range(2):
        torch.testing.assert_close(state.weights[0][i], wanted[i][1], rtol=CLOSE, atol=CLOSE)


def test_consumers_add_up() -> None:
    x, y, w, v = correlated(60, 6), correlated(60, 6), torch.randn(4, 6).double(), torch.randn(3, 6).double()
    torch.testing.assert_close(
        one(x, w).scores(6) + one(y, v).scores(6), sum(p.scores(6) for p in (one(x, w), one(y, v)))
    )
    state = eliminate([one(x, w), one(y, v)], (6,), 3)
    wanted = least(x, w, state.mask)[0] + least(y, v, state.mask)[0]
    assert float(state.losses[3]) == pytest.approx(wanted, rel=CLOSE)


def test_a_start_goes_on_where_it_ended() -> None:
    x, w = correlated(60, 9), torch.randn(4, 9).double()
    whole, problems = eliminate([one(x, w)], (9,), 2), [one(x, w)]
    rest = eliminate(problems, (9,), 2, start=eliminate(problems, (9,), 6))
    assert torch.equal(rest.mask, whole.mask)
    torch.testing.assert_close(rest.losses, whole.losses)
    torch.testing.assert_close(rest.weights[0], whole.weights[0])


def test_portions_come_close_to_single_steps() -> None:
    x, w = correlated(300, 130), torch.randn(20, 130).double()
    portions, single = (eliminate([one(x, w)], (130,), 65, single=s) for s in (False, True))
    assert float(portions.losses[65]) == pytest.approx(float(single.losses[65]), rel=0.05)
    assert float(portions.losses[65]) == pytest.approx(least(x, w, portions.mask)[0], rel=CLOSE)
    assert bool((portions.losses[65:-1] > portions.losses[66:]).all())


def test_a_copy_costs_nothing_and_goes_first() -> None:
    x, w = correlated(60, 6), torch.randn(4, 6).double()
    x[:, 4] = x[:, 1]
    state = eliminate([one(x, w)], (6,), 5)
    assert not bool(state.mask[1]) or not bool(state.mask[4])
    left = 4 if bool(state.mask[4]) else 1
    torch.testing.assert_close(state.weights[0][0][:, left], w[:, 1] + w[:, 4], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("tokens", [0, 1, 3], ids=["nothing seen", "one row", "fewer rows than columns"])
def test_singular_moments_do_not_crash(tokens: int) -> None:
    x, w = correlated(tokens, 8), torch.randn(4, 8).double()
    for owner, size in ((torch.arange(8), 8), (torch.arange(4).repeat_interleave(2), 4)):
        state = eliminate([one(x, w, owner)], (size,), 1)
        assert int(state.mask.sum()) == 1
        assert bool(state.weights[0].isfinite().all()) and bool(state.losses[1:].isfinite().all())


def test_dead_columns_go_first() -> None:
    x, w = correlated(60, 8), torch.randn(4, 8).double()
    x[:, [2, 5]] = 0
    assert eliminate([one(x, w)], (8,), 6).mask.nonzero().flatten().tolist() == [0, 1, 3, 4, 6, 7]


def test_what_is_given_is_left_alone() -> None:
    x, w = correlated(60, 6), torch.randn(4, 6).double()
    h, before = x.T @ x, w.clone()
    kept = h.clone()
    eliminate([Problem(w.unsqueeze(0), h.unsqueeze(0), torch.arange(6).unsqueeze(0))], (6,), 2)
    assert torch.equal(w, before) and torch.equal(h, kept)


def test_the_constant_is_a_column_that_stays(pair: Analysis) -> None:
    """What a removed unit gives on average goes into the bias: the problem is [W b] over [X 1]."""
    (consumer,) = [c for c in find_consumers(pair.axes)[0] if c.weight == "down.weight"]
    x = correlated(60, 10) + 2.0
    made = problem(pair, consumer, SecondMoment.of(x.unsqueeze(0)), pair.group("up.weight[0]"))
    weights = {n: t.detach().double() for n, t in pair.program.weights.items()}
    ones, full = torch.ones(60, 1).double(), torch.cat([weights["down.weight"], weights["down.bias"][:, None]], 1)
    state = eliminate([made], (10,), 4)
    kept = torch.cat([state.mask, torch.ones(1, dtype=torch.bool)])
    error, weight = least(torch.cat([x, ones], 1), full, kept)
    assert float(state.losses[4]) == pytest.approx(error, rel=CLOSE)
    torch.testing.assert_close(state.weights[0][0], weight, rtol=CLOSE, atol=CLOSE)


def test_owners_of_columns(analyse: Analyse) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, (1, 2), groups=2))
    analysis = analyse(model, torch.randn(1, 2, 4, 4))
    (consumer,) = [c for c in find_consumers(analysis.axes)[0] if c.weight == "2.weight"]
    (group,) = [g for g in analysis.groups if consumer.node.name in g.consumers and g.prunable]
    # Two blocks of two channels, and a window of two columns for each.
    assert owners(consumer, group).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
