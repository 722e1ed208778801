"""Residual streams in a plan: opened where cutting them pays, proven, and repeated from the plan alone."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.api import apply_plan, compress, make_plan, prove
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.costs import CostModel
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.bases import change_bases
from fxslim.passes.plan import Plan
from fxslim.passes.prepare import prepare
from fxslim.passes.probe import probe
from fxslim.passes.stream_curve import Readers, interpolated
from fxslim.passes.subspaces import Subspace, find_subspaces
from fxslim.passes.survey import survey

EXACT = 1e-9
D, RANK, IDS = 16, 6, 40

Batches = list[tuple[Tensor]]


class Narrow(nn.Module):
    """A stream of 16 dimensions in which only a few are used: the table has a low rank, the branches write little."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(IDS, D)
        self.norms = nn.ModuleList([nn.RMSNorm(D) for _ in range(3)])
        self.ups = nn.ModuleList([nn.Linear(D, 40) for _ in range(2)])
        self.downs = nn.ModuleList([nn.Linear(40, D) for _ in range(2)])
        self.head = nn.Linear(D, IDS)
        with torch.no_grad():
            inner = torch.linalg.qr(torch.randn(D, RANK))[0]
            self.table.weight.copy_(torch.randn(IDS, RANK) @ inner.T)
            for down in self.downs:
                down.weight.copy_(inner @ torch.randn(RANK, 40) * 0.1)
                down.bias.copy_(inner @ torch.randn(RANK) * 0.1)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.table(ids)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=False):
            x = x + down(F.silu(up(norm(x))))
        return {"logits": self.head(self.norms[2](x))}


@cache
def narrow() -> tuple[Analysis, Batches]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = Narrow().double().eval()
        batches = [(torch.randint(0, IDS, (16, 8)),) for _ in range(5)]
    return analyze(capture(model, batches[0], dynamic_shapes=({0: "batch"},))), batches


def stream_of(analysis: Analysis) -> Subspace:
    (found,) = [s for s in find_subspaces(analysis, analysis.prunable)[0] if s.stream]
    return found


@cache
def made() -> Plan:
    analysis, batches = narrow()
    return make_plan(analysis, 0.5, importance="obs", subspace=True, budget="global", streams=True, calibration=batches)


def test_a_stream_loses_the_directions_that_nothing_uses() -> None:
    analysis, batches = narrow()
    plan, applied = compress(
        analysis, 0.5, importance="obs", subspace=True, budget="global", streams=True, calibration=batches
    )
    (cut,) = [c for c in plan.cuts if c.kind == "residual stream"]
    assert plan.prepare == ("fold-norms",) and cut.subspace and cut.size == D and RANK <= cut.count < D
    assert applied.program.parameters() <= 0.505 * analysis.program.parameters()
    for batch in batches:
        (wanted,), (got,) = Evaluator(analysis.program).run(batch), Evaluator(applied.program).run(batch)
        assert float((wanted - got).square().mean() / wanted.square().mean()) < 0.02


def test_a_plan_with_streams_is_applied_and_proven_from_the_model_as_it_came() -> None:
    analysis, batches = narrow()
    plan = Plan.from_json(made().to_json())
    again = apply_plan(analysis, plan, calibration=batches).program
    _, at_once = compress(
        analysis, 0.5, importance="obs", subspace=True, budget="global", streams=True, calibration=batches
    )
    assert set(again.weights) == set(at_once.program.weights)
    for name, weight in at_once.program.weights.items():
        torch.testing.assert_close(again.weights[name], weight, atol=1e-9, rtol=1e-7)
    proof = prove(analysis, plan, calibration=batches)
    assert proof.ok and proof.exact and proof.max_error <= EXACT


def test_a_plan_of_another_model_is_still_refused() -> None:
    _, batches = narrow()
    other = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 3),))
    with pytest.raises(PlanError, match="another model"):
        apply_plan(other, made(), "none", batches)


def test_a_stream_that_does_not_pay_stays_closed() -> None:
    analysis, batches = narrow()
    plan = make_plan(
        analysis, 0.98, importance="obs", subspace=True, budget="global", streams=True, calibration=batches,
        keep_fixed=["table.weight"],
    )  # fmt: skip
    assert plan.prepare == () and plan.cuts, "nothing is prepared for a stream that may not be cut"


def test_weights_that_are_not_counted_cost_nothing() -> None:
    analysis, _ = narrow()
    whole, part = CostModel(analysis.axes), CostModel(analysis.axes, {"table.weight", "head.weight", "head.bias"})
    assert whole.params() - part.params() == 2 * IDS * D + IDS and whole.bytes() == part.bytes()
    plan = make_plan(analysis, 0.5, uncounted=["table*", "head*"], groups=["neurons"])
    before, after = plan.predicted["params"]
    assert before == part.params() and abs(after / before - 0.5) < 0.02


def test_shares_are_of_the_program_as_it_came() -> None:
    analysis, _ = narrow()
    larger = prepare(analysis, ["factorise{weights=ups.0.weight}"])
    costs = CostModel(larger.axes, original=CostModel(analysis.axes))
    assert costs.params() > costs.whole("params") == analysis.program.parameters()


