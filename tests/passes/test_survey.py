"""The survey against errors measured by running the model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator, MaskedEvaluator
from fxslim.passes.bases import change_bases
from fxslim.passes.divergence import divergence
from fxslim.passes.probe import probe
from fxslim.passes.second_order import RIDGE
from fxslim.passes.subspaces import leading
from fxslim.passes.survey import Curve, Survey, survey
from tests.passes.blocks import Batches, Bottleneck, Lora, opened, subspaces_of
from tests.passes.conftest import Analyse

CLOSE = 1e-8  # float64, roots and inverses
BY_RIDGE = 0.05  # what the ridge may make of a dead neuron, of what a live one costs


def surveyed(analysis: Analysis, batches: Batches) -> Survey:
    return survey(analysis, [g for g in analysis.prunable if g.size > 1], subspaces_of(analysis), batches)


def difference(analysis: Analysis, group: str, mask: Tensor, batches: Batches, rows: int) -> Tensor:
    """How the output changes over all batches, which lie along the dimension `rows`, when the group alone is cut."""
    found, whole = analysis.group(group), Evaluator(analysis.program)
    masked = MaskedEvaluator(analysis.axes, Selection({found.axis: Kept(found.batch, mask)}))
    return torch.cat([masked.run(b)[0] - whole.run(b)[0] for b in batches], rows)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("lora", "down.weight[0]"), ("heads without biases", "v.weight[0].value-dims"), ("conv 1x1", "a.weight[0]"),
        ("heads", "v.weight[0].value-dims"), ("bottleneck", "down.weight[0]"), ("experts", "down[2]"),
    ],
)  # fmt: skip
def test_the_curve_of_a_subspace_is_the_measured_error(name: str, group: str) -> None:
    """Position by position of the batch (head by head), as errors of several would overlap."""
    analysis, batches = opened(name)
    found = surveyed(analysis, batches)
    losses, (subspace,) = found.curves[group].losses, [s for s in found.subspaces if s.group.name == group]
    changed = change_bases(analysis, found, [group])
    gain = 4.0 if name == "lora" else 1.0  # the block multiplies what it reads by two
    for count in range(1, subspace.group.size + 1):
        total, cut = 0.0, leading(subspace.group, count)
        for row in range(cut[..., 0].numel()):
            mask = torch.ones_like(cut)
            mask.view(-1, cut.shape[-1])[row] = cut.view(-1, cut.shape[-1])[row]
            error = difference(changed, group, mask, batches, 1 if name == "experts" else 0)
            total += float(error.square().sum()) / gain
        assert total == pytest.approx(float(losses[count]), rel=CLOSE, abs=CLOSE * float(losses[0]))


def test_queries_against_keys_are_judged_by_the_scores() -> None:
    """One pair of a query and a key at a time: the sum over all pairs of the squared change of their product."""
    analysis, batches = opened("heads")
    group = "q.weight[0].query-key-dims"
    found = surveyed(analysis, batches)
    w = change_bases(analysis, found, [group]).program.weights
    x = torch.cat([b[0].reshape(-1, 8) for b in batches])
    q, k = ((x @ w[f"{n}.weight"].T + w[f"{n}.bias"]).view(-1, 3, 4) for n in "qk")
    for count in range(1, 4):
        error = torch.einsum("thd,shd->hts", q[..., count:], k[..., count:]).square().sum()
        assert float(error) == pytest.approx(float(found.curves[group].losses[count]), rel=1e-3)  # a ridge of 1e-6


def test_the_curve_of_a_selection_is_the_measured_error() -> None:
    """At the probe, with the refitted weights. The ridge that elimination adds is known."""
    analysis, batches = opened("bottleneck")
    group = "enter.weight[0]"
    curve = surveyed(analysis, batches).curves[group]
    assert curve.probed == 6 and int(curve.mask.sum()) == 6
    w, hidden = analysis.program.weights, []
    for (x,) in batches:
        hidden.append(F.relu(x.reshape(-1, 8) @ w["enter.weight"].T + w["enter.bias"]))
    h = torch.cat([torch.cat(hidden), torch.ones(len(torch.cat(hidden)), 1).double()], 1).detach()
    old = torch.cat([w["down.weight"], w["down.bias"][:, None]], 1).detach()
    new = torch.cat([curve.weights["down.weight"], curve.weights["down.bias"][:, None]], 1)
    assert bool((new[:, :-1][:, ~curve.mask] == 0).all()) and bool((new[:, :-1][:, curve.mask] != 0).all())
    error = float((h @ (old - new).T).square().sum())
    ridge = RIDGE * float(h.square().sum(0).mean()) * float((old - new).square().sum())
    assert error + ridge == pytest.approx(float(curve.losses[6]), rel=CLOSE)


def test_curves_descend_to_zero() -> None:
    analysis, batches = opened("bottleneck")
    for name, curve in surveyed(analysis, batches).curves.items():
        known = curve.losses[curve.losses.isfinite()]
        assert curve.losses.shape == (analysis.group(name).size + 1,)
        assert float(known[-1]) == 0.0 and bool((known[:-1] >= known[1:]).all())


def test_a_stream_that_is_read_at_several_depths_is_judged_position_by_position(analyse: Analyse) -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.up, self.down, self.leave = (nn.Linear(a, b) for a, b in ((4, 6), (6, 9), (9, 6), (6, 2)))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.enter(x))
            return self.leave(x + F.relu(self.down(F.relu(self.up(x)))))

    analysis, batches = analyse(Stream(), torch.randn(9, 4)), [[torch.randn(9, 4)] for _ in range(2)]
    curve = survey(analysis, [analysis.group("enter.weight[0]")], [], batches).curves["enter.weight[0]"]
    assert curve.weights == {} and int(curve.mask.sum()) == 3
    assert bool(curve.losses.isfinite().all()) and bool((curve.losses[:-1] >= curve.losses[1:]).all())
    removed = curve.losses[:-1] - curve.losses[1:]  # the cheapest goes first
    assert bool((removed[:-1] >= removed[1:] - 1e-9).all())


def test_what_no_weight_sums_over_is_noted(analyse: Analyse) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2))
    x = torch.randn(2, 2, 4, 4)
    analysis = analyse(model, x)
    found = survey(analysis, [analysis.group("0.weight[0]")], [], [[x]])
    assert found.curves == {}
    assert found.notes == ("0.weight[0] stays whole: no weight sums over it",)


def test_the_effect_is_the_divergence_of_the_output() -> None:
    analysis, batches = opened("bottleneck")
    found = surveyed(analysis, batches)
    weights = {n: dict(c.weights) for n, c in found.curves.items()}
    changed = change_bases(analysis, found, tuple(found.bases))
    neurons, rank = ({n: c} for n, c in found.curves.items())
    probe(analysis, neurons, batches[0])
    probe(changed, rank, batches[0])
    w = {n: t.detach() for n, t in analysis.program.weights.items()}
    x = batches[0][0]

    def run(w: dict[str, Tensor], hidden: Tensor, mask: Tensor) -> Tensor:
        low = (hidden @ w["down.weight"].T + w["down.bias"]) * mask
        return low @ w["up.weight"].T + w["up.bias"]

    hidden, ones = F.relu(x @ w["enter.weight"].T + w["enter.bias"]), torch.ones(6).double()
    original, name = run(w, hidden, ones), analysis.program.output_names
    curve = found.curves["enter.weight[0]"]
    cut = run({**w, **weights["enter.weight[0]"]}, hidden * curve.mask, ones)
    assert curve.effect == pytest.approx(divergence(name, [original], [cut]), rel=CLOSE)
    curve = found.curves["down.weight[0]"]
    cut = run(dict(changed.program.weights), hidden, curve.mask)
    assert curve.effect == pytest.approx(divergence(name, [original], [cut]), rel=CLOSE)


def test_curves_are_scaled_to_the_effect() -> None:
    losses = torch.tensor([8.0, 4.0, 2.0, 0.0]).double()
    curve = Curve(losses, 1, torch.tensor([True, False, False]))
    assert torch.equal(curve.scaled(), losses)  # nothing is known yet
    curve.effect = 0.5
    torch.testing.assert_close(curve.scaled(), losses / 8)


def test_what_is_free_down_to_the_probe_is_unknown_below_it() -> None:
    """Half of the neurons are dead: that says nothing of the others."""
    for losses, effect in (([8.0, 4.0, 0.0, 0.0], 0.0), ([8.0, 4.0, 2.0, 0.0], 0.0)):
        curve = Curve(torch.tensor(losses).double(), 2, torch.ones(3) > 0, effect=effect)
        assert curve.scaled().tolist() == [float("inf"), float("inf"), 0.0, 0.0]


def test_an_effect_where_the_curve_has_none_is_believed() -> None:
    curve = Curve(torch.tensor([8.0, 4.0, 0.0, 0.0, 0.0]).double(), 2, torch.ones(4) > 0, effect=0.5)
    assert curve.scaled().tolist() == [float("inf"), float("inf"), 0.5, 0.25, 0.0]


@pytest.mark.parametrize("effect", [float("inf"), float("nan")])
@pytest.mark.parametrize("at", [0.0, 2.0])
def test_what_ruined_the_output_is_never_cut(effect: float, at: float) -> None:
    curve = Curve(torch.tensor([8.0, 4.0, at, 0.0]).double(), 2, torch.ones(3) > 0, effect=effect)
    assert curve.scaled().tolist() == [float("inf")] * 3 + [0.0]


def dead(count: int) -> tuple[Analysis, Batches]:
    """The bottleneck with so many of its twelve neurons dead."""
    _, batches = opened("bottleneck")
    model = Bottleneck().double()
    with torch.no_grad():
        model.enter.bias[:count] = -100.0
    return analyze(capture(model.eval(), tuple(batches[0]))), batches


@pytest.mark.parametrize(("count", "probed"), [(0, 6), (6, 3), (10, 1), (12, 1)])
def test_dead_neurons_are_free_and_the_others_are_not(count: int, probed: int) -> None:
    analysis, batches = dead(count)
    found = surveyed(analysis, batches)
    curve = found.curves["enter.weight[0]"]
    probe(analysis, {"enter.weight[0]": curve}, batches[0])
    alive, scaled = 12 - count, curve.scaled()
    assert curve.probed == probed
    assert curve.effect is not None and (curve.effect > 1e-6) == (alive > 0)
    largest = float(scaled[1]) if alive > 1 else 1.0
    assert bool((scaled[max(alive, 1) :] < BY_RIDGE * largest).all())
    if alive > 1:
        assert float(scaled[alive // 2]) > BY_RIDGE * largest


def test_a_subspace_is_probed_within_its_rank() -> None:
    _, batches = opened("lora")
    model = Lora().double()
    with torch.no_grad():
        model.down.weight.copy_(torch.randn(5, 2).double() @ torch.linalg.qr(torch.randn(8, 2).double()).Q.T)
    analysis = analyze(capture(model.eval(), tuple(batches[0])))
    found = surveyed(analysis, batches)
    curve = found.curves["down.weight[0]"]
    probe(change_bases(analysis, found, tuple(found.bases)), found.curves, batches[0])
    assert curve.probed == 1 and curve.effect is not None and curve.effect > 1e-6
    assert float(curve.scaled()[2]) < 1e-9 * float(curve.scaled()[1])


def test_an_effect_that_is_not_finite_allows_no_cut() -> None:
    curve = Curve(torch.tensor([8.0, 4.0, 2.0, 0.0]).double(), 1, torch.ones(3) > 0, effect=float("inf"))
    assert curve.scaled().tolist() == [float("inf")] * 3 + [0.0]


def test_empty_and_spoiled_data_is_refused() -> None:
    analysis, batches = opened("bottleneck")
    with pytest.raises(InputError, match="calibration data is empty"):
        surveyed(analysis, [])
    bad = [[b[0].clone()] for b in batches]
    bad[1][0][0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite for calibration batch 1"):
        surveyed(analysis, bad)


def test_progress_is_told() -> None:
    analysis, batches = opened("lora")
    told: list[tuple[str, int, int]] = []
    found = survey(analysis, [], subspaces_of(analysis), batches, lambda *what: told.append(what))
    probe(change_bases(analysis, found, tuple(found.bases)), found.curves, batches[0], lambda *what: told.append(what))
    assert told[-1] == ("probe: down.weight[0]", 0, 1)
    assert all(0 <= done < total for _, done, total in told)
