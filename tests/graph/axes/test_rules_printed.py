"""Rules as people read them: one line per operator, and text and rule are the same thing."""

from __future__ import annotations

import pytest

from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.registry import REGISTRY
from tests.graph.axes.printed_rules import EXPECTED
from tests.graph.axes.samples import SAMPLES, canonical


@pytest.mark.parametrize("name", EXPECTED)
def test_printed(name: str) -> None:
    found = canonical()[name].rule
    assert found is not None
    assert (str(found), str(found.default)) == EXPECTED[name]


def test_every_operator_is_printed_in_alphabetical_order() -> None:
    assert list(EXPECTED) == sorted(map(str, REGISTRY))


def test_parse_is_the_inverse_of_str() -> None:
    for rule in (s.rule for s in SAMPLES):
        assert rule is not None and DimRule.parse(str(rule)) == rule
