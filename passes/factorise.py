"""The factorise pass: a weight becomes a pair of weights with an axis of their own between them, at full rank.

y = W x becomes y = W_out (W_in x) where W_out has orthonormal columns, the identity if it can be: what W_in returns is
as long as what W returns, and an error in it weighs as much. So what comes before the pair is judged by W_in alone (its
second moment of readers, W_in^T W_in, is W^T W), in whichever form a program is looked at. The inner axis
is produced by one weight, consumed by the other, and touches nothing else: any basis will do for it. Truncation to a
low rank is a change of that basis and a cut of the axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.registry import Call
from fxslim.graph.axes.weights import weight_like
from fxslim.graph.errors import InputError, where
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.consumers import CALLS, Consumer, consumer_of
from fxslim.passes.same import verify_same_function

__all__ = ["Factorise", "factorisable", "full_rank_factors"]

aten = torch.ops.aten
_SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Factorise(Pass):
    """Replaces weights [n, k] by pairs `<weight>_in` [r, k] and `<weight>_out` [n, r] with r = min(n, k).

    A matrix that is stored [k, n] becomes [k, r] and [r, n]; a convolution [n, c, *K] with k = c·prod(K) becomes one
    [r, c, *K] with the same stride, padding and dilation, and one of 1x1 [n, r, 1, ...]. The bias stays with the
    second. The numerics are preserved.
    """

    name: ClassVar[str] = "factorise"
    weights: tuple[str, ...]

    def requires(self, analysis: Analysis) -> None:
        """Every weight exists, is named once, and can be factorised.

        Raises:
            InputError: it does not, is not, or cannot; where and why.
        """
        candidates = _Candidates(analysis)
        if not self.weights:
            raise InputError("factorise needs the names of weights", remedy=candidates.listed())
        for name in self.weights:
            if self.weights.count(name) > 1:
                raise InputError(f"factorise: the weight {name!r} is named twice")
            if name not in candidates.nodes:
                raise InputError(f"factorise: there is no weight {name!r}", remedy=candidates.listed())
            found = candidates.find(name)
            if not isinstance(found, Consumer):
                reader = next(iter(candidates.nodes[name].users))
                what = f"the weight {name!r} cannot be factorised: {found}"
                raise InputError(what, at=where(reader), remedy=candidates.listed())

    def apply(self, analysis: Analysis) -> PassResult:
        """The program with a pair in place of each weight."""
        rewriter, candidates = Rewriter(analysis.program, self.name), _Candidates(analysis)
        for name in self.weights:
            consumer = candidates.find(name)
            assert isinstance(consumer, Consumer)
            _replace(rewriter, rewriter.copies(analysis.axes)[consumer.node], consumer)
        rewriter.sweep()
        return PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed, keeps its interface and computes the same."""
        verify_same_function(result, original)


class _Candidates:
    """The weights of a program that can become pairs."""

    def __init__(self, analysis: Analysis) -> None:
        self.axes, self.info = analysis.axes, analysis.program.info
        self.nodes = analysis.program.weight_nodes()
        self.roots = weight_like(analysis.program.graph)

    def find(self, name: str) -> Consumer | str:
        """The call that the weight belongs to; in words why the weight cannot become a pair."""
        node, aliases = self.nodes[name], self.info[name].aliases
        if aliases:
            return f"it is tied, also called {', '.join(aliases)}"
        if len(node.users) != 1:
            return f"it is used in {len(node.users)} places: {', '.join(u.name for u in node.users)}"
        (reader,) = node.users
        if reader.target not in CALLS:
            return f"{reader.target} reads it, which is no linear call, mm, addmm, matmul or convolution"
        found = consumer_of(self.axes, reader, self.roots)
        if isinstance(found, str) and found:
            return found
        if not isinstance(found, Consumer) or found.weight != name or found.source is node:
            return "it is not the right operand"
        if found.blocks > 1:
            return f"the convolution has {found.blocks} groups"
        if min(_sides(found, self.info[name].shape)) < 2:
            return "its rank is 1, there is nothing to cut"
        return found

    def names(self) -> list[str]:
        """All that can."""
        return [name for name in self.nodes if isinstance(self.find(name), Consumer)]

    def listed(self) -> str:
        """The names of all that can, as a remedy."""
        names = self.names()
        more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
        return f"these can be: {', '.join(names[:_SHOWN])}{more}" if names else "no weight of this program can be"


