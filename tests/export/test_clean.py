"""Names of dimensions that a loader may evaluate: arithmetic on names, and nothing else."""

from __future__ import annotations

import pytest

from fxslim.export.clean import dim_name_is_safe


@pytest.mark.parametrize("name", ["batch", "s0", "past + new", "past - 1", "2*rows", "4 + rows", "a + 2*b"])
def test_sums_and_products_of_names_are_safe(name: str) -> None:
    assert dim_name_is_safe(name)


@pytest.mark.parametrize(
    "name", ["", "3", "2*3", "a b", "a..b", "f()", "__import__('os')", "a[0]", "a**2", "a+b", "a;b", "a\n", "lambda: 0"]
)
def test_everything_else_is_refused(name: str) -> None:
    assert not dim_name_is_safe(name)
