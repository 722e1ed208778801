"""Names of dynamic dimensions: plain ones and sums."""

from __future__ import annotations

import pytest
from torch.export import Dim

from fxslim.graph.dims import dim_named, known_size, summands


@pytest.mark.parametrize(
    ("name", "parts"),
    [("past + new", ("past", "new")), ("a+b + c", ("a", "b", "c")), ("past", ()), ("2 + a", ()), ("a + ", ())],
)
def test_a_sum_is_of_names(name: str, parts: tuple[str, ...]) -> None:
    assert summands(name) == parts


def test_a_sum_has_the_size_of_its_parts() -> None:
    assert known_size("past + new", {"past": 3, "new": 4}) == 7
    assert known_size("past + new", {"past": 3}) is None
    assert known_size("past", {"past": 3}) == 3
    assert known_size("other", {"past": 3}) is None


def test_the_exporter_knows_plain_names_only() -> None:
    assert dim_named("past + new") is Dim.DYNAMIC
    assert getattr(dim_named("past"), "__name__", None) == "past"
