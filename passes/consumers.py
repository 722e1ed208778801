"""Consumers: calls that sum over an axis with a weight, seen as y = x W^T: [tokens, k] against [n, k], in g separate
blocks."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxslim.graph.axes.analysis import Axes
from fxslim.graph.axes.registry import Call
from fxslim.graph.axes.select import Selection
from fxslim.graph.axes.terms import Expr, expr_size
from fxslim.graph.axes.weights import weight_like
from fxslim.graph.liveness import value_bytes
from fxslim.graph.program import Program, Weight
from fxslim.passes.batch_norms import subtracted_mean

__all__ = ["CALLS", "CONVOLUTIONS", "Consumer", "at_several_depths", "consumer_of", "find_consumers"]

aten = torch.ops.aten
CONVOLUTIONS = {
    aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3,
    aten.conv1d.padding: 1, aten.conv2d.padding: 2, aten.conv3d.padding: 3,
}  # fmt: skip
_TRANSPOSED = (aten.addmm.default, aten.mm.default, aten.matmul.default)  # the weight is stored [k, n]
CALLS = frozenset({*CONVOLUTIONS, *_TRANSPOSED, aten.linear.default})
"""Operators whose calls can be consumers."""


@dataclass(frozen=True)
class Consumer:
    """One such call. `features` is the expression of the input dimension that it sums over.

    A call without a bias whose result a batch norm alone reads has one nevertheless: minus the running mean, which the
    norm subtracts.
    """

    node: fx.Node
    weight: str
    bias: str | None
    source: fx.Node  # its input activation
    features: Expr
    blocks: int  # groups of a convolution, else 1
    transposed: bool
    mean: str | None = None  # the running mean that stands for a bias

    @property
    def shifted(self) -> bool:
        """Whether it has a constant besides its weight."""
        return self.bias is not None or self.mean is not None

    def parameters(self, program: Program) -> tuple[Tensor, Tensor | None]:
        """Its weight as [g, n, k] and its bias as [g, n], where there is one."""
        matrix, name = self.matrix(program.weights[self.weight].detach()), self.bias or self.mean
        if name is None:
            return matrix, None
        constant = program.weights[name].detach().reshape(len(matrix), -1)
        return matrix, constant if name == self.bias else -constant

    def stored(self, program: Program, matrix: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        """A matrix [g, n, k], and a bias [g, n] where there is one, as the program holds them: by name."""
        found, name = {self.weight: self.from_matrix(matrix, program.info[self.weight])}, self.bias or self.mean
        if name is not None and bias is not None:
            old = program.info[name]
            found[name] = (bias if name == self.bias else -bias).reshape(old.shape).to(old.dtype)
        return found

    def shape(self, program: Program) -> tuple[int, int, int]:
        """g, n and k of its weight."""
        shape = program.info[self.weight].shape
        if self.transposed:
            return 1, shape[1], shape[0]
        return self.blocks, shape[0] // self.blocks, math.prod(shape[1:])

    def rows(self, program: Program, symbols: Mapping[sympy.Symbol, int]) -> int:
        """How many rows of its input it reads: what it returns, over the outputs of one row. Where that depends on the
        values of data, 1 stands for it."""
        blocks, outputs, _ = self.shape(program)
        elements = value_bytes(self.node, symbols) // int(self.node.meta["val"].itemsize)
        return elements // max(1, blocks * outputs)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [g, n, k]."""
        if self.transposed:
            return weight.t().unsqueeze(0)
        return weight.reshape(self.blocks, weight.shape[0] // self.blocks, -1)

    def from_matrix(self, matrix: Tensor, like: Tensor | Weight) -> Tensor:
        """A matrix [g, n, k] in the layout of the weight."""
        if self.transposed:
            return matrix[0].t().contiguous().to(like.dtype)
        return matrix.reshape(like.shape).to(like.dtype)

    def columns(self, x: Tensor) -> Tensor:
        """The inputs as [g, tokens, k]: unfolded windows for a convolution."""
        rank = CONVOLUTIONS.get(self.node.target)  # type: ignore[call-overload]
        if rank is None:
            return x.reshape(1, -1, x.shape[-1])
        return _unfold(x, Call(self.node), rank, self.blocks)

    def kept_columns(self, selection: Selection) -> Tensor:
        """Which columns remain: [g, k] bool."""
        mask = selection.mask((self.features,))
        if mask is None:
            mask = torch.ones(int(expr_size(self.features)), dtype=torch.bool)
        per_block = mask.reshape(self.blocks, -1)
        return per_block.repeat_interleave(self.window, dim=1)

    @property
    def window(self) -> int:
        """Columns that belong to one position of the input dimension: the size of a convolution's kernel, else 1."""
        weight = self.node.args[1]
        if self.node.target not in CONVOLUTIONS:
            return 1
        assert isinstance(weight, fx.Node)
        return int(torch.Size(weight.meta["val"].shape[2:]).numel())


def _unfold(x: Tensor, call: Call, rank: int, blocks: int) -> Tensor:
    """Windows of a convolution's input: [g, tokens, c·kernel]."""
    kernel = [int(s) for s in call.arg("weight").meta["val"].shape[2:]]
    stride, dilation = _each(call.arg("stride"), rank), _each(call.arg("dilation"), rank)
    if x.dim() == rank + 1:
        x = x.unsqueeze(0)
    x = F.pad(x, _padding(call.arg("padding"), kernel, dilation, rank))
    for dim in range(rank):
        reach = dilation[dim] * (kernel[dim] - 1) + 1
        x = x.unfold(2 + dim, reach, stride[dim])[..., :: dilation[dim]]
    # [b, c, *positions, *kernel] -> [g, b·positions, c/g·kernel]
    batch, channels = x.shape[:2]
    x = x.reshape(batch, blocks, channels // blocks, *x.shape[2:])
    order = [1, 0, *range(3, 3 + rank), 2, *range(3 + rank, 3 + 2 * rank)]
    x = x.permute(order)
    return x.reshape(blocks, -1, channels // blocks * torch.Size(kernel).numel())


def _each(value: Any, rank: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    return values * rank if len(values) == 1 else values


def _padding(padding: Any, kernel: list[int], dilation: list[int], rank: int) -> list[int]:
    """The padding in the order of `torch.nn.functional.pad`: last dimension first, both sides."""
    if padding == "valid":
        return [0] * (2 * rank)
    sides: list[int] = []
    for dim in reversed(range(rank)):
        if padding == "same":
            total = dilation[dim] * (kernel[dim] - 1)
            sides += [total // 2, total - total // 2]
        else:
            sides += [_each(padding, rank)[dim]] * 2
    return sides


def at_several_depths(program: Program, consumers: Sequence[Consumer]) -> bool:
    """Whether the input of one of them does not exist yet where the first one is met: a residual stream has such."""
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    return any(order[c.source] >= order[consumers[0].node] for c in consumers)


def find_consumers(axes: Axes, selection: Selection | None = None) -> tuple[list[Consumer], list[str]]:
    """Consumers in the order of the graph, and in words the calls that cannot be treated as such.

    With a selection, those whose input loses positions.
    """
    weights = weight_like(axes.program.graph)
    found: list[Consumer] = []
    refused: list[str] = []
    for node, call in axes.calls.items():
        if not call.rule.costs or not any(call.rule.kind(x).value == "reduce" for x in call.letters):
            continue
        consumer = consumer_of(axes, node, weights)
        if selection is not None and not _loses(axes, node, selection):
            continue
        if isinstance(consumer, Consumer):
            found.append(consumer)
        elif consumer:
            refused.append(consumer)
    return found, refused


def _loses(axes: Axes, node: fx.Node, selection: Selection) -> bool:
    call = axes.calls[node]
    return any(
        selection.touches((axes.terms.resolve(e),))
        for x, e in call.letters.items()
        if call.rule.kind(x).value == "reduce"
    )


def consumer_of(axes: Axes, node: fx.Node, weights: Container[fx.Node]) -> Consumer | str:
    """The consumer that a call is; in words why it is none; nothing where two activations meet.

    `weights` are the nodes that depend on weights alone (`weight_like`).
    """
    call = Call(node)
    names = list(call.arguments)
    if node.target in CONVOLUTIONS or node.target is aten.linear.default:
        source, weight, bias = call.arg("input"), call.arg("weight"), call.arg("bias")
    elif node.target is aten.addmm.default:
        bias, source, weight = (call.arg(n) for n in names[:3])
        if call.arg("beta") != 1 or call.arg("alpha") != 1:
            return f"{node.name}: addmm with factors"
        if bias.meta["val"].shape != weight.meta["val"].shape[1:]:
            return f"{node.name}: addmm with a broadcast first operand"
    elif node.target in _TRANSPOSED:
        source, weight, bias = call.tensors[0], call.tensors[1], None
        if source in weights:
            return f"{node.name}: its weight is the left operand"
    else:
        return f"{node.name} ({node.target})" if any(t.op == "get_attr" for t in call.tensors) else ""
    if weight.op != "get_attr":
        return f"{node.name}: its weight is computed" if source.op != "get_attr" and weight in weights else ""
    if len(weight.users) > 1:
        return f"{node.name}: the weight {weight.target} is used in {len(weight.users)} places"
    if bias is not None and (bias.op != "get_attr" or len(bias.users) > 1):
        bias = None
    dim = -1 if node.target not in CONVOLUTIONS else source.meta["val"].dim() - CONVOLUTIONS[node.target] - 1
    channel = dim % source.meta["val"].dim()
    mean = subtracted_mean(node, channel) if bias is None else None
    blocks = int(call.arg("groups")) if node.target in CONVOLUTIONS else 1
    features = axes.dims(source)[dim]
    name = None if bias is None else str(bias.target)
    if weight.meta["val"].dim() != 2 and node.target not in CONVOLUTIONS:
        return f"{node.name}: a weight of {weight.meta['val'].dim()} dimensions"
    return Consumer(node, str(weight.target), name, source, features, blocks, node.target in _TRANSPOSED, mean)
