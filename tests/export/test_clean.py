"""Names of dimensions that a loader may evaluate: arithmetic on names, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fxslim.export.clean import dim_name_is_safe, refuse_dim_names
from fxslim.graph.errors import InputError


@pytest.mark.parametrize("name", ["batch", "s0", "past + new", "past - 1", "2*rows", "4 + rows", "a + 2*b"])
def test_sums_and_products_of_names_are_safe(name: str) -> None:
    assert dim_name_is_safe(name)


@pytest.mark.parametrize(
    "name", ["", "3", "2*3", "a b", "a..b", "f()", "__import__('os')", "a[0]", "a**2", "a+b", "a;b", "a\n", "lambda: 0"]
)
def test_everything_else_is_refused(name: str) -> None:
    assert not dim_name_is_safe(name)


def session(inputs: list[Any], outputs: list[Any]) -> Any:
    """What is asked of an ONNX Runtime session: the shapes of its interface."""
    values = [[SimpleNamespace(name=f"v{i}", shape=shape) for i, shape in enumerate(s)] for s in (inputs, outputs)]
    return SimpleNamespace(get_inputs=lambda: values[0], get_outputs=lambda: values[1])


def test_the_dimensions_of_a_session_are_looked_at() -> None:
    refuse_dim_names(session([["batch", 3], [None]], [["batch", "past + new"], []]))
    for inputs, outputs in (([["f()"]], []), ([], [[2], ["batch", "f()"]])):
        with pytest.raises(InputError, match=r"called 'f\(\)'"):
            refuse_dim_names(session(inputs, outputs))
