"""Scores of positions against sums written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.consumers import find_consumers
from fxslim.passes.importance import magnitude, position_scores, random, scores_for, top
from fxslim.passes.planner import make_plan
from fxslim.passes.statistics import CalibrationWalk
from tests.models.nets import captured
from tests.passes.conftest import Analyse, Pair


def weights(analysis: Analysis) -> dict[str, Tensor]:
    return {name: tensor.detach().double() for name, tensor in analysis.program.weights.items()}


def test_magnitude_is_the_norm_of_all_that_a_position_owns(pair: Analysis) -> None:
    w = weights(pair)
    wanted = [
        (w["up.weight"][j].square().sum() + w["up.bias"][j].square() + w["down.weight"][:, j].square().sum()).sqrt()
        for j in range(10)
    ]
    torch.testing.assert_close(magnitude(pair, pair.group("up.weight[0]")), torch.stack(wanted))


def test_magnitude_per_head() -> None:
    analysis = captured("attention").analysis
    w = weights(analysis)
    wanted = torch.zeros(3, 5).double()
    for h in range(3):
        for d in range(5):
            row = h * 5 + d
            wanted[h, d] = (
                w["v.weight"][row].square().sum() + w["v.bias"][row].square() + w["o.weight"][:, row].square().sum()
            )
    torch.testing.assert_close(magnitude(analysis, analysis.group("v.weight[0].value-dims")), wanted.sqrt())


def test_magnitude_of_heads_and_of_parts_of_a_concatenation() -> None:
    analysis = captured("attention").analysis
    w = weights(analysis)
    heads = sum(
        w[n].reshape(3, -1).square().sum(1) for n in ("q.weight", "k.weight", "v.weight", "q.bias", "k.bias", "v.bias")
    )
    heads = heads + w["o.weight"].reshape(8, 3, 5).square().sum((0, 2))
    torch.testing.assert_close(magnitude(analysis, analysis.group("q.weight[0].heads")), heads.sqrt())

    analysis = captured("unet").analysis
    w = weights(analysis)
    up = (
        w["up.weight"].square().sum((0, 2, 3))
        + w["up.bias"].square()
        + w["leave.weight"][:, :6].square().sum((0, 2, 3))
    )
    torch.testing.assert_close(magnitude(analysis, analysis.group("up.weight[1]")), up.sqrt())


def test_random_depends_on_the_seed_and_the_name_alone(pair: Analysis) -> None:
    group = pair.group("up.weight[0]")
    assert torch.equal(random(group, 1), random(group, 1))
    assert not torch.equal(random(group, 1), random(group, 2))
    torch.manual_seed(99)
    assert torch.equal(random(group, 1), random(group, 1))
    mlp = captured("mlp").analysis
    a, b = (random(mlp.group(n), 0) for n in ("a.weight[0]", "b.weight[0]"))
    assert not torch.equal(a[:7], b)
    first, second = (make_plan(pair, width=0.5, importance="random", seed=s) for s in (1, 2))
    assert first != second
    assert first == make_plan(pair, width=0.5, importance="random", seed=1)


def scored(analysis: Analysis, group: str, batches: list[list[Tensor]]) -> Tensor:
    found = analysis.group(group)
    walk = CalibrationWalk(Evaluator(analysis.program), batches)
    total = torch.zeros([int(a.size) for a in (*found.batch, found.axis)]).double()
    for consumer in find_consumers(analysis.axes)[0]:
        if consumer.node.name in found.consumers:
            walk.advance_to(consumer.node)
            total += position_scores(analysis, "fasp", [(consumer, walk.moment(consumer))], found)
    return total


def test_column_scores_of_one_consumer(pair: Analysis) -> None:
    batches = [[torch.randn(6, 4)], [torch.randn(9, 4)]]
    w = pair.program.weights
    x = torch.relu(torch.cat([b[0] for b in batches]) @ w["up.weight"].T + w["up.bias"])
    wanted = w["down.weight"].abs().sum(0) * x.norm(dim=0)
    torch.testing.assert_close(scored(pair, "up.weight[0]", batches), wanted.detach().double(), rtol=1e-5, atol=1e-6)
    chosen = make_plan(pair, width=0.5, importance="fasp", calibration=batches).cuts[0].kept
    assert chosen == tuple(sorted(wanted.topk(5).indices.tolist()))


class Two(nn.Module):
    """Two consumers of one hidden layer, of different scale."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.up(x))
        return self.a(x), self.b(3 * x)


def test_column_scores_of_two_consumers_add_up(analyse: Analyse) -> None:
    model, x = Two(), torch.randn(12, 4)
    analysis = analyse(model, x)
    hidden = torch.relu(model.up(x))
    wanted = model.a.weight.abs().sum(0) * hidden.norm(dim=0) + model.b.weight.abs().sum(0) * (3 * hidden).norm(dim=0)
    torch.testing.assert_close(scored(analysis, "up.weight[0]", [[x]]), wanted.detach().double(), rtol=1e-5, atol=1e-6)
    plan = make_plan(analysis, width=0.5, importance="fasp", calibration=[[x]])
    assert plan.cuts[0].kept == tuple(sorted(wanted.topk(4).indices.tolist()))


def test_column_scores_per_head() -> None:
    analysis = captured("attention").analysis
    batches = [[torch.randn(2, 5, 8)], [torch.randn(3, 4, 8)]]
    norms, (consumer,) = (
        torch.zeros(15).double(),
        [c for c in find_consumers(analysis.axes)[0] if c.weight == "o.weight"],
    )
    for batch in batches:
        evaluator = Evaluator(analysis.program)
        env = evaluator.bind(batch)
        nodes = list(analysis.program.graph.nodes)
        evaluator.advance(env, nodes[: nodes.index(consumer.source) + 1])
        norms += env[consumer.source].reshape(-1, 15).double().square().sum(0)
    wanted = (analysis.program.weights["o.weight"].double().abs().sum(0) * norms.sqrt()).view(3, 5)
    torch.testing.assert_close(
        scored(analysis, "v.weight[0].value-dims", batches), wanted.detach(), rtol=1e-5, atol=1e-6
    )


def test_the_largest_are_kept_and_ties_go_to_the_earlier() -> None:
    assert top(torch.tensor([1.0, 3.0, 2.0]), 2).tolist() == [False, True, True]
    assert top(torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]), 2).tolist() == [
        [True, True, False],
        [False, True, True],
    ]


def test_column_scores_need_data_and_strategies_a_known_name(analyse: Analyse) -> None:
    analysis = analyse(Pair(), torch.randn(2, 4))
    for data in (None, []):
        with pytest.raises(InputError, match="'fasp' needs calibration data"):
            make_plan(analysis, width=0.5, importance="fasp", calibration=data)
    with pytest.raises(InputError, match="unknown importance 'guess'"):
        scores_for("guess", analysis, [], 0)  # type: ignore[arg-type]
