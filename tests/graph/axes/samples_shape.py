"""Sample calls of view-like operators, indexing and factories."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fxslim.graph.axes.oracle import Sample
from tests.graph.axes.samples_pointwise import integer, real

aten = torch.ops.aten


def samples() -> Iterator[Sample]:
    """All samples of this file."""
    for family in (_views, _orders, _repeats, _joins, _pieces, _slices, _indexing, _factories):
        yield from family()


def _views() -> Iterator[Sample]:
    yield Sample(aten.view.default, (real(2, 12), [2, 3, 4]), note="")
    for before, after, note in (
        ((2, 3, 4), (2, 12), "merge"), ((2, 12, 5), (2, -1, 4, 5), "inferred"), ((6, 4), (2, 12), "split and merge"),
        ((4, 6), (6, 4), "no refinement"), ((2, 4, 6), (2, 6, 4), "partly none"), ((2, 1, 6), (2, 6, 1), "size 1"),
        ((24,), (2, 3, 4), "split"), ((2, 3, 4), (24,), "flat"), ((4, 9), (2, 6, 3), "2·2, 3·3 to 2, 2·3, 3"),
        ((2, 3), (2, 3), "same"),
    ):  # fmt: skip
        yield Sample(aten.view.default, (real(*before), list(after)), note=note)
        yield Sample(aten.reshape.default, (real(*before), list(after)), note=note)
    yield Sample(aten.reshape.default, (real(2, 12), [2, 3, 4]))
    yield Sample(aten._unsafe_view.default, (real(6, 5), [2, 3, 5]))
    yield Sample(aten.flatten.using_ints, (real(2, 3, 4, 5), 1, -1))
    yield Sample(aten.flatten.using_ints, (real(2, 3, 4),), note="all")
    yield Sample(aten.unflatten.int, (real(2, 12, 5), 1, [3, 4]))
    yield Sample(aten.unflatten.int, (real(2, 12), -1, [3, -1]), note="inferred")
    yield Sample(aten.unsqueeze.default, (real(3, 5), 1))
    yield Sample(aten.unsqueeze.default, (real(3, 5), -1), note="last")
    # squeeze without dimensions would remove one that is left with a single position, too
    yield Sample(aten.squeeze.default, (real(3, 1, 5, 1),), floor=2)
    yield Sample(aten.squeeze.dim, (real(3, 1, 5), 1))
    yield Sample(aten.squeeze.dim, (real(4, 3, 5), 1), note="not of size 1", floor=2)
    yield Sample(aten.squeeze.dims, (real(3, 1, 5, 1), [1, -1]))


def _orders() -> Iterator[Sample]:
    yield Sample(aten.permute.default, (real(2, 3, 5), [2, 0, 1]))
    yield Sample(aten.permute.default, (real(2, 3, 5), [0, -1, -2]), note="negative")
    yield Sample(aten.transpose.int, (real(2, 3, 5), 1, 2))
    yield Sample(aten.transpose.int, (real(2, 3, 5), -1, 0), note="negative")
    yield Sample(aten.t.default, (real(3, 5),))
    yield Sample(aten.t.default, (real(3),), note="vector")
    yield Sample(aten.movedim.int, (real(2, 3, 5), 0, 2))
    yield Sample(aten.movedim.int, (real(2, 3, 5), -1, 0), note="negative")


def _repeats() -> Iterator[Sample]:
    yield Sample(aten.expand.default, (real(3, 1, 5), [3, 4, 5]))
    yield Sample(aten.expand.default, (real(1, 5), [2, 3, -1]), note="new dim")
    yield Sample(aten.expand.default, (real(2, 3, 5), [2, 3, 5]), note="same")
    yield Sample(aten.expand_as.default, (real(3, 1), real(2, 3, 5)))
    yield Sample(aten.repeat.default, (real(3, 5), [2, 1]))
    yield Sample(aten.repeat.default, (real(3, 5), [4, 1, 2]), note="new dim")
    yield Sample(aten.repeat_interleave.self_int, (real(3, 5), 2, 0))
    yield Sample(aten.repeat_interleave.self_int, (real(3, 5), 4, -1), note="last")
    yield Sample(aten.repeat_interleave.self_int, (real(3, 5), 2, 1), {"output_size": 10}, note="output size")
    yield Sample(aten.repeat_interleave.self_int, (real(3, 5), 2), note="flat")


def _joins() -> Iterator[Sample]:
    yield Sample(aten.cat.default, ([real(3, 2), real(3, 4)], 1))
    yield Sample(aten.cat.default, ([real(2, 5), real(3, 5), real(4, 5)],), note="three")
    yield Sample(aten.cat.default, ([real(3, 5)], -1), note="one")
    yield Sample(aten.cat.default, ([real(2, 3, 1), real(2, 3, 4)], -1), note="size 1")
    yield Sample(aten.stack.default, ([real(3, 5), real(3, 5)],))
    yield Sample(aten.stack.default, ([real(3, 5), real(3, 5), real(3, 5)], -1), note="last")
    yield Sample(aten.stack.default, ([real(3, 5)], 1), note="one")


def _pieces() -> Iterator[Sample]:
    yield Sample(aten.split_with_sizes.default, (real(3, 9), [2, 3, 4], 1))
    yield Sample(aten.split_with_sizes.default, (real(8, 3), [4, 4]), note="equal")
    yield Sample(aten.split_with_sizes.default, (real(3, 5), [5], -1), note="one")
    yield Sample(aten.split.Tensor, (real(3, 8), 4, -1))
    yield Sample(aten.split.Tensor, (real(3, 7), 3, 1), note="rest")
    yield Sample(aten.chunk.default, (real(6, 4), 2))
    yield Sample(aten.chunk.default, (real(3, 9), 3, -1), note="three")
    yield Sample(aten.unbind.int, (real(3, 4, 5),))
    yield Sample(aten.unbind.int, (real(4, 2, 5), -2), note="dim 1")


def _slices() -> Iterator[Sample]:
    for dim, start, end, step, note in (
        (1, 2, 5, 1, ""), (1, 0, 3, 1, "head"), (-1, 3, 9223372036854775807, 1, "open tail"),
        (1, -3, None, 1, "negative start"),
        (1, 0, -2, 1, "negative end"), (1, None, None, 1, "whole"), (1, 0, None, 2, "even"), (1, 1, None, 2, "odd"),
        (1, -7, None, 2, "odd from the end"), (1, 1, -1, 3, "step and end"), (1, 0, None, 3, "step does not divide"),
        (1, 2, None, 2, "start past the step"), (1, -100, 100, 1, "beyond"), (1, -5, -1, 1, "both negative"),
        (0, 1, 2, 1, "one"),
    ):  # fmt: skip
        yield Sample(aten.slice.Tensor, (real(3, 8), dim, start, end, step), note=note)
    yield Sample(aten.select.int, (real(3, 5, 4), 1, 2))
    yield Sample(aten.select.int, (real(3, 5), 0, -1), note="last")
    yield Sample(aten.slice_scatter.default, (real(3, 8), real(3, 4), 1, 2, 6))
    yield Sample(aten.select_scatter.default, (real(3, 5), real(3), 1, 2))
    yield Sample(aten.constant_pad_nd.default, (real(2, 3, 5), [1, 2]))
    yield Sample(aten.constant_pad_nd.default, (real(2, 3, 5), [0, 0, 2, 1], 1.5), note="dim 1")
    yield Sample(aten.constant_pad_nd.default, (real(3, 5), [0, -2]), note="crop")
    yield Sample(aten.constant_pad_nd.default, (real(3, 5), [1, -1]), note="shift")
    yield Sample(aten.diagonal.default, (real(2, 3, 5), 0, 1, 2))
    yield Sample(aten.diagonal.default, (real(4, 3, 5), 1, 0, -1), note="offset")


def _indexing() -> Iterator[Sample]:
    rows = torch.tensor([0, 3, 1, 3])
    yield Sample(aten.index.Tensor, (real(4, 5), [rows]))
    yield Sample(aten.index.Tensor, (real(2, 4, 5), [None, rows]), note="dim 1")
    yield Sample(aten.index.Tensor, (real(4, 5, 3), [rows, torch.tensor([0, 4, 2, 1])]), note="two")
    yield Sample(aten.index.Tensor, (real(4, 2, 5), [rows, None, torch.tensor([0, 4, 2, 1])]), note="apart")
    yield Sample(aten.index.Tensor, (real(2, 4, 5), [None, rows[:3, None], torch.tensor([[0, 4]])]), note="broadcast")
    yield Sample(aten.index.Tensor, (real(4, 5), [torch.tensor([[0, 3, 1], [2, 2, 0]])]), note="matrix")
    yield Sample(aten.index.Tensor, (real(4, 5), [torch.tensor(2)]), note="number")
    yield Sample(aten.index_select.default, (real(3, 5), 1, torch.tensor([4, 0, 2])))
    yield Sample(aten.index_select.default, (real(3, 5), 0, torch.tensor([1])), note="one")
    yield Sample(aten.gather.default, (real(3, 5), 1, torch.tensor([[0, 4], [1, 2], [3, 3]])))
    yield Sample(aten.gather.default, (real(3, 5), 1, torch.tensor([[0, 4, 1], [1, 2, 0]])), note="fewer rows")
    yield Sample(aten.gather.default, (real(3, 5), 0, torch.randint(0, 3, (3, 5))), note="same shape")
    yield Sample(aten.one_hot.default, (integer(3, 4), 8))


def _factories() -> Iterator[Sample]:
    yield Sample(aten.full.default, ([3, 5], 2.0))
    yield Sample(aten.zeros.default, ([3, 5],))
    yield Sample(aten.ones.default, ([3, 5],))
    yield Sample(aten.empty.memory_format, ([3, 5],), undefined=True)
    yield Sample(aten.new_zeros.default, (real(2), [3, 5]))
    yield Sample(aten.new_ones.default, (real(2, 4), [3, 5]))
    yield Sample(aten.new_full.default, (real(2), [3, 5], 1.5))
    yield Sample(aten.new_empty.default, (real(2), [3, 5]), undefined=True)
    yield Sample(aten.scalar_tensor.default, (2.0,))
    yield Sample(aten.arange.default, (5,))
    yield Sample(aten.arange.start, (1, 6))
    yield Sample(aten.arange.start_step, (1, 9, 2))
    yield Sample(aten.linspace.default, (0.0, 1.0, 5))
    yield Sample(aten.eye.default, (4,))
    yield Sample(aten.eye.m, (3, 5))
