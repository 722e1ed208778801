"""Restoration: what a least-squares refit of every consumer must, and must not, do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import apply_plan
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.select import Selection
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.plan import Cut
from fxslim.passes.planner import make_plan
from fxslim.passes.restore import restore_weights
from tests.passes.conftest import Analyse
from tests.plans import plan_of

CLOSE = 1e-6  # squared, of sums in float32


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 24), nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


@pytest.fixture
def deep(analyse: Analyse) -> Analysis:
    return analyse(Deep(), torch.randn(6, 5), dynamic=({0: "rows"},))


def batches(count: int = 10, rows: int = 40) -> list[list[Tensor]]:
    return [[torch.randn(rows, 5)] for _ in range(count)]


def error(analysis: Analysis, program: object, data: list[list[Tensor]]) -> float:
    whole, slim = Evaluator(analysis.program), Evaluator(program)  # type: ignore[arg-type]
    return sum(float((whole.run(b)[0] - slim.run(b)[0]).square().sum()) for b in data)


def test_restored_is_closer_than_sliced_on_other_data(deep: Analysis) -> None:
    plan = make_plan(deep, width=0.5)
    data, other = batches(), batches(2)
    sliced = apply_plan(deep, plan, "none").program
    restored = apply_plan(deep, plan, calibration=data)
    assert error(deep, restored.program, other) < 0.5 * error(deep, sliced, other)
    assert restored.restoration is not None
    rows = restored.restoration.rows
    assert [r.weight for r in rows] == ["b.weight", "c.weight"]
    assert all(r.accepted and r.after < r.before and r.kept == 12 and r.columns == 24 for r in rows)
    assert all(r.tokens == 400 for r in rows)


def test_a_later_consumer_sees_the_compressed_upstream(deep: Analysis) -> None:
    """The second refit must equal one computed by hand on the activations of the already restored first part."""
    plan, data = make_plan(deep, width=0.5), batches()
    new = restore_weights(deep, plan.selection(deep), data, upstream="compressed").weights
    kept = {c.group: list(c.kept) for c in plan.cuts}
    k1, k2 = kept["a.weight[0]"], kept["b.weight[0]"]
    w = deep.program.weights
    x = torch.cat([b[0] for b in data])
    first = torch.relu(x @ w["a.weight"].T + w["a.bias"])[:, k1]
    second = torch.relu(first @ new["b.weight"][:, k1].T + new["b.bias"])

    def design(hidden: Tensor) -> Tensor:
        return torch.cat([hidden[:, k2], torch.ones(len(x), 1)], 1).double()

    def whole(hidden: Tensor) -> Tensor:
        return (hidden @ w["c.weight"].T + w["c.bias"]).double()

    def left(solution: Tensor) -> float:
        return float((design(second) @ solution - whole(second)).square().sum())

    untouched = torch.relu(torch.relu(x @ w["a.weight"].T + w["a.bias"]) @ w["b.weight"].T + w["b.bias"])
    got = torch.cat([new["c.weight"][:, k2].T, new["c.bias"][None]]).double()
    on_compressed = left(torch.linalg.lstsq(design(second), whole(second)).solution)
    on_original = left(torch.linalg.lstsq(design(untouched), whole(untouched)).solution)
    assert left(got) < min(2 * on_compressed, on_original)


def test_keeping_everything_changes_nothing(deep: Analysis) -> None:
    found = restore_weights(deep, Selection(), batches(2))
    assert found.weights == {}
    assert found.rows == ()


def test_few_tokens_are_warned_of_with_the_ratio(deep: Analysis) -> None:
    plan = make_plan(deep, width=0.5)
    found = restore_weights(deep, plan.selection(deep), batches(2, 13))
    assert len(found.warnings) == 2
    assert found.warnings[0].startswith("b.weight: 26 calibration tokens for 13 columns (ratio 2.00")
    assert restore_weights(deep, plan.selection(deep), batches(2, 40)).warnings == ()


def test_one_batch_and_one_row_do_not_crash(deep: Analysis) -> None:
    plan = make_plan(deep, width=0.5)
    for rows in (1, 7, 8, 9):
        found = restore_weights(deep, plan.selection(deep), batches(1, rows))
        assert all(bool(torch.isfinite(w).all()) for w in found.weights.values())
        assert len(found.rows) == 2


def test_empty_and_spoiled_calibration_is_refused(deep: Analysis) -> None:
    plan = make_plan(deep, width=0.5)
    for call in (
        lambda: restore_weights(deep, plan.selection(deep), []),
        lambda: apply_plan(deep, plan, calibration=[]),
    ):
        with pytest.raises(InputError, match=r"calibration data.* empty"):
            call()
    with pytest.raises(InputError, match="restoration needs calibration data"):
        apply_plan(deep, plan, "least-squares")
    spoiled = batches(3)
    spoiled[1][0][0, 0] = float("nan")
    with pytest.raises(InputError, match=r"'relu' is not finite for calibration batch 1"):
        restore_weights(deep, plan.selection(deep), spoiled)


def test_what_cannot_be_refitted_is_warned_of(analyse: Analyse) -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2))
    analysis = analyse(model, torch.randn(2, 2, 4, 4))
    found = restore_weights(analysis, make_plan(analysis, width=0.5).selection(analysis), [[torch.randn(2, 2, 4, 4)]])
    assert found.weights == {}
    (warning,) = found.warnings
    assert warning.startswith("not refitted, only sliced: conv_transpose2d")


def test_the_original_is_left_as_it_was(deep: Analysis) -> None:
    before = {n: t.clone() for n, t in deep.program.weights.items()}
    apply_plan(deep, make_plan(deep, width=0.5), calibration=batches())
    for name, tensor in before.items():
        assert torch.equal(deep.program.weights[name], tensor)


def test_biases_alone_restore_constant_units_exactly(deep: Analysis) -> None:
    """Units with constant outputs go; by the bias the slim program is the original, layer after layer."""
    program = deep.program.clone()
    for name in ("a", "b"):
        program.weights[f"{name}.weight"] = program.weights[f"{name}.weight"].detach().clone()
        program.weights[f"{name}.weight"][::2] = 0
        program.weights[f"{name}.bias"] = program.weights[f"{name}.bias"].detach().abs() + 0.5
    analysis, data = analyze(program), batches()
    cuts = [Cut.from_mask(analysis.group(f"{n}.weight[0]"), torch.arange(24) % 2 == 1) for n in "ab"]
    plan, other = plan_of(analysis, cuts), batches(2)
    made = apply_plan(analysis, plan, "bias", data)
    assert made.restoration is not None and made.restoration.by == "bias"
    assert made.restoration.weights.keys() == {"b.weight", "b.bias", "c.weight", "c.bias"}
    whole = error(analysis, apply_plan(analysis, plan, "none").program, other)
    assert error(analysis, made.program, other) < CLOSE * whole
    again = replace(plan, options={"restore": "bias"})
    torch.testing.assert_close(
        dict(apply_plan(analysis, again, calibration=data).program.weights), dict(made.program.weights)
    )


def test_layers_without_a_bias_are_named_and_get_none(analyse: Analyse) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    analysis = analyse(model, torch.randn(6, 5), dynamic=({0: "rows"},))
    plan = make_plan(analysis, width=0.5)
    made = apply_plan(analysis, plan, "bias", batches())
    assert made.restoration is not None and made.restoration.weights == {}
    assert made.restoration.warnings == ("2.weight: no bias to hold the mean of what was removed; only sliced",)
    assert set(made.program.weights) == {"0.weight", "0.bias", "2.weight"}


@pytest.mark.parametrize(("height", "said"), [(1.0, True), (0.01, False)])
def test_a_constant_that_nothing_can_hold_is_said_if_it_matters(analyse: Analyse, height: float, said: bool) -> None:
    """Half of the units are constant and go; the others are zero on average and cannot stand for them."""
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3, bias=False))
    with torch.no_grad():
        model[0].weight[:4], model[0].bias[:4], model[0].bias[4:] = 0, height, 0
    analysis, data = analyse(model, torch.randn(6, 5), dynamic=({0: "rows"},)), batches()
    plan = plan_of(analysis, [Cut.from_mask(analysis.group("0.weight[0]"), torch.arange(8) >= 4)])
    warnings = restore_weights(analysis, plan.selection(analysis), data).warnings
    assert [w.startswith("2.weight: a constant of") for w in warnings] == [True] * said


def test_a_running_mean_takes_the_place_of_a_bias(analyse: Analyse) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3, bias=False), nn.BatchNorm1d(3))
    analysis = analyse(model, torch.randn(6, 5), dynamic=({0: "rows"},))
    plan, data = make_plan(analysis, width=0.5), batches()
    made = apply_plan(analysis, plan, "bias", data)
    assert made.restoration is not None and made.restoration.warnings == ()
    assert made.restoration.weights.keys() == {"2.weight", "3.running_mean"}
    assert error(analysis, made.program, data) < 0.5 * error(analysis, apply_plan(analysis, plan, "none").program, data)


def test_an_unknown_restoration_is_refused(deep: Analysis) -> None:
    plan = make_plan(deep, width=0.5)
    for call in (
        lambda: apply_plan(deep, plan, "best", batches()),  # type: ignore[arg-type]
        lambda: apply_plan(deep, replace(plan, options={"restore": "best"}), calibration=batches()),
    ):
        with pytest.raises(InputError, match="unknown restoration 'best'") as caught:
            call()
        assert "least-squares, bias, none" in str(caught.value)
