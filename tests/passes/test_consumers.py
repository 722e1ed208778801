"""Every consumer is a matrix product of columns: columns @ matrix^T (+ bias) is what the operator computes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import analyze
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.consumers import Consumer, find_consumers

CLOSE = 1e-10  # float64


class Applied(nn.Module):
    """A function of the input and of parameters w and b, of given shapes."""

    def __init__(self, function: Callable[..., Tensor], weight: tuple[int, ...], bias: int | None) -> None:
        super().__init__()
        self.function = function
        self.w = nn.Parameter(torch.randn(weight))
        self.b = None if bias is None else nn.Parameter(torch.randn(bias))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.w, self.b)


def conv(rank: int, **options: Any) -> Callable[..., Tensor]:
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return lambda x, w, b: function(x, w, b, **options)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], int | None, tuple[int, ...]]] = {
    "linear": (F.linear, (4, 6), 4, (2, 3, 6)),
    "linear without bias": (F.linear, (4, 6), None, (5, 6)),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), (6, 4), 4, (5, 6)),
    "mm": (lambda x, w, b: torch.mm(x, w), (6, 4), None, (5, 6)),
    "matmul": (lambda x, w, b: x @ w, (6, 4), None, (2, 3, 6)),
    "conv1d": (conv(1), (4, 6, 3), 4, (2, 6, 9)),
    "conv1d same": (conv(1, padding="same", dilation=2), (4, 6, 4), 4, (2, 6, 9)),
    "conv2d": (conv(2, stride=2, padding=1), (4, 6, 3, 3), 4, (2, 6, 7, 8)),
    "conv2d same": (conv(2, padding="same"), (4, 6, 2, 5), None, (2, 6, 5, 6)),
    "conv2d valid": (conv(2, padding="valid", stride=(1, 3)), (4, 6, 2, 3), 4, (2, 6, 5, 7)),
    "conv2d uneven": (conv(2, stride=(1, 2), padding=(2, 0), dilation=(2, 1)), (4, 6, 3, 2), 4, (2, 6, 6, 7)),
    "conv2d grouped": (conv(2, groups=3, padding=1), (9, 2, 3, 3), 9, (2, 6, 5, 5)),
    "conv2d unbatched": (conv(2), (4, 6, 3, 3), 4, (6, 5, 5)),
    "conv3d": (conv(3, stride=(1, 2, 1), padding=(0, 1, 1)), (3, 4, 2, 3, 3), 3, (2, 4, 3, 5, 4)),
    "conv3d grouped": (conv(3, groups=2), (4, 2, 2, 1, 2), None, (2, 4, 3, 3, 3)),
}


def consumer_of(model: nn.Module, x: Tensor) -> tuple[Consumer, Any]:
    axes = analyze(capture(model, (x,))).axes
    (consumer,), refused = find_consumers(axes)
    assert refused == []
    return consumer, axes


ALL = list(CASES)


@pytest.mark.parametrize("case", ALL)
def test_columns_times_matrix_is_the_operator(case: str) -> None:
    function, weight, bias, shape = CASES[case]
    model, x = Applied(function, weight, bias).double(), torch.randn(shape).double()
    consumer, _ = consumer_of(model, x)
    columns, matrix = consumer.columns(x), consumer.matrix(model.w.detach())
    assert columns.shape[0] == matrix.shape[0] == consumer.blocks
    y = columns @ matrix.transpose(1, 2)  # [g, tokens, n]
    assert (consumer.bias == "b") == (bias is not None)
    if bias is not None:
        y = y + model.b.detach().reshape(consumer.blocks, 1, -1)
    wanted = model(x).detach()
    if "conv" in case:
        channel = wanted.dim() - len(weight) + 1
        wanted = wanted.movedim(channel, -1)
    flat = wanted.reshape(-1, consumer.blocks, wanted.shape[-1] // consumer.blocks).transpose(0, 1)
    torch.testing.assert_close(y, flat, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("case", ALL)
def test_from_matrix_undoes_matrix(case: str) -> None:
    function, weight, bias, shape = CASES[case]
    model = Applied(function, weight, bias)
    consumer, _ = consumer_of(model, torch.randn(shape))
    again = consumer.from_matrix(consumer.matrix(model.w.detach()).double(), model.w)
    assert torch.equal(again, model.w)
    assert again.dtype == model.w.dtype


class Fed(nn.Module):
    """A layer that makes channels, and a convolution that consumes them in windows."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 3, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x))


@pytest.mark.parametrize("groups", [1, 3])
def test_kept_columns_are_whole_windows(groups: int) -> None:
    """Removing the other columns from the product is zeroing the removed channels."""
    model = Fed(groups)
    analysis = analyze(capture(model, (torch.randn(1, 2, 5, 5),)))
    group = next(g for g in analysis.prunable if g.size == 6 // groups)
    mask = torch.ones([a.size for a in group.batch] + [group.size], dtype=torch.bool)
    mask[..., 1] = False
    selection = Selection({group.axis: Kept(group.batch, mask)})
    (consumer,), _ = find_consumers(analysis.axes, selection)
    channels = mask.flatten()
    kept = consumer.kept_columns(selection)
    assert kept.shape == (groups, 6 // groups * 9)
    value = model.enter(torch.randn(1, 2, 5, 5)).detach()
    masked = value * channels.view(1, 6, 1, 1)
    torch.testing.assert_close(consumer.columns(value) * kept.unsqueeze(1), consumer.columns(masked))


def test_without_a_selection_all_consumers_with_one_only_those_that_lose() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    analysis = analyze(capture(model, (torch.randn(2, 4),)))
    assert [c.weight for c in find_consumers(analysis.axes)[0]] == ["0.weight", "2.weight", "4.weight"]
    group = analysis.group("2.weight[0]")
    mask = torch.arange(5) > 1
    found, _ = find_consumers(analysis.axes, Selection({group.axis: Kept((), mask)}))
    assert [c.weight for c in found] == ["4.weight"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.a(x)))


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.s = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w * self.s)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Twice(), (2, 4), r"the weight a\.weight is used in 2 places"),
        (Computed(), (2, 4), "its weight is computed"),
        (nn.ConvTranspose2d(4, 3, 2), (1, 4, 3, 3), "conv_transpose2d"),
        (Applied(lambda x, w, b: torch.addmm(b, x, w, alpha=2.0), (4, 3), 3), (2, 4), "addmm with factors"),
    ],
)
def test_what_cannot_be_refitted_is_said_in_words(model: nn.Module, shape: tuple[int, ...], message: str) -> None:
    found, refused = find_consumers(analyze(capture(model, (torch.randn(shape),))).axes)
    assert found == []
    assert refused
    for text in refused:
        assert re.search(message, text)


def test_the_product_of_two_activations_is_neither() -> None:
    class Gram(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.mT

    assert find_consumers(analyze(capture(Gram(), (torch.randn(2, 3, 4),))).axes) == ([], [])


def test_the_source_is_the_input_of_the_call() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(3, 4)
    analysis = analyze(capture(model, (x,)))
    last = find_consumers(analysis.axes)[0][-1]
    evaluator = Evaluator(analysis.program)
    env = evaluator.bind([x])
    nodes = list(analysis.program.graph.nodes)
    evaluator.advance(env, nodes[: nodes.index(last.source) + 1])
    torch.testing.assert_close(env[last.source], model[:2](x).detach())
