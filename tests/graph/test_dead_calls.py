"""What nothing reads goes, but for what does more than return a value."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from fxslim.graph.capture import capture
from fxslim.graph.dead_calls import remove_dead_calls

aten = torch.ops.aten


def _targets(graph: fx.Graph) -> list[object]:
    return [node.target for node in graph.nodes if node.op == "call_function"]


def _graph(*dead: tuple[object, tuple[object, ...]]) -> fx.Graph:
    """An input that is returned, and calls on it that nothing reads."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    for target, args in dead:
        graph.call_function(target, (x, *args))
    graph.placeholder("unread")
    graph.output((x,))
    return graph


@pytest.mark.parametrize(
    "call", [(aten.relu.default, ()), (aten.dropout.default, (0.5, True)), (aten.bernoulli.default, ())]
)
def test_calls_without_an_effect_go(call: tuple[object, tuple[object, ...]]) -> None:
    graph = _graph(call)
    remove_dead_calls(graph)
    assert not _targets(graph) and len(graph.find_nodes(op="placeholder")) == 2


@pytest.mark.parametrize(
    "call", [(aten.relu_.default, ()), (aten.bernoulli_.float, (0.5,)), (aten._assert_async.msg, ("no",))]
)
def test_calls_with_an_effect_stay(call: tuple[object, tuple[object, ...]]) -> None:
    graph = _graph(call)
    remove_dead_calls(graph)
    assert _targets(graph) == [call[0]]


def test_attention_that_nothing_reads_goes_with_its_weights() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.head = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
            return self.head(x)

    program = capture(Model(), (torch.randn(2, 3, 4),), {}, None)
    assert _targets(program.graph) == [aten.linear.default]
    assert set(program.info) == {"head.weight", "head.bias"}
