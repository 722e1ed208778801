"""A proof that cannot fail proves nothing: broken rewrites must be caught."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph import rewriter
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.select import Selection
from fxslim.graph.errors import CheckError, PlanError, VerifyError
from fxslim.passes.plan import Plan
from fxslim.passes.planner import make_plan
from fxslim.passes.prove import prove
from tests.models.nets import captured
from tests.passes.conftest import Analyse


@pytest.mark.parametrize("name", ["mlp", "resnet", "attention", "unet"])
def test_a_wrong_position_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last weight that is cut loses its neighbours' positions instead."""
    analysis = captured(name).analysis
    plan = make_plan(analysis, width=0.5)
    assert prove(analysis, plan).ok
    take, wrong = Selection.take, [n for n in analysis.program.info if n.endswith("weight") and "bn" not in n][-1]

    def shifted(self: Selection, tensor: Tensor, dims: Any, symbols: Any = None) -> Tensor:
        if tensor is analysis.program.weights[wrong]:
            tensor = tensor.roll(1, dims=1)
        return take(self, tensor, dims, symbols)

    monkeypatch.setattr(Selection, "take", shifted)
    proof = prove(analysis, plan)
    assert not proof.ok
    assert "NOT proven" in str(proof)


def test_a_literal_that_is_not_refreshed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = captured("attention").analysis
    plan = make_plan(analysis, width=0.34, groups=["heads"])
    monkeypatch.setattr(rewriter, "new_literals", lambda *_: {})
    with pytest.raises(VerifyError):
        prove(analysis, plan)


def test_a_scale_that_follows_the_cut_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The softmax scale is the original's: recomputed from the smaller head it would be another function."""
    analysis = captured("attention").analysis
    plan = make_plan(analysis, width=0.5, groups=["query-key dims"])
    assert prove(analysis, plan).ok
    set_weight = rewriter.Rewriter.set_weight

    def scaled(self: Any, name: str, tensor: Tensor) -> None:
        set_weight(self, name, tensor * 2**0.5 if name.startswith("q.") else tensor)

    monkeypatch.setattr(rewriter.Rewriter, "set_weight", scaled)
    assert not prove(analysis, plan).ok


def test_what_is_not_finite_cannot_be_compared(pair: Analysis) -> None:
    with pytest.raises(CheckError, match="'output' is not finite"):
        prove(pair, make_plan(pair, width=0.5), [[torch.full((2, 4), float("nan"))]])


def test_a_plan_without_cuts_has_no_effect(pair: Analysis) -> None:
    proof = prove(pair, Plan(pair.program.fingerprint(), ()))
    assert (proof.ok, proof.max_error, proof.effect) == (True, 0.0, 0.0)


def test_every_set_of_inputs_is_compared(pair: Analysis) -> None:
    proof = prove(pair, make_plan(pair, width=0.5), [[torch.randn(n, 4)] for n in (1, 3, 8)])
    assert [o.inputs for o in proof.outputs] == [0, 1, 2]


def test_no_inputs_prove_nothing(pair: Analysis) -> None:
    with pytest.raises(CheckError, match="no inputs"):
        prove(pair, make_plan(pair, width=0.5), [])


def test_another_models_plan_is_refused(pair: Analysis) -> None:
    with pytest.raises(PlanError, match="another model"):
        prove(captured("mlp").analysis, make_plan(pair, width=0.5))


class Chosen(nn.Module):
    """As many rows as the data says go through a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        rows = (x[:, 0] > 0).nonzero()[:, 0]
        return x.index_add(0, rows, self.down(torch.relu(self.up(x[rows]))))


def test_sizes_that_depend_on_data_are_known_when_they_come_up(analyse: Analyse) -> None:
    torch.manual_seed(0)
    analysis = analyse(Chosen(), torch.randn(9, 6))
    plan = make_plan(analysis, width=0.5)
    inputs = [(torch.randn(9, 6),) for _ in range(3)]
    proof = prove(analysis, plan, inputs)
    assert plan.cuts and proof.ok and proof.exact and proof.effect > 1e-3