def factorisable(analysis: Analysis) -> list[str]:
    """The names of the weights that can become pairs."""
    return _Candidates(analysis).names()


def _sides(consumer: Consumer, shape: tuple[int, ...]) -> tuple[int, int]:
    """n and k: outputs, and inputs that are summed over (those of a whole window)."""
    outputs = shape[-1] if consumer.transposed else shape[0]
    return outputs, torch.Size(shape).numel() // max(outputs, 1)


def _replace(rewriter: Rewriter, node: fx.Node, consumer: Consumer) -> None:
    """Two calls with the pair in place of the call `node` (of the rewriter's program)."""
    name, info = consumer.weight, rewriter.program.info[consumer.weight]
    factors = _factors(rewriter.program.weights[name], consumer)
    first, second = (
        rewriter.add_weight(free, tensor, node, trainable=info.trainable, persistent=info.persistent)
        for free, tensor in zip(_free_names(rewriter.program, name), factors, strict=True)
    )
    rewriter.replace(node, _calls(rewriter, node, first, second))


def _factors(weight: Tensor, consumer: Consumer) -> tuple[Tensor, Tensor]:
    """Both factors as the calls take them, in the order in which they are applied."""
    outputs, inputs = _sides(consumer, tuple(weight.shape))
    matrix = consumer.matrix(weight.detach())[0]
    first, second = (f.to(weight.dtype) for f in full_rank_factors(matrix.double()))
    if consumer.transposed:
        return first.t().contiguous(), second.t().contiguous()
    rank, point = min(outputs, inputs), [1] * (weight.dim() - 2)
    return first.reshape(rank, *weight.shape[1:]), second.reshape(outputs, rank, *point)


def full_rank_factors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """W_in: [r, k] and W_out: [n, r] with r = min(n, k) and orthonormal columns of W_out, whose product is a matrix
    [n, k]: the matrix and an identity, or its polar decomposition (Higham 1986) where it has more rows than columns."""
    outputs, inputs = matrix.shape
    if outputs <= inputs:
        return matrix, torch.eye(outputs, dtype=matrix.dtype, device=matrix.device)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return right.mT @ (values.unsqueeze(1) * right), left @ right


def _free_names(program: Program, name: str) -> tuple[str, str]:
    """`<weight>_in` and `<weight>_out`, both numbered where one is taken."""
    pairs = ((f"{name}_in{i or ''}", f"{name}_out{i or ''}") for i in range(len(program.info) + 1))
    return next(pair for pair in pairs if not set(pair) & set(program.info))


def _calls(rewriter: Rewriter, node: fx.Node, first: fx.Node, second: fx.Node) -> fx.Node:
    """The second of two calls in place of `node`: the first without its bias, the second with it."""
    call, target = Call(node), node.target
    if target is aten.addmm.default:
        bias, source = call.tensors[:2]
        inner = rewriter.add_call(aten.mm.default, (source, first), like=node)
        return rewriter.add_call(target, (bias, inner, second), like=node)
    assert isinstance(target, torch._ops.OpOverload)
    if target in (aten.mm.default, aten.matmul.default):
        inner = rewriter.add_call(target, (call.tensors[0], first), like=node)
        return rewriter.add_call(target, (inner, second), like=node)
    windows = () if target is aten.linear.default else (None, *(call.arg(n) for n in ("stride", "padding", "dilation")))
    inner = rewriter.add_call(target, (call.arg("input"), first, *windows), like=node)
    bias = call.arg("bias")
    shift = () if bias is None else (bias,)
    return rewriter.add_call(target.overloadpacket.default, (inner, second, *shift), like=node)
