"""The walk over the graph: expressions of every value, caches, unknown operators, reasons."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.analysis import Axes, analyze_axes, find_caches
from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.registry import REGISTRY, Entry, lookup
from fxslim.graph.axes.terms import Axis, expr_size
from fxslim.graph.capture import capture
from tests.graph.axes.tiny import Attention, Cache, FusedByView, ResidualMLP, RotaryGQA, Unknown, analysis_of

aten = torch.ops.aten


def node(axes: Axes, name: str) -> torch.fx.Node:
    return next(n for n in axes.program.graph.nodes if n.name == name)


@pytest.mark.parametrize(
    "model", [ResidualMLP, Attention, RotaryGQA, FusedByView, Cache, Unknown], ids=lambda m: m.__name__
)
def test_every_value_has_expressions_of_its_sizes(model: type[nn.Module]) -> None:
    axes = analysis_of(model).axes
    for n in axes.program.graph.nodes:
        value = n.meta.get("val")
        for tensor, dims in zip(
            value if isinstance(value, list | tuple) else [value], axes.values.get(n, ()), strict=False
        ):
            if isinstance(tensor, Tensor):
                assert [expr_size(axes.terms.resolve(e)) for e in dims] == list(tensor.shape), n


def test_pointwise_results_share_the_operand() -> None:
    axes = analysis_of(ResidualMLP).axes
    assert axes.dims(node(axes, "silu")) == axes.dims(node(axes, "linear_1"))


def test_a_dimension_is_an_expression() -> None:
    axes = analysis_of(Attention).axes
    weights = axes.program.weight_nodes()
    query, value, out = (axes.dims(weights[n]) for n in ("q.weight", "v.weight", "o.weight"))
    heads, dims = query[0]
    assert isinstance(heads, Axis) and (heads.size, dims.size) == (3, 4)  # type: ignore[union-attr]
    assert value[0][0] is heads and out[1] == value[0]


def test_fixed_axes_know_the_first_reason() -> None:
    axes = analysis_of(ResidualMLP).axes
    (dim,) = axes.dims(axes.program.weight_nodes()["embed.weight"])[1]
    assert isinstance(dim, Axis) and "an input of the user" in str(axes.fixed[dim])


def test_rules_are_kept_with_the_call() -> None:
    axes = analysis_of(ResidualMLP).axes
    call = axes.calls[node(axes, "layer_norm")]
    assert str(call.rule) == "ba bb da, da, da -> ba bb da | tied da"
    assert str(call.reason("da")).startswith("`da` is tied at layer_norm (aten.layer_norm.default) by `ba bb da")


def test_caches_are_inputs_that_come_back_longer() -> None:
    program = analysis_of(Cache).program
    assert find_caches(program) == {"past_k": "output_1", "past_v": "output_2"}
    assert find_caches(analysis_of(Attention).program) == {}


def test_only_known_sizes_of_a_cache_may_shrink() -> None:
    axes = analysis_of(Cache).axes
    heads, dims = (axes.dims(node(axes, "past_k"))[d] for d in (1, 3))
    assert not set(axes.terms.atoms(heads)) & set(axes.fixed) and not set(axes.terms.atoms(dims)) & set(axes.fixed)


def test_a_user_input_never_shrinks() -> None:
    axes = analysis_of(Cache).axes
    assert all(a in axes.fixed for e in axes.dims(node(axes, "x")) for a in axes.terms.atoms(e))


def test_unknown_operators_fix_all_they_touch() -> None:
    axes = analysis_of(Unknown).axes
    (found,) = axes.unknown["aten.linalg_cholesky_ex.default"]
    (source,) = found.all_input_nodes
    touched = [*axes.dims(source), *(e for dims in axes.values[found] for e in dims)]
    assert all(a in axes.fixed for e in touched for a in axes.terms.atoms(e))


def test_a_rule_that_does_not_fit_is_reported_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = capture(ResidualMLP(), (torch.randn(2, 3, 6),))
    monkeypatch.setitem(REGISTRY, aten.silu.default, Entry(aten.silu.default, lambda call: DimRule.parse("a -> a")))
    axes = analyze_axes(program)
    (name,) = axes.unknown
    assert name.startswith("aten.silu.default (its rule does not fit:")
    assert all(a in axes.fixed for a in axes.terms.atoms(axes.dims(node(axes, "silu"))[2]))


class Scores(nn.Module):
    """A running sum of masked scores."""

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return x.masked_fill(keep, 0.0).cumsum(-1)


def test_fixed_letters_carry_why() -> None:
    axes = analyze_axes(capture(Scores(), (torch.randn(3, 5), torch.rand(3, 5) < 0.5)))
    call = axes.calls[node(axes, "cumsum")]
    assert call.reason("b").text == "`b` is fixed: the order counts"


def test_a_slice_with_computed_bounds_is_fixed() -> None:
    graph = torch.fx.Graph()
    x, start = graph.placeholder("x"), graph.placeholder("start")
    x.meta["val"], start.meta["val"] = torch.randn(3, 8), 2
    call = graph.call_function(aten.slice.Tensor, (x, 1, start, 4))
    call.meta["val"] = torch.randn(3, 2)
    rule = lookup(call)
    assert str(rule) == "da db -> da s | fixed db s"
    assert rule is not None and rule.why == "its bounds are computed"


class Symbolic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj, self.back = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        y = torch.relu(self.proj(x)).view(b * s, 3, 4)
        return self.back(y.reshape(b, s, 12))


def test_symbolic_sizes_are_refined_too() -> None:
    axes = analyze_axes(capture(Symbolic(), (torch.randn(2, 5, 6),), dynamic_shapes={"x": {0: "b", 1: "s"}}))
    merged = axes.dims(node(axes, "view"))[0]
    assert len(merged) == 2 and not any(isinstance(a.size, int) for a in axes.terms.atoms(merged))
    weights = axes.program.weight_nodes()
    assert axes.dims(weights["proj.weight"])[0] == axes.dims(weights["back.weight"])[1]
    assert [a.size for a in axes.terms.atoms(axes.dims(weights["back.weight"])[1])] == [3, 4]
