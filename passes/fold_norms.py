"""The fold-norms pass: norms keep their statistic alone, so that a residual stream may be rotated.

A norm scales and shifts each position on its own, and LayerNorm subtracts the mean: none of it commutes with a change
of basis. Scales and shifts go into the linear maps that read them; the mean is taken off the weights that feed the
stream, once (Ashkboos 2024, SliceGPT, section 3.1). What is left, x / sqrt(|x|^2 / d + eps), commutes with every
rotation, and the sum of squares makes a removed position the same as one that is zero.

A value that something else reads as well (a skip connection behind the norm, a tied head) gets a matrix [d, d] of its
own there, which also frees the stream before it from the one behind.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from fxslim.graph.axes.fibres import holders, transformed
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.notation import Kind
from fxslim.graph.axes.registry import Call
from fxslim.graph.axes.terms import Axis
from fxslim.graph.axes.weights import weight_like
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.consumers import Consumer, consumer_of
from fxslim.passes.fold import weight_value
from fxslim.passes.norms import Affine, Statistic, Stream, find_streams
from fxslim.passes.same import random_inputs, verify_same_function

__all__ = ["FoldNorms"]

aten = torch.ops.aten
# What only moves positions about, on the way from a norm to the maps that read it.
_MOVES = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.transpose.int, aten.permute.default,
    aten.clone.default, aten.contiguous.default, aten.alias.default, aten.select.int, aten.slice.Tensor,
    aten.unsqueeze.default, aten.squeeze.dim, aten.flatten.using_ints,
)  # fmt: skip


@dataclass(frozen=True)
class FoldNorms(Pass):
    """Norms along an axis that is otherwise linear keep nothing but the statistic. The numerics are preserved."""

    name: ClassVar[str] = "fold-norms"

    def apply(self, analysis: Analysis) -> PassResult:
        """The program with plain norms; the same where no stream is found."""
        first = Rewriter(analysis.program, self.name)
        for stream in find_streams(analysis.axes, weight_like(analysis.program.graph)):
            _Affines(analysis, first, stream).fold()
        first.sweep()
        plain = analyze(first.program)
        second = Rewriter(plain.program, self.name)
        for stream in find_streams(plain.axes, weight_like(plain.program.graph)):
            _plain_statistics(plain, second, stream)
        second.sweep()
        return PassResult(second.program, first.edits + second.edits)

    def ensures(self, result: Program, original: Program) -> None:
        """The result is well formed, keeps its interface and computes the same, also on random inputs: zeros hide what
        was done to a mean."""
        verify_same_function(result, original)
        verify_same_function(result, original, random_inputs(original))


class _Affines:
    """Moves the scales and shifts of one stream into what reads them."""

    def __init__(self, analysis: Analysis, rewriter: Rewriter, stream: Stream) -> None:
        self.analysis, self.rewriter, self.stream = analysis, rewriter, stream
        self.roots = weight_like(analysis.program.graph)
        self.copies = rewriter.copies(analysis.axes)

    def fold(self) -> None:
        """All of them, and the producers of the stream that are tied to something else."""
        for node in self._tied_producers():
            copy = self.copies[node]
            users = list(copy.users)
            mapped = self._mapped(copy, torch.ones(int(self.stream.axis.size)), None, node, before=copy.next)
            for user in users:
                user.replace_input_with(copy, mapped)
        for affine in self.stream.affines:
            self._fold(affine)

    def _fold(self, affine: Affine) -> None:
        size = int(self.stream.axis.size)
        scale = torch.ones(size) if affine.scale is None else self._value(affine.scale)
        shift = None if affine.shift is None else self._value(affine.shift)
        node = self.copies[affine.node]
        plain = self._plain(affine, node)
        kept = list[fx.Node]()
        for user in affine.node.users:
            readers = self._readers(affine.node, user)
            if readers is None or not all(self._takes(r, shift) for r in readers):
                kept.append(user)
                continue
            for reader in readers:
                self._absorb(reader, scale, shift)
        if kept:
            mapped = self._mapped(plain, scale, shift, affine.node, before=node)
            for user in kept:
                self.copies[user].replace_input_with(node, mapped)
        self.rewriter.replace(node, plain)

    def _value(self, node: fx.Node) -> Tensor:
        return weight_value(self.analysis.program, node).detach().reshape(-1)

    def _plain(self, affine: Affine, node: fx.Node) -> fx.Node:
        """The value before scale and shift."""
        call = Call(node)
        if node.target is aten.mul.Tensor:
            assert affine.scale is not None
            return next(t for t in call.tensors if t is not self.copies[affine.scale])
        arguments = [call.arg("input"), call.arg("normalized_shape"), None]
        if node.target is aten.layer_norm.default:
            arguments.append(None)
        return self.rewriter.add_call(node.target, (*arguments, call.arg("eps")), like=node)  # type: ignore[arg-type]

    def _readers(self, source: fx.Node, user: fx.Node) -> list[Consumer] | None:
        """The linear maps that a use of the value comes to, or None where it comes to something else as well."""
        if user.target in _MOVES and self._keeps_last(user):
            found = [self._readers(user, u) for u in user.users]
            return None if any(f is None for f in found) else [r for f in found if f is not None for r in f]
        if user not in self.analysis.axes.calls:
            return None
        consumer = consumer_of(self.analysis.axes, user, self.roots)
        if not isinstance(consumer, Consumer) or consumer.source is not source or consumer.blocks != 1:
            return None
        tied = self.analysis.program.info[consumer.weight].aliases
        return None if tied or consumer.features != (self.stream.axis,) or consumer.window != 1 else [consumer]

    def _keeps_last(self, user: fx.Node) -> bool:
        """Whether the axis stays whole: a part of it would need a part of the scale."""
        lies = holders(self.analysis.axes.dims(user), self.stream.axis)
        return len(lies) == 1 and self.analysis.axes.dims(user)[lies[0]] == (self.stream.axis,)

    def _takes(self, consumer: Consumer, shift: Tensor | None) -> bool:
        """Whether a map can take a shift: it has a bias of its own, or room for one. Padding stands before a
        convolution's."""
        linear = consumer.node.target is aten.linear.default
        own = consumer.bias is not None and (linear or consumer.node.target is aten.addmm.default)
        return shift is None or own or (linear and Call(consumer.node).arg("bias") is None)

    def _absorb(self, consumer: Consumer, scale: Tensor, shift: Tensor | None) -> None:
        program = self.rewriter.program
        matrix, bias = consumer.parameters(program)
        if shift is not None:
            moved = (matrix[0].double() @ shift.double()).to(matrix.dtype)
            if bias is None:
                stem = consumer.weight.removesuffix(".weight")
                name = self._free(f"{stem}.bias" if stem != consumer.weight else f"{stem}_bias")
                node = self.copies[consumer.node]
                added = self.rewriter.add_weight(name, moved, node)
                self.rewriter.set_arguments(node, (*node.args[:2], added), {})
            else:
                bias = bias + moved
        for name, value in consumer.stored(program, matrix * scale.to(matrix.dtype), bias).items():
            self.rewriter.set_weight(name, value)

    def _mapped(self, plain: fx.Node, scale: Tensor, shift: Tensor | None, like: fx.Node, before: fx.Node) -> fx.Node:
        """scale · x + shift as a linear map with a matrix [d, d]."""
        dtype = like.meta["val"].dtype
        name = self._free(f"{like.name}_map")
        weight = self.rewriter.add_weight(name, torch.diag(scale.to(dtype)).contiguous(), before)
        bias = () if shift is None else (self.rewriter.add_weight(f"{name}_bias", shift.to(dtype).clone(), before),)
        return self.rewriter.add_call(aten.linear.default, (plain, weight, *bias), like=before)

    def _free(self, name: str) -> str:
        """A name that no weight has, and no module: `W.bias` cannot stand beside a weight `W`."""
        taken = set(self.rewriter.program.info)
        modules = {n[:i] for n in taken for i, c in enumerate(n) if c == "."}
        names = (f"{name}{i or ''}" for i in range(len(taken) + 2))
        return next(n for n in names if n not in taken | modules and not any(n.startswith(f"{t}.") for t in taken))

    def _tied_producers(self) -> list[fx.Node]:
        """Calls that read rows of a table on the stream which something else reads too (an embedding tied to the
        head)."""
        axes, found = self.analysis.axes, []
        for node, call in axes.calls.items():
            if node.target is not aten.embedding.default:
                continue
            tables = [o for o in call.operands if o.op == "get_attr" and len(o.users) > 1]
            on_stream = bool(axes.values[node]) and bool(holders(axes.dims(node), self.stream.axis))
            reads = any(call.rule.kind(x) is Kind.REDUCE for x in call.letters)
            if tables and on_stream and not reads and node not in self.roots and node.users:
                found.append(node)
        return found


