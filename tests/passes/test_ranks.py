"""Plans of ranks against the singular value decompositions that define the methods."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import apply, make_plan, prove
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.passes.pairs import METRICS, Metric, find_pairs
from fxslim.passes.plan import Plan
from fxslim.passes.prepare import prepare

EXACT = 1e-9
N, K = 12, 20


class Two(nn.Module):
    """A map that shrinks and one that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.shrink, self.grow = nn.Linear(K, N), nn.Linear(N, K, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.grow(torch.tanh(self.shrink(x)))


def opened(model: nn.Module | None = None) -> tuple[Analysis, list[tuple[Tensor]], nn.Module]:
    torch.manual_seed(1)
    model = (model or Two()).double().eval()
    mix = torch.randn(K, K, dtype=torch.float64) * torch.linspace(0.1, 2, K)
    batches = [(torch.randn(30, K, dtype=torch.float64) @ mix,) for _ in range(3)]
    return analyze(capture(model, batches[0], dynamic_shapes=({0: "rows"},))), batches, model


def product(program: Program, name: str) -> Tensor:
    (inner,) = [w for n, w in program.weights.items() if n.startswith(f"{name}_in")]
    (outer,) = [w for n, w in program.weights.items() if n.startswith(f"{name}_out")]
    return outer @ inner


def reference(weight: Tensor, rank: int, metric: Metric, x: Tensor) -> Tensor:
    """As the papers have it: W S, truncated, times the inverse of S."""
    if metric == "whitened":
        scale = torch.linalg.cholesky(x.T @ x)
    else:
        scale = torch.diag(x.abs().mean(0).sqrt()) if metric == "scaled" else torch.eye(weight.shape[1]).double()
    u, s, v = torch.linalg.svd(weight @ scale, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(scale)


@pytest.mark.parametrize("name", ["shrink", "grow"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_pair_is_the_truncated_decomposition(metric: Metric, name: str) -> None:
    analysis, batches, model = opened()
    plan = make_plan(analysis, 0.8, metric=metric, calibration=batches, groups=[f"{name}*"])
    program = apply(analysis, plan, "none", batches)
    (cut,) = plan.cuts
    x = torch.cat([b[0] for b in batches])
    inputs = x if name == "shrink" else torch.tanh(model.get_submodule("shrink")(x)).detach()
    weight = model.get_parameter(f"{name}.weight").detach()
    expected = reference(weight, cut.count, metric, inputs)
    got = product(program, f"{name}.weight")
    assert 0 < cut.count < N * K / (N + K) and float((weight - got).norm() / weight.norm()) > 0.05
    assert float((got - expected).abs().max() / expected.abs().max()) <= EXACT


def test_a_weight_of_low_rank_is_factorised_without_loss() -> None:
    torch.manual_seed(0)
    low = Two().double()
    with torch.no_grad():
        low.shrink.weight.copy_(torch.randn(N, 3).double() @ torch.randn(3, K).double())
    analysis, batches, _ = opened(low)
    plan = make_plan(analysis, 0.75, metric="plain", groups=["shrink*"])
    assert plan.cuts[0].count >= 3
    (wanted,), (got,) = (Evaluator(p).run(batches[0]) for p in (analysis.program, apply(analysis, plan)))
    assert float((wanted - got).abs().max()) <= EXACT * float(wanted.abs().max())


@pytest.mark.parametrize("budget", ["uniform", "global"])
@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_budget_is_met_and_the_cut_is_proven(metric: Metric, of: Any, budget: Any) -> None:
    analysis, batches, _ = opened()
    plan = make_plan(analysis, 0.7, metric=metric, of=of, budget=budget, calibration=batches)
    before, after = plan.predicted[of]
    program = apply(analysis, plan, "none", batches)
    assert after <= (0.7 + 0.01) * before
    assert plan.predicted["params"] == [analysis.program.parameters(), program.parameters()]
    proof = prove(analysis, Plan.from_json(plan.to_json()), calibration=None if metric == "plain" else batches)
    assert proof.ok and proof.exact and proof.max_error <= EXACT


def test_ranks_are_rounded() -> None:
    analysis, _, _ = opened()
    plan = make_plan(analysis, 0.75, metric="plain", round_to=4)
    assert plan.cuts and all(c.count % 4 == 0 for c in plan.cuts)


def test_one_threshold_leaves_a_weight_without_low_rank_whole() -> None:
    model = Two()
    with torch.no_grad():  # one decays fast, the other hardly
        for layer, values in ((model.shrink, 0.3 ** torch.arange(N)), (model.grow, torch.linspace(1, 0.9, N))):
            u, _, v = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_((u * values) @ v)
    analysis, _, _ = opened(model)
    plan = make_plan(analysis, 0.8, metric="plain", budget="global")
    assert [c.group.partition("_")[0] for c in plan.cuts] == ["shrink.weight"]
    assert plan.prepare == ("factorise{weights=shrink.weight}",)
    assert any(note.startswith("grow.weight stays whole") for note in plan.notes)
    uniform = make_plan(analysis, 0.8, metric="plain")
    assert len(uniform.cuts) == 2


def test_pairs_are_found_by_the_name_of_their_weight() -> None:
    analysis, _, _ = opened()
    pairs = find_pairs(prepare(analysis, ["factorise{weights=grow.weight}"]))
    assert list(pairs) == ["grow.weight"] and pairs["grow.weight"].group.size == N
    assert pairs["grow.weight"].first.weight == "grow.weight_in"
    assert find_pairs(analysis) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": None, "width": 0.5, "metric": "plain"}, "width: no effect"),
        ({"keep": None, "metric": "plain"}, "ranks are chosen for a share"),
        ({"keep": 0.5, "metric": "whitened"}, "needs calibration data"),
        ({"keep": 0.5, "metric": "plain", "groups": ["nothing"]}, "'nothing' matches no weight"),
        ({"keep": 0.5, "metric": "plain", "groups": ["shrink.bias"]}, "no weight can be factorised"),
        ({"keep": 1.5, "metric": "plain"}, "must lie above 0"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(options: dict[str, Any], message: str) -> None:
    analysis, _, _ = opened()
    with pytest.raises(InputError, match=message):
        make_plan(analysis, **options)


def test_a_share_below_the_lowest_ranks_is_refused() -> None:
    analysis, _, _ = opened()
    with pytest.raises(PlanError, match="cannot be met by low ranks"):
        make_plan(analysis, 0.05, metric="plain")


def test_other_data_is_refused() -> None:
    analysis, batches, _ = opened()
    plan = make_plan(analysis, 0.8, metric="whitened", calibration=batches)
    with pytest.raises(InputError, match="not what the plan was made with"):
        apply(analysis, plan, "none", batches[:2])


class Squares(nn.Module):
    def __init__(self, names: tuple[str, ...] = ("a", "b", "c")) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.randn(64, 64, dtype=torch.float64)))
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = torch.tanh(torch.nn.functional.linear(x, self.get_parameter(name)))
        return x


@pytest.mark.parametrize(("round_to", "within"), [(1, 0.01), (8, 0.07), (16, 0.07)])
def test_rounding_does_not_give_the_budget_away(round_to: int, within: float) -> None:
    torch.manual_seed(0)
    analysis = analyze(capture(Squares(), (torch.randn(3, 64, dtype=torch.float64),)))
    plan = make_plan(analysis, 0.9, metric="plain", round_to=round_to)
    before, after = plan.predicted["params"]
    assert 0.9 - within <= after / before <= 0.91
    told = any("remain: one step more" in note for note in plan.notes)
    assert told == (after / before < 0.89), "what rounding gives away is said"


def test_all_of_it_is_all_of_it() -> None:
    plan = make_plan(opened()[0], 1.0, metric="plain")
    assert plan.cuts == () and plan.prepare == () and plan.notes == ()


def test_names_that_begin_alike_and_a_second_round() -> None:
    torch.manual_seed(0)
    analysis = analyze(capture(Squares(("w", "w_in")), (torch.randn(3, 64, dtype=torch.float64),)))
    plan = make_plan(analysis, 0.7, metric="plain")
    slim = apply(analysis, plan)
    assert len({c.group for c in plan.cuts}) == 2 and slim.parameters() == plan.predicted["params"][1]
    again = make_plan(slim, 0.8, metric="plain")
    assert apply(slim, again).parameters() <= 0.81 * slim.parameters()


def test_a_flat_spectrum_has_no_end_to_cut_off() -> None:
    model = Squares(("a", "b"))
    with torch.no_grad():
        model.a.copy_(torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0])
    analysis = analyze(capture(model, (torch.randn(3, 64, dtype=torch.float64),)))
    plan = make_plan(analysis, 0.7, metric="plain", budget="global")
    assert [c.group.partition("_")[0] for c in plan.cuts] == ["b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"round_to": 0}, "round_to must be"), ({"round_to": 1.5}, "round_to must be"),
        ({"metric": "bogus"}, "unknown metric"), ({"budget": "bogus"}, "unknown budget"),
        ({"budget": "outliers"}, "budget: no effect"), ({"of": "flops"}, "unknown target"),
        ({"importance": "obs"}, "importance: no effect"), ({"inexact": True}, "inexact: no effect"),
        ({"depth": True}, "depth: no effect"), ({"keep_fixed": ["typo"]}, "'typo' matches no weight"),
        ({"groups": ["shrink*", "typo"]}, "'typo' matches no weight"), ({"uncounted": ["typo"]}, "matches no weight"),
        ({"uncounted": ["*"]}, "no weight is left to count"),
    ],
)  # fmt: skip
def test_what_has_no_effect_or_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(opened()[0], **{"keep": 0.7, "metric": "plain", **options})


def test_a_fixed_weight_stays_whole() -> None:
    plan = make_plan(opened()[0], 0.85, metric="plain", keep_fixed=["shrink.weight[0]"])
    assert [c.group.partition("_")[0] for c in plan.cuts] == ["grow.weight"]


def test_a_plan_of_ranks_for_another_model_says_so() -> None:
    plan = make_plan(opened()[0], 0.8, metric="plain")
    other = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 3),))
    with pytest.raises(PlanError, match="made for another model"):
        apply(other, plan)