def test_losses_between_measured_sizes() -> None:
    losses = interpolated(10, {2: 16.0, 6: 4.0})
    assert losses[:2].tolist() == [float("inf")] * 2
    assert losses[[2, 4, 6, 8, 10]].tolist() == [16.0, 9.0, 4.0, 1.0, 0.0]
    assert interpolated(4, {1: 1.0, 2: 5.0})[1:3].tolist() == pytest.approx([5.0, 5.0]), "less is never better"


def test_the_curve_of_a_stream_is_measured_with_its_readers_refitted() -> None:
    opened = prepare(narrow()[0], ["fold-norms"])
    subspace, batches = stream_of(opened), narrow()[1]
    found = survey(opened, [], [subspace], batches[:-1])
    curve = found.curves[subspace.group.name]
    assert curve.readers is not None and len(curve.readers.consumers) == 3 and len(curve.readers.moments) == 3
    probe(changed := change_bases(opened, found, [subspace.group.name]), found.curves, batches[-1])
    losses = curve.scaled()
    assert bool((losses[RANK:] < 1e-6).all()) and float(losses[RANK - 2]) > 1e-3, "the rank is where it begins to cost"
    assert bool((losses[4:].diff() <= 0).all()) and changed.group(subspace.group.name).size == D


def test_refitted_readers_lose_less() -> None:
    opened = prepare(narrow()[0], ["fold-norms"])
    subspace, batches = stream_of(opened), narrow()[1]
    found = survey(opened, [], [subspace], batches)
    readers = found.curves[subspace.group.name].readers
    assert isinstance(readers, Readers)
    program = change_bases(opened, found, [subspace.group.name]).program
    new = readers.refitted(program, RANK - 2)
    assert set(new) == {c.weight for c in readers.consumers} | {c.bias for c in readers.consumers}
    for consumer in readers.consumers:
        moment = readers.moments[consumer.source].matrix[0]
        old, bias = consumer.parameters(program)
        plain = old[0].clone()
        plain[:, RANK - 2 :] = 0
        refitted = torch.cat([new[consumer.weight], new[str(consumer.bias)][:, None]], 1)
        assert bias is not None
        lost = [torch.cat([plain, bias[0][:, None]], 1), refitted]
        whole = torch.cat([old[0], bias[0][:, None]], 1)
        before, after = (float(((whole - w) @ moment @ (whole - w).T).trace()) for w in lost)
        assert after < before


class Heads(nn.Module):
    """Queries and keys behind norms without weights, for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, 2, 6).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = F.rms_norm(q, [6]), F.rms_norm(k, [6])
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 12))


def test_norms_for_each_head_make_no_trouble() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(4, 5, 12, dtype=torch.float64),) for _ in range(3)]
    analysis = analyze(capture(Heads().double().eval(), batches[0]))
    plan = make_plan(analysis, 0.7, importance="obs", subspace=True, budget="global", streams=True, calibration=batches)
    assert plan.cuts and prove(analysis, plan, calibration=batches).ok


class TiedHead(nn.Module):
    """A narrow stream with a tied head: two matrices would cost more than the stream could save."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.last = nn.Embedding(30, 16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.table(input_ids)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return {"logits": self.last(x) @ self.table.weight.T}


@pytest.mark.parametrize("groups", [None, ["neurons"]])
def test_a_stream_is_opened_only_where_less_is_lost(groups: list[str] | None) -> None:
    torch.manual_seed(0)
    batches = [(torch.randint(0, 30, (16, 9)),) for _ in range(4)]
    analysis = analyze(capture(TiedHead().eval(), batches[0]))
    options = {"importance": "obs", "subspace": True, "budget": "global", "groups": groups}
    plan = make_plan(analysis, 0.9, streams=True, calibration=batches, **options)  # type: ignore[arg-type]
    closed = make_plan(analysis, 0.9, calibration=batches, **options)  # type: ignore[arg-type]
    assert plan.prepare == () and [c.kept for c in plan.cuts] == [c.kept for c in closed.cuts]


def test_patterns_may_mean_weights_that_are_folded_away() -> None:
    analysis, batches = narrow()
    options = {"importance": "obs", "subspace": True, "budget": "global", "streams": True, "calibration": batches}
    plan = make_plan(analysis, 0.5, uncounted=["norms.*", "table*"], **options)  # type: ignore[arg-type]
    assert plan.prepare == ("fold-norms",)
    fixed = make_plan(analysis, 0.7, keep_fixed=["norms.0.weight"], **options)  # type: ignore[arg-type]
    assert fixed.prepare == () and any("stay closed" in note for note in fixed.notes)
    with pytest.raises(InputError, match="'typo' matches no"):
        make_plan(analysis, 0.5, uncounted=["typo"], **options)  # type: ignore[arg-type]


def test_a_model_without_a_stream_says_so() -> None:
    x = torch.randn(4, 6)
    analysis = analyze(capture(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (x,)))
    with pytest.raises(PlanError, match="no residual stream of the model can be cut"):
        make_plan(analysis, 0.7, subspace=True, streams=True, groups=("residual stream",), calibration=[(x,)])


def test_a_size_that_ruined_the_output_is_infinite_and_larger_ones_are_not() -> None:
    inf = float("inf")
    assert interpolated(6, {2: inf, 4: 1.0}).tolist() == pytest.approx([inf, inf, inf, inf, 1.0, 0.25, 0.0])
    assert interpolated(4, {1: 4.0, 3: inf}).tolist() == [inf, inf, inf, inf, 0.0]
