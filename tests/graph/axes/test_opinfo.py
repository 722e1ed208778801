"""Rules against the sample inputs that PyTorch tests its own operators with (all of them: `benchmarks/opinfo.py`)."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.oracle import Sample
from fxslim.graph.axes.registry import REGISTRY
from tests.graph.axes.opinfo import ABSENT, Harvest, harvest
from tests.graph.axes.opinfo_batch import batch_violations
from tests.graph.axes.opinfo_cautions import CAUTIONS, REFUSALS
from tests.graph.axes.opinfo_check import Verdict, judge

aten = torch.ops.aten
needs_database = pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT))

# Enough to meet most rules once, in seconds: every fourth entry of the database, one sample input each.
EVERY, SAMPLES_EACH, CALLS_EACH = 4, 1, 2


@cache
def found() -> tuple[Harvest, Verdict]:
    calls = harvest(SAMPLES_EACH, every=EVERY)
    return calls, judge(calls.spread(CALLS_EACH))


@needs_database
def test_no_claim_of_a_rule_is_refuted() -> None:
    assert not found()[1].findings, "\n".join(map(str, found()[1].findings))


@needs_database
def test_rules_are_no_more_cautious_than_they_say() -> None:
    new = [
        f for (op, letter), f in found()[1].cautions().items() if letter not in CAUTIONS.get(op, ("", ""))[0].split()
    ]
    assert not new, "\n".join(map(str, new))


@needs_database
def test_rules_fit_every_call_that_is_not_listed() -> None:
    assert set(found()[1].refused) <= set(REFUSALS)


@needs_database
def test_the_sample_means_something() -> None:
    _, verdict = found()
    assert len(verdict.run) > 100
    assert sum(verdict.run.values()) > 150
    assert verdict.batched > 200


def test_only_registered_operators_are_excused() -> None:
    assert set(CAUTIONS) | set(REFUSALS) <= {str(op) for op in REGISTRY}


def _real(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("sample", "pairs"),
    [
        (Sample(aten.softmax.int, (_real(3, 4), 1)), 1),  # d tied, h passes; h reduced over d would not
        (Sample(aten.matmul.default, (_real(2, 3, 5), _real(2, 5, 4))), 3),
        (Sample(aten.sum.default, (_real(3, 4),)), 2),
        (Sample(aten.add.Tensor, (_real(3, 4), _real(4))), 1),
    ],
    ids=["softmax", "matmul", "sum", "broadcast"],
)
def test_selections_along_a_batch_axis_hold(sample: Sample, pairs: int) -> None:
    assert sample.rule is not None
    assert batch_violations(sample, sample.rule) == (pairs, [])


def test_a_wrong_claim_about_a_batch_axis_is_caught() -> None:
    """Were the summed dimension of a softmax said to pass, it could be chosen by the other one: it cannot."""
    sample = Sample(aten.softmax.int, (_real(3, 4), 1))
    tried, faults = batch_violations(sample, DimRule.parse("a b -> a b"))
    assert tried == 2
    assert faults == ["`a` selected differently for each `b` is different at position 0"]