def _plain_statistics(analysis: Analysis, rewriter: Rewriter, stream: Stream) -> None:
    """The norms of one stream as x / sqrt(|x|^2 / d + eps), the mean taken off what feeds it."""
    if stream.affines:
        return  # something else than linear maps reads what is scaled
    if any(s.centred for s in stream.statistics):
        mixed = not all(s.centred for s in stream.statistics)
        if mixed or _fed_from_outside(analysis, stream) or _read_uncentred(analysis, stream):
            return
        _centre(analysis, rewriter, stream.axis)
    copies = rewriter.copies(analysis.axes)
    for statistic in stream.statistics:
        _replace(rewriter, copies[statistic.node], copies[statistic.source], statistic, int(stream.axis.size))


def _replace(rewriter: Rewriter, node: fx.Node, x: fx.Node, statistic: Statistic, size: int) -> None:
    length = rewriter.add_call(aten.linalg_vector_norm.default, (x, 2, [-1], True), like=node)
    squared = rewriter.add_call(aten.mul.Tensor, (length, length), like=node)
    mean = rewriter.add_call(aten.div.Tensor, (squared, size), like=node)
    if statistic.node.target is aten.mean.dim:
        rewriter.replace(node, mean)
        return
    epsilon = Call(node).arg("eps")
    if epsilon is None:
        epsilon = torch.finfo(node.meta["val"].dtype).eps
    shifted = rewriter.add_call(aten.add.Tensor, (mean, epsilon), like=node)
    inverse = rewriter.add_call(aten.rsqrt.default, (shifted,), like=node)
    rewriter.replace(node, rewriter.add_call(aten.mul.Tensor, (x, inverse), like=node))


