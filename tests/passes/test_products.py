"""Axes over which two activations are summed: scores against the change of the logits, and plans that cut them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.api import prove
from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import MaskedEvaluator
from fxslim.passes.importance import BY_DATA, top
from fxslim.passes.planner import PlanOptions, make_plan, plan_and_restore
from fxslim.passes.products import find_products, product_curve, product_scores
from fxslim.passes.restore import restore_weights
from tests.models.nets import captured
from tests.passes.blocks import Heads, opened

CLOSE = 1e-9  # float64, sums in another order
EXACT = 1e-9

Batches = list[list[Tensor]]


class Rotary(nn.Module):
    """Logits of four query heads on two key-value heads, in rotary pairs, before the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 24), nn.Linear(8, 12)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.3, 0.05]))

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k = self.q(x).view(b, s, 4, 6).transpose(1, 2), self.k(x).view(b, s, 2, 6).transpose(1, 2)
        angles = torch.arange(s, device=x.device)[:, None] * self.frequencies
        cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
        q, k = (t * cos + torch.cat([-t[..., 3:], t[..., :3]], -1) * sin for t in (q, k))
        k = k[:, :, None].expand(b, 2, 2, s, 6).reshape(b, 4, s, 6)
        return q @ k.transpose(-1, -2)


class Plain(nn.Module):
    """Logits without positions: other dimensions may go in every head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 12), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k = (f(x).view(b, s, 3, 4).transpose(1, 2) for f in (self.q, self.k))
        return torch.einsum("bhqd,bhkd->bhqk", q, k)


def data(count: int = 3) -> Batches:
    return [[torch.randn(2, 5, 8).double()] for _ in range(count)]


def analysed(model: nn.Module) -> tuple[Analysis, Batches]:
    batches = data()
    return analyze(capture(model.double().eval(), (batches[0][0],), dynamic_shapes=({0: "batch"},))), batches


def of_kind(analysis: Analysis, kind: str) -> Group:
    (group,) = [g for g in analysis.prunable if g.kind == kind]
    return group


def removed_alone(analysis: Analysis, group: Group, batches: Batches) -> Tensor:
    """What the logits lose, squared, when one position of one row of the batch axes goes: [*batch, size]."""
    whole = [MaskedEvaluator(analysis.axes, Selection()).run(b)[0] for b in batches]
    result = torch.zeros(group.shape, dtype=torch.float64)
    for row in range(result.numel()):
        mask = torch.ones(result.numel(), dtype=torch.bool)
        mask[row] = False
        one = MaskedEvaluator(analysis.axes, Selection({group.axis: Kept(group.batch, mask.reshape(group.shape))}))
        loss = sum(float((one.run(b)[0] - w).square().sum()) for b, w in zip(batches, whole, strict=True))
        result.view(-1)[row] = loss
    return result


@pytest.mark.parametrize(("build", "kind"), [(Rotary, "rotary pairs"), (Plain, "query-key dims")])
@pytest.mark.parametrize("importance", ["obs", "fasp"])
def test_scores_are_what_the_logits_lose(build: Callable[[], nn.Module], kind: str, importance: str) -> None:
    """Both dimensions of a rotary pair, cross terms included, over all query heads and the keys that they share."""
    analysis, batches = analysed(build())
    group = of_kind(analysis, kind)
    products = find_products(analysis, [group])
    found = product_scores(analysis, [group], products, batches, importance)[group.name]  # type: ignore[arg-type]
    assert len(products[group.name]) == 1 and found.shape == group.shape
    torch.testing.assert_close(found, removed_alone(analysis, group, batches), rtol=CLOSE, atol=CLOSE)


def test_scores_of_the_others_by_hand() -> None:
    analysis, batches = analysed(Plain())
    group, w = of_kind(analysis, "query-key dims"), analysis.program.weights
    products, flap, magnitude = find_products(analysis, [group]), 0.0, 0.0
    for (x,) in batches:
        q, k = ((x @ w[f"{n}.weight"].T + w[f"{n}.bias"]).view(2, 5, 3, 4) for n in "qk")
        flap = flap + (q.square().sum(1) * (k - k.mean(1, keepdim=True)).square().sum(1)).sum(0)
        magnitude = magnitude + (q.square().sum(1) * k.square().sum(1)).sum(0)
    for importance, wanted in (("flap", flap), ("activation", magnitude)):
        got = product_scores(analysis, [group], products, batches, importance)[group.name]  # type: ignore[arg-type]
        torch.testing.assert_close(got, wanted.detach(), rtol=CLOSE, atol=CLOSE)


def test_attention_counts_its_scale() -> None:
    """The scale stands inside the call: logits four times as large are sixteen times as costly."""
    scores = []
    for scale in (0.25, 1.0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)

            class Scaled(Heads):
                factor = scale

                def forward(self, x: Tensor) -> Tensor:
                    b, s, _ = x.shape
                    q, k, v = (f(x).view(b, s, 3, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
                    y = F.scaled_dot_product_attention(q, k, v, scale=self.factor)
                    return self.o(y.transpose(1, 2).reshape(b, s, 15))

            analysis, batches = analysed(Scaled())
        group = of_kind(analysis, "query-key dims")
        scores.append(product_scores(analysis, [group], find_products(analysis, [group]), batches, "obs")[group.name])
    torch.testing.assert_close(scores[1], 16 * scores[0], rtol=CLOSE, atol=CLOSE)


def test_what_weights_sum_over_is_no_product() -> None:
    analysis, _ = opened("heads")
    found = find_products(analysis, analysis.groups)
    assert {analysis.group(n).kind for n in found} == {"query-key dims"}


def test_a_curve_adds_up_the_cheapest() -> None:
    curve = product_curve(torch.tensor([[3.0, 1.0, 8.0], [5.0, 9.0, 1.0]]).double())
    assert curve.losses.tolist() == [27.0, 10.0, 2.0, 0.0]
    assert curve.probed == 2 and curve.mask.tolist() == [[True, False, True], [True, True, False]]


def llama() -> tuple[Analysis, Batches]:
    found = captured("llama")
    return found.analysis, [list(found.analysis.program.flatten(*found.net.call(3, 6))) for _ in range(3)]


@pytest.mark.parametrize("importance", BY_DATA)
def test_rotary_pairs_are_cut_where_they_are_asked_for(importance: str) -> None:
    """The lowest score goes, in queries, keys and the table of frequencies; the cut is exact."""
    analysis, batches = llama()
    group = of_kind(analysis, "rotary pairs")
    options: PlanOptions = {"width": 0.5, "importance": importance, "groups": ["rotary pairs"]}  # type: ignore[typeddict-item]
    made = plan_and_restore(analysis, calibration=batches, **options)
    (cut,) = made.plan.cuts
    products = find_products(analysis, [group])
    scores = product_scores(analysis, [group], products, batches[:-1], importance)[group.name]  # type: ignore[arg-type]
    assert torch.equal(cut.mask(), top(scores, 1)) and not cut.subspace
    proof = prove(analysis, made.plan, batches[:1])
    assert proof.ok and proof.exact and proof.max_error <= EXACT


def test_a_global_budget_weighs_rotary_pairs_against_the_rest() -> None:
    analysis, batches = llama()
    made = plan_and_restore(
        analysis, 0.96, importance="obs", subspace=True, budget="global", calibration=batches,
        keep_fixed=["model.embed_tokens.*", "lm_head.*", "*mlp*", "*v_proj*"],
    )  # fmt: skip
    assert any(c.kind == "rotary pairs" and c.count == 1 for c in made.plan.cuts), made.plan.notes
    proof = prove(made.analysis, made.plan, batches[:1], calibration=batches)
    assert proof.ok and proof.max_error <= EXACT


def test_at_one_ratio_they_stay_unless_asked_for() -> None:
    analysis, batches = llama()
    plan = make_plan(analysis, width=0.5, importance="fasp", calibration=batches)
    assert "rotary pairs" not in {c.kind for c in plan.cuts}
    assert any("(rotary pairs) stays whole: no weight sums over it" in note for note in plan.notes)


def test_the_restoration_on_the_way_is_that_of_the_finished_plan() -> None:
    """Positions of products are decided before the walk, which sees queries and keys as they will be."""
    analysis, batches = llama()
    options: PlanOptions = {"width": 0.5, "importance": "fasp", "groups": ["rotary pairs", "value dims"]}
    made = plan_and_restore(analysis, calibration=batches, **options)
    again = restore_weights(analysis, made.plan.selection(analysis), batches)
    assert made.restoration is not None and again.weights
    for name, tensor in again.weights.items():
        torch.testing.assert_close(made.restoration.weights[name], tensor, rtol=1e-5, atol=1e-5)
