"""Computations over weights alone become weights, and what they tied is free."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxslim.graph.errors import VerifyError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.fold import FoldConstants
from fxslim.passes.planner import make_plan
from fxslim.passes.prepare import prepare
from fxslim.passes.prove import prove
from fxslim.passes.same import verify_same_function
from tests.passes.conftest import Analyse, Pair

EXACT = 1e-9


class Normalised(nn.Module):
    """Weight normalisation, spectral norm and a weight that is standardised in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Linear(5, 7))
        self.b = parametrizations.spectral_norm(nn.Conv1d(7, 6, 1))
        self.c, self.d = nn.Parameter(torch.randn(4, 6)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.relu(self.a(x)).transpose(1, 2)).transpose(1, 2)
        weight = (self.c - self.c.mean(1, keepdim=True)) / (self.c.std(1, keepdim=True) + 1e-5)
        return self.d(F.relu(F.linear(F.relu(x), weight)))


def test_what_norms_over_weights_tied_is_free_after_folding(analyse: Analyse) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5)
    model = Normalised().eval()
    before = analyse(model, x)
    after = prepare(before)
    assert after.unknown_ops == {}
    assert {(g.size, g.exact) for g in after.prunable} == {(7, True), (6, True), (4, True)}
    assert not all(g.exact for g in before.prunable) or len(before.prunable) < 3
    torch.testing.assert_close(Evaluator(after.program).run([x])[0], model(x).detach())
    proof = prove(after, make_plan(after, width=0.5))
    assert proof.ok and proof.exact and proof.max_error <= EXACT


def test_folded_weights_are_named_after_their_layer_and_trainable(analyse: Analyse) -> None:
    program = prepare(analyse(Normalised().eval(), torch.randn(2, 4, 5))).program
    folded = {name: info.trainable for name, info in program.info.items() if "folded" in name}
    assert folded == {"a.weight_folded": True, "b.weight_folded": True, "c_folded": True}
    assert not any("parametrizations" in name for name in program.info)
    assert program.history == ["fold-constants"]


class Table(nn.Module):
    """A bias table read by index: larger than what it is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 4)
        self.register_buffer("index", torch.randint(0, 3, (50,)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.table[self.index]


def test_a_value_larger_than_its_weights_is_not_stored(analyse: Analyse) -> None:
    analysis = analyse(Table(), torch.randn(50, 4))
    assert not FoldConstants()(analysis).modified


def test_views_of_weights_stay(analyse: Analyse) -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.w.t().contiguous().t()

    assert not FoldConstants()(analyse(Transposed(), torch.randn(2, 4))).modified


def test_a_weight_that_is_changed_position_by_position_keeps_its_name(analyse: Analyse) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.randn(4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.rms_norm(x, (4,)) * (1 + self.weight.float()))

    assert not FoldConstants()(analyse(Shifted(), torch.randn(2, 4))).modified


def test_nothing_to_fold_changes_nothing(analyse: Analyse) -> None:
    analysis = analyse(Pair(), torch.randn(2, 4))
    assert prepare(analysis) is analysis
    assert analysis.program.history == []


class Standardised(nn.Module):
    """A convolution whose weight is standardised by a batch norm over its rows, as image models write it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.weight = nn.Conv2d(3, 6, 1), nn.Parameter(torch.randn(8, 6, 3, 3))
        self.gain, self.leave = nn.Parameter(torch.ones(8)), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, 8, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain, training=True, eps=1e-6).reshape_as(self.weight)
        return self.leave(F.relu(F.conv2d(F.relu(self.enter(x)), weight)))


def test_weights_standardised_by_a_batch_norm_are_cut_exactly(analyse: Analyse) -> None:
    torch.manual_seed(5)
    x = torch.randn(2, 3, 5, 5)
    model = Standardised().eval()
    before, after = analyse(model, x), prepare(analyse(model, x))
    assert before.unknown_ops == {}
    assert {g.size for g in before.prunable if not g.exact} == {6}
    assert {(g.size, g.exact) for g in after.prunable} == {(6, True), (8, True)}
    proof = prove(after, make_plan(after, width=0.5))
    assert proof.ok and proof.max_error <= EXACT


class Raw(nn.Module):
    """A weight that is read raw and normalised: folding would keep both."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.embed(ids), F.normalize(self.embed.weight, dim=-1))


class Noisy(nn.Module):
    """Random numbers are no constants."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, F.normalize(self.weight + torch.randn_like(self.weight), dim=1)))


class Tied(nn.Module):
    """A normalised weight with two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 6, bias=False), nn.Linear(6, 2)
        self.other = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.linear(x, F.normalize(self.layer.weight, dim=1)))


@pytest.mark.parametrize(
    ("model", "x"), [(Raw(), torch.randint(0, 50, (2, 5))), (Noisy(), torch.randn(3, 4)), (Tied(), torch.randn(3, 4))]
)
def test_what_is_read_elsewhere_random_or_tied_stays(model: nn.Module, x: Tensor, analyse: Analyse) -> None:
    assert not FoldConstants()(analyse(model, x)).modified


def test_a_pass_that_changes_the_function_is_refused(analyse: Analyse) -> None:
    x = torch.randn(2, 4, 5)
    analysis = analyse(Normalised().eval(), x)
    result = FoldConstants()(analysis).program
    result.weights["c_folded"] = result.weights["c_folded"] * 1.01
    with pytest.raises(VerifyError, match="changed by"):
        verify_same_function(result, analysis.program)