def _fed_from_outside(analysis: Analysis, stream: Stream) -> bool:
    """Whether anything but weights feeds the stream (an input of the user, zeros): its mean cannot be taken off."""
    axes = analysis.axes
    for node in axes.values:
        if not _on(analysis, node, stream.axis) or node.op == "get_attr":
            continue
        call = axes.calls.get(node)
        if call is None and node.target is not operator.getitem:
            return True
        if call is not None and not any(o in axes.values and _on(analysis, o, stream.axis) for o in call.operands):
            return True
    return False


def _read_uncentred(analysis: Analysis, stream: Stream) -> bool:
    """Whether something reads the stream that did not go through a norm: it would miss the mean."""
    axes, norms = analysis.axes, {s.node for s in stream.statistics}
    constants = weight_like(analysis.program.graph)
    raw: set[fx.Node] = set()
    for node, call in axes.calls.items():
        held = [o for o in call.operands if o in axes.values and _on(analysis, o, stream.axis)]
        comes_raw = any(o in raw for o in held)
        if comes_raw and node not in norms and _ends(analysis, node, stream.axis):
            return True
        if _on(analysis, node, stream.axis) and node not in norms and node not in constants:
            made_here = not any(o not in constants for o in held)
            if comes_raw or made_here:
                raw.add(node)
    (output,) = analysis.program.graph.find_nodes(op="output")
    return any(node in raw for node in output.all_input_nodes)


def _on(analysis: Analysis, node: fx.Node, axis: Axis) -> bool:
    return any(holders(tuple(map(analysis.axes.terms.resolve, dims)), axis) for dims in analysis.axes.values[node])


def _ends(analysis: Analysis, node: fx.Node, axis: Axis) -> bool:
    call = analysis.axes.calls[node]
    return any(
        call.rule.kind(x) is Kind.REDUCE and axis in analysis.axes.terms.atoms(e) for x, e in call.letters.items()
    )


def _centre(analysis: Analysis, rewriter: Rewriter, axis: Axis) -> None:
    """Takes the mean along the axis off everything that feeds it."""
    size = int(axis.size)
    projection = torch.eye(size, dtype=torch.float64) - 1.0 / size
    nodes = analysis.program.weight_nodes()
    for name, dims in _feeding(analysis, axis).items():
        old = rewriter.program.weights[name]
        matrices = dict.fromkeys(dims, projection)
        rewriter.set_weight(name, transformed(old, analysis.axes.dims(nodes[name]), axis, (), matrices).contiguous())


def _feeding(analysis: Analysis, axis: Axis) -> dict[str, Sequence[int]]:
    """The weights' dimensions that make the stream or are added to it."""
    found: dict[str, list[int]] = {}
    for group in analysis.groups:
        if group.axis is axis:
            for site in group.sites:
                if site.role != "consumes":
                    found.setdefault(site.weight, []).append(site.dim)
    return dict(found)
