"""Methods by name: their settings, and each of them from end to end."""

from __future__ import annotations

import re
from functools import cache
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim import cli_plan, cli_slim
from fxslim.api import Applied, apply_plan, compress, make_plan, prove
from fxslim.cli_common import BudgetName, ImportanceName, MethodName, RestoreName, ScheduleName
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.passes.budget import BUDGETS
from fxslim.passes.importance import BY_DATA, IMPORTANCES
from fxslim.passes.methods import DEFAULT, METHODS, Restore, Settings, settings
from fxslim.passes.plan import Plan
from fxslim.passes.rank_schedule import SLOPE
from fxslim.passes.rounds import SCHEDULES
from tests.models.nets import captured

EXACT = 1e-9  # float64 rounding, relative to an output's largest magnitude
FELT = 1e-6  # cutting must change an output by more than this
SHARE = 0.01  # a budget is met within this
WIDTH, VOCABULARY = 24, 11
DOCUMENT = Path(__file__).parents[2] / "docs/methods.md"

Batches = list[list[Tensor]]


class Layer(nn.Module):
    """Attention and a feed-forward part, each behind a norm and beside a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(b, s, 3, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, s, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.layer = nn.Linear(16, WIDTH), Layer()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.norm(self.layer(self.enter(x))))}


@cache
def small() -> tuple[Analysis, Batches, Batches]:
    """A transformer on inputs of few directions, as activations are: calibration, and rows that nobody saw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model, mix = Model().eval(), torch.randn(5, 16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))  # nothing is zero or one any more
        draw = [[torch.randn(8, 12, 5) @ mix + 0.1 * torch.randn(8, 12, 16)] for _ in range(6)]
    return analyze(capture(model, (draw[0][0],), dynamic_shapes=({0: "batch"},))), draw[:4], draw[4:]


@cache
def slimmed(method: str, of: Target = "params") -> tuple[Plan, Applied]:
    """The model at 70 %."""
    analysis, data, _ = small()
    chosen = settings(method, data=True)
    return compress(analysis, 0.7, of=of, restore=chosen.restore, calibration=data, **chosen.options())


def distance(program: Program, batches: Batches) -> float:
    """KL(original || slim) in nats a token."""
    whole, slim = Evaluator(small()[0].program), Evaluator(program)
    pairs = [(whole.run(b)[0].log_softmax(-1), slim.run(b)[0].log_softmax(-1)) for b in batches]
    return sum(float((a.exp() * (a - b)).sum(-1).mean()) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].share])  # which needs neighbours: test_sharing
def test_every_method_meets_the_budget_and_is_proven(method: str) -> None:
    analysis, data, held_out = small()
    plan, made = slimmed(method)
    costs, chosen = CostModel(analysis.axes), METHODS[method]
    share = sum(t.numel() for t in made.program.weights.values()) / costs.params()
    assert share <= 0.7 + SHARE and (share >= 0.7 - SHARE or chosen.depth), "a branch is a large step"
    before, after = plan.predicted["params"]
    assert (before, after) == (costs.params(), sum(t.numel() for t in made.program.weights.values()))
    assert (None if made.restoration is None else made.restoration.by) == {"none": None}.get(
        str(chosen.restore), chosen.restore
    )
    assert bool(plan.subspaces) == (chosen.subspace or chosen.metric is not None)
    proof = prove(analysis, plan, held_out[:1], calibration=data)
    assert proof.ok and proof.max_error <= EXACT and (proof.effect > FELT or chosen.depth)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", ["attention", "lora"])
def test_every_method_is_proven_at_several_widths(net: str, method: str) -> None:
    found = captured(net)
    data = [found.analysis.program.flatten(*found.net.call(4, 6)) for _ in range(2)]
    chosen = settings(method, data=True, width=True)
    for width in (0.35, 0.75):
        plan = make_plan(
            found.analysis, width=width, importance=chosen.importance, subspace=chosen.subspace, calibration=data
        )  # fmt: skip
        proof = prove(found.analysis, plan, [found.analysis.program.flatten(*found.net.call(3, 7))], calibration=data)
        assert plan.cuts and bool(plan.subspaces) == chosen.subspace
        assert proof.ok and proof.max_error <= EXACT and proof.effect > FELT


