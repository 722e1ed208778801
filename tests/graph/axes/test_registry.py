"""The registry: what may be registered, how a call is seen, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.oracle import Sample
from fxslim.graph.axes.registry import REGISTRY, Entry, NewSizes, lookup, rule
from fxslim.graph.errors import RuleError
from tests.graph.axes.samples_pointwise import real

aten = torch.ops.aten


def test_a_second_rule_is_refused() -> None:
    with pytest.raises(RuleError, match=r"aten.relu.default is registered already"):
        rule(aten.relu.default)


def test_a_packet_is_refused_and_the_overload_named() -> None:
    with pytest.raises(
        RuleError, match=r"(?s)packet of overloads.*register one of them, for example aten.relu.default"
    ):
        rule(aten.relu)  # type: ignore[arg-type]


def test_a_function_is_refused() -> None:
    with pytest.raises(RuleError, match="must be an OpOverload, not builtin_function_or_method"):
        rule(torch.relu)  # type: ignore[arg-type]


def test_a_refused_key_registers_nothing() -> None:
    before = dict(REGISTRY)
    with pytest.raises(RuleError):
        rule(aten.cholesky.default, aten.relu)  # type: ignore[arg-type]
    assert before == REGISTRY


def test_a_rule_that_does_not_fit_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Sample(aten.relu.default, (real(3, 5),)).call.node
    for text in ("a -> a", "a b, a -> a b", "a b -> a"):
        entry = Entry(aten.relu.default, lambda call, t=text: DimRule.parse(t))  # type: ignore[misc]
        monkeypatch.setitem(REGISTRY, aten.relu.default, entry)
        with pytest.raises(RuleError, match="does not fit"):
            lookup(node)


def test_operators_without_a_rule_have_none() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = real(3, 3)
    assert lookup(graph.call_function(aten.cholesky.default, (x,))) is None
    assert lookup(graph.call_function(torch.relu, (x,))) is None


def test_arguments_by_name_with_defaults() -> None:
    call = Sample(aten.softmax.int, (real(2, 3, 5),), {"dim": -1}).call
    assert call.arg("dim") == -1 and call.arg("dtype") is None
    assert call.dim("dim", 3) == 2


def test_tensors_in_the_order_of_the_schema() -> None:
    bias, weight, x = real(4), real(4, 5), real(3, 5)
    call = Sample(aten.linear.default, (x,), {"bias": bias, "weight": weight}).call
    assert [n.meta["val"] is t for n, t in zip(call.tensors, (x, weight, bias), strict=True)] == [True] * 3
    assert call.shapes == ((3, 5), (4, 5), (4,)) and call.results == ((3, 4),)


def test_empty_dims_mean_all() -> None:
    assert Sample(aten.sum.dim_IntList, (real(3, 5), [])).call.dims("dim", 2) == (0, 1)
    assert Sample(aten.sum.dim_IntList, (real(3, 5), [-1])).call.dims("dim", 2) == (1,)


def test_new_sizes_follow_the_pattern() -> None:
    new = NewSizes({"a": 2, "b": 3, "c": 4}, DimRule.parse("a (b c) -> a [b|c] 1"))
    assert new.operand() == (2, 12) and new.result() == (2, 7, 1)
    assert new.letter("b") == 3 and new.letter("g") == 1