@pytest.mark.parametrize("method", ["best", "modegpt"])
def test_the_plan_alone_makes_the_same_model(method: str) -> None:
    analysis, data, _ = small()
    plan, made = slimmed(method)
    again = apply_plan(analysis, Plan.from_json(plan.to_json()), METHODS[method].restore, data)
    for name, tensor in made.program.weights.items():
        torch.testing.assert_close(again.program.weights[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_best_is_the_closest_on_rows_that_nobody_saw() -> None:
    _, _, held_out = small()
    found = {m: distance(slimmed(m)[1].program, held_out) for m in ("best", "fasp", "magnitude")}
    assert 0 < found["best"] < 0.7 * found["fasp"]
    assert found["best"] < 0.2 * found["magnitude"]


def test_a_global_budget_cuts_by_what_it_costs() -> None:
    plan, _ = slimmed("best")
    uniform, _ = slimmed("modegpt")
    shares = [c.count / c.size for c in plan.cuts]
    assert max(shares) - min(shares) > 0.1 or len(plan.cuts) < len(uniform.cuts)
    assert max(c.count / c.size for c in uniform.cuts) - min(c.count / c.size for c in uniform.cuts) < 0.15


def test_macs_can_be_the_budget() -> None:
    plan, _ = slimmed("best", of="macs")
    before, after = plan.predicted["macs"]
    assert abs(after / before - 0.7) <= SHARE


def test_settings_without_a_name() -> None:
    assert DEFAULT == "best" and next(iter(METHODS)) == "best"
    best = Settings("obs", True, "global", "least-squares", ranks=True, streams=True)
    assert settings(data=True) == best == settings("best", data=True)
    assert settings(data=False) == Settings("magnitude", False, "uniform", None)
    assert settings(importance="fasp", data=True) == Settings("fasp", False, "uniform", None)
    assert settings(importance="random", budget="global", data=True) == Settings("random", False, "global", None)
    assert settings(restore="none", data=True) == Settings("obs", True, "global", "none", ranks=True, streams=True)
    assert settings(restore="none", data=False) == Settings("magnitude", False, "uniform", "none")


def test_settings_of_a_method_can_be_replaced_one_by_one() -> None:
    assert settings("fasp", budget="global", data=True) == Settings("fasp", False, "global", "least-squares")
    assert settings("best", importance="flap", data=True) == Settings(
        "flap", True, "global", "least-squares", ranks=True, streams=True
    )
    assert settings("best", restore="none", data=True) == Settings(
        "obs", True, "global", "none", ranks=True, streams=True
    )


def test_a_width_leaves_nothing_to_divide() -> None:
    assert settings("best", data=True, width=True).budget == "uniform"
    assert settings(data=True, width=True).budget == "uniform"
    assert settings("best", budget="global", data=True, width=True).budget == "global"  # refused by the plan


@pytest.mark.parametrize("method", METHODS)
def test_methods_know_what_they_need(method: str) -> None:
    chosen = METHODS[method]
    assert chosen.importance in IMPORTANCES and chosen.budget in BUDGETS
    if (
        chosen.importance in BY_DATA
        or chosen.subspace
        or chosen.depth
        or chosen.share
        or chosen.metric in ("scaled", "whitened")
    ):
        with pytest.raises(InputError, match=f"the method '{method}' needs calibration data"):
            settings(method, data=False)
    else:
        assert settings(method, data=False).importance == chosen.importance


def test_the_page_on_methods_lists_every_one_with_its_settings() -> None:
    cell = r"([^|]*)\|"
    rows = re.findall(rf"^\| `(\S+)`[^|]*\|{cell * 5}", DOCUMENT.read_text("utf-8"), re.M)
    words = {
        "second order": "obs", "column score": "fasp", "fluctuation": "flap", "activations": "activation",
        "weights": "magnitude", "-": "magnitude", "yes": True, "no": False, "only these": True, "one ratio": "uniform",
        "by outliers": "outliers", "one ranking": "standardised", "biases": "bias",
        "least squares": "least-squares",
    }  # fmt: skip
    said: dict[str, tuple[object, ...]] = {}
    for name, *cells in rows:  # the first table is that of the settings
        said.setdefault(name, tuple(words.get(cell.strip(), cell.strip()) for cell in cells))
    single = {n for n, m in METHODS.items() if m.metric is None and not m.depth and not m.share}
    assert {n: said[n] for n in said.keys() & single} == {
        n: (m.importance, m.subspace, m.budget, m.restore, m.streams) for n, m in METHODS.items() if n in single
    }
    assert set(METHODS) <= set(re.findall(r"^\| `(\S+)`", DOCUMENT.read_text("utf-8"), re.M)), "each is listed"


def test_the_command_line_offers_every_choice() -> None:
    choices = (MethodName, METHODS), (ImportanceName, IMPORTANCES), (BudgetName, BUDGETS)
    for offered, known in (*choices, (RestoreName, get_args(Restore))):
        literal, _none = get_args(get_args(offered)[0])
        assert set(get_args(literal)) == set(known)
    assert set(get_args(get_args(ScheduleName)[0])) == set(SCHEDULES)
    assert {signature(command).parameters["slope"].default for command in (cli_plan.plan, cli_slim.slim)} == {SLOPE}


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match="there is no method 'nonsense'") as caught:
        settings("nonsense", data=True)
    assert all(name in str(caught.value) for name in METHODS)
