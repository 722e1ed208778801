"""Sample calls of operators that read, write and search by index, of grids, windows and sampling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fxslim.graph.axes.oracle import Sample
from tests.graph.axes.samples_pointwise import boolean, integer, op, positive, real

aten = torch.ops.aten


def samples() -> Iterator[Sample]:
    """All samples of this file."""
    for family in (_masks, _puts, _index_writes, _scatters, _searches, _counts, _grids, _diagonals, _windows, _padding,
                   _sampling, _pools, _resampling, _norms):  # fmt: skip
        yield from family()


ROWS = torch.tensor([0, 3, 1])
MASK = torch.tensor([True, False, True, True])


def _masks() -> Iterator[Sample]:
    yield Sample(aten.index.Tensor, (real(4, 5), [MASK]), note="mask")
    yield Sample(aten.index.Tensor, (real(2, 4, 3, 5), [None, boolean(4, 3)]), note="mask of two dims")
    yield Sample(aten.index_select.default, (real(), 0, torch.tensor([0])), note="number")
    yield Sample(aten.index_select.default, (real(3, 5), 1, torch.tensor(2)), note="a number's")
    yield Sample(aten.gather.default, (real(), 0, torch.tensor(0)), note="number")
    yield Sample(aten.topk.default, (real(), 1), note="number")
    yield Sample(aten.flip.default, (real(3, 5), []), note="nothing")
    yield Sample(aten.addmm.default, (real(), real(3, 5), real(5, 4)), note="a number's bias")
    yield Sample(aten.prelu.default, (real(2, 3), real()), note="a number's slope")
    yield Sample(aten.masked_select.default, (real(3, 5), boolean(3, 5)))
    yield Sample(aten.masked_scatter.default, (real(3, 5), torch.arange(15).reshape(3, 5) % 3 > 0, real(15)))
    yield Sample(
        aten.masked_scatter.default,
        (real(2, 3, 5), torch.tensor([[True], [False], [True]]), real(20)),
        note="broadcast",
    )


def _puts() -> Iterator[Sample]:
    put = aten.index_put.default
    columns = torch.tensor([2, 4, 0])
    yield Sample(put, (real(4, 5), [ROWS], real(3, 5)))
    yield Sample(put, (real(2, 4, 5), [None, ROWS], real(3, 1), True), note="accumulate")
    yield Sample(put, (real(4, 5, 2), [ROWS, columns], real(3, 2)), note="two")
    yield Sample(put, (real(4, 2, 5), [ROWS, None, columns], real(3, 2)), note="apart")
    yield Sample(put, (real(4, 5, 2), [ROWS[:, None], columns[None, :2]], real(2)), note="broadcast")
    yield Sample(put, (real(4, 5), [torch.tensor(2)], real(5)), note="number")
    yield Sample(put, (real(4, 5), [MASK], real(3, 5)), note="mask")
    yield Sample(put, (real(4, 5, 3), [boolean(4, 5)], real()), note="mask of two dims, one number")
    yield Sample(put, (real(2, 4, 5), [None, MASK], real(1)), note="inner mask, one number")


def _index_writes() -> Iterator[Sample]:
    for name in ("index_add", "index_copy"):
        yield Sample(op(name), (real(3, 5), 1, torch.tensor([4, 0]), real(3, 2)))
        yield Sample(op(name), (real(4, 5), 0, ROWS, real(3, 5)), note="dim 0")
    yield Sample(aten.index_reduce.default, (positive(4, 5), 0, ROWS, positive(3, 5) + 2, "prod"))
    yield Sample(aten.index_fill.int_Scalar, (real(3, 5), 1, torch.tensor([4, 0]), 2.0))
    yield Sample(aten.index_fill.int_Tensor, (real(3, 5), -1, torch.tensor([4, 0]), real()))


def _scatters() -> Iterator[Sample]:
    index, small = torch.tensor([[4, 0], [1, 2], [3, 0]]), torch.tensor([[4, 0], [1, 2]])
    plain = real(3, 5)
    for name, extra in (("scatter.src", ()), ("scatter.reduce", ("add",)), ("scatter_add.default", ()),
                        ("scatter_reduce.two", ("sum",))):  # fmt: skip
        kwargs: dict[str, Any] = {"reduce": "add"} if name == "scatter.reduce" else {}
        more = () if kwargs else extra
        yield Sample(op(name), (plain, 1, index, real(3, 2), *more), kwargs)
        yield Sample(op(name), (plain, -1, small, real(3, 4), *more), kwargs, note="fewer rows")
    yield Sample(aten.scatter.value, (plain, 1, index, 2.0))
    yield Sample(aten.scatter.value_reduce, (plain, 1, index, 2.0), {"reduce": "multiply"})
    yield Sample(aten.scatter.value, (real(4, 5), 0, torch.tensor([[3, 1, 0, 2, 1]]), 2.0), note="dim 0")


def _searches() -> Iterator[Sample]:
    edges = torch.tensor([-1.0, -0.2, 0.3, 1.0]).double()
    rows = real(3, 4).sort(-1).values
    yield Sample(aten.bucketize.Tensor, (real(3, 5), edges))
    yield Sample(aten.searchsorted.Tensor, (edges, real(3, 5)))
    yield Sample(aten.searchsorted.Tensor, (rows, real(3, 5)), {"right": True}, note="rows")
    order = torch.tensor([3, 1, 0, 2])
    yield Sample(aten.searchsorted.Tensor, (edges[order.argsort()], real(3, 5)), {"sorter": order}, note="sorter")
    many = rows[:, order.argsort()], real(3, 5)
    yield Sample(aten.searchsorted.Tensor, many, {"sorter": order.expand(3, 4).clone()}, note="sorters")
    yield Sample(aten.isin.Tensor_Tensor, (torch.arange(15).reshape(3, 5) % 7, torch.tensor([[2, 4, 9], [1, 5, 3]])))
    yield Sample(aten.take.default, (real(3, 5), torch.tensor([[14, 0, 3, 3], [2, 7, 9, 1]])))
    yield Sample(aten.put.default, (real(3, 5), torch.tensor([14, 0, 3]), real(3)))
    yield Sample(aten.take_along_dim.default, (real(3, 5), torch.randint(0, 5, (3, 4)), 1))
    yield Sample(aten.take_along_dim.default, (real(2, 1, 5), torch.randint(0, 5, (2, 4, 3)), -1), note="broadcast")
    yield Sample(aten.take_along_dim.default, (real(3, 5), torch.tensor([14, 0, 3])), note="flat")
    yield Sample(aten.nonzero.default, (boolean(3, 5),))
    yield Sample(aten.argwhere.default, (boolean(3, 5),))
    yield Sample(aten.nonzero_numpy.default, (boolean(3, 5),))
    yield Sample(aten.where.default, (boolean(3, 5),))
    yield Sample(aten.nonzero_static.default, (boolean(3, 5),), {"size": 4})
    yield Sample(aten._unique2.default, (integer(3, 5), True, True, True))
    yield Sample(aten.unique_consecutive.default, (integer(3, 5), True, True))
    yield Sample(aten.unique_dim.default, (integer(6, 2), 0, True, True, True))


def _counts() -> Iterator[Sample]:
    counts = torch.tensor([2, 0, 3, 1, 2])
    op_ = aten.repeat_interleave.self_Tensor
    yield Sample(op_, (real(3, 5), counts, 1))
    yield Sample(op_, (real(3, 5), torch.tensor([2]), -1), note="one count")
    yield Sample(op_, (real(5), counts), note="flat")
    yield Sample(aten.repeat_interleave.Tensor, (counts,))


def _grids() -> Iterator[Sample]:
    yield Sample(aten.meshgrid.indexing, ([real(3), real(5)],), {"indexing": "xy"})
    yield Sample(aten.meshgrid.indexing, ([real(3), real(5), real(4)],), {"indexing": "ij"}, note="ij")
    yield Sample(aten.meshgrid.default, ([real(3), real(), real(5)],))
    yield Sample(aten.broadcast_tensors.default, ([real(3, 1), real(5), real(1)],))
    yield Sample(aten.broadcast_tensors.default, ([real(3, 5), real(3, 5)],), note="same")
    yield Sample(aten.tril_indices.default, (4, 5))
    yield Sample(aten.triu_indices.default, (4, 5, 1))
    yield Sample(aten.rot90.default, (real(2, 3, 5), 1, [0, 2]))
    yield Sample(aten.rot90.default, (real(2, 3, 5), 2, [-1, 1]), note="half")
    yield Sample(aten.logspace.default, (0.0, 1.0, 5))
    for name in ("hann", "hamming", "blackman", "bartlett", "kaiser"):
        yield Sample(op(f"{name}_window.default"), (6,), {"dtype": torch.float64})
        yield Sample(op(f"{name}_window.periodic"), (6, False), {"dtype": torch.float64})
    yield Sample(aten.kaiser_window.beta, (6, False, 9.0), {"dtype": torch.float64})


def _diagonals() -> Iterator[Sample]:
    yield Sample(aten.diag_embed.default, (real(3, 5),))
    yield Sample(aten.diag_embed.default, (real(2, 3, 5), 1, 0, 2), note="offset")
    yield Sample(aten.diag.default, (real(5),))
    yield Sample(aten.diag.default, (real(4, 5), 1), note="matrix")
    yield Sample(aten.diagflat.default, (real(2, 3),))
    yield Sample(aten.trace.default, (real(4, 5),))
    yield Sample(aten.diagonal_scatter.default, (real(2, 3, 5), real(2, 3), 0, 1, 2))
    yield Sample(aten.diagonal_scatter.default, (real(4, 3, 5), real(3, 4), 1, 0, -1), note="offset")
    yield Sample(aten.block_diag.default, ([real(2, 3), real(4, 5)],))
    yield Sample(aten.block_diag.default, ([real(3), real(), real(2, 4)],), note="vector and number")


def _windows() -> Iterator[Sample]:
    yield Sample(aten.unfold.default, (real(2, 7, 3), 1, 3, 2))
    yield Sample(aten.unfold.default, (real(2, 7), -1, 2, 1), note="last")
    yield Sample(aten.unfold.default, (real(), 0, 1, 1), note="number")
    square = ([2, 3], [1, 1], [0, 1], [1, 2])
    columns = aten.im2col.default(real(2, 3, 5, 6), *square)
    yield Sample(aten.im2col.default, (real(2, 3, 5, 6), *square))
    yield Sample(aten.im2col.default, (real(3, 5, 6), *square), note="no batch")
    yield Sample(aten.col2im.default, (columns, [5, 6], *square))
    yield Sample(aten.col2im.default, (columns[0], [5, 6], *square), note="no batch")


def _padding() -> Iterator[Sample]:
    for mode in ("reflect", "replicate", "circular"):
        yield Sample(aten.pad.default, (real(2, 3, 5), [1, 2], mode), note="" if mode == "reflect" else mode)
    yield Sample(aten.pad.default, (real(2, 3, 4, 5), [1, 1, 0, 0], "reflect"), note="one of two")
    yield Sample(aten.pad.default, (real(2, 3, 5), [1, 2], "constant", 1.5), note="constant")
    yield Sample(aten.pad.default, (real(2, 3, 5), [1, 2]), note="zeros")
    for rank, shape in ((1, (5,)), (2, (4, 5)), (3, (4, 5, 6))):
        for kind in ("reflection", "replication"):
            yield Sample(op(f"{kind}_pad{rank}d"), (real(2, 3, *shape), [1, 2] * rank))
            yield Sample(op(f"{kind}_pad{rank}d"), (real(3, *shape), [1, 2] * rank), note="no batch")


def _sampling() -> Iterator[Sample]:
    grid = torch.rand(2, 5, 6, 2, dtype=torch.float64) * 1.6 - 0.8
    deep = torch.rand(2, 2, 3, 4, 3, dtype=torch.float64) * 1.6 - 0.8
    for name in ("grid_sampler", "grid_sampler_2d"):
        yield Sample(op(name), (real(2, 3, 4, 7), grid, 0, 0, False))
    for name in ("grid_sampler", "grid_sampler_3d"):
        yield Sample(op(name), (real(2, 3, 4, 7, 5), deep, 0, 1, True), note="3d" if name == "grid_sampler" else "")
    yield Sample(aten.affine_grid_generator.default, (real(2, 2, 3), [2, 4, 5, 6], False))
    yield Sample(aten.affine_grid_generator.default, (real(2, 3, 4), [2, 7, 5, 6, 8], False), note="3d")


_SPATIAL = {1: (8,), 2: (8, 6), 3: (4, 6, 8)}


def _pools() -> Iterator[Sample]:
    for rank, size in _SPATIAL.items():
        pool = op(f"max_pool{rank}d_with_indices")
        yield Sample(pool, (real(2, 3, *size), [2] * rank))
        yield Sample(pool, (real(3, *size), [3] * rank, [1] * rank, [1] * rank), note="no batch")
        yield Sample(op(f"adaptive_max_pool{rank}d"), (real(2, 3, *size), [3, 2, 4][:rank]))
        yield Sample(op(f"adaptive_max_pool{rank}d"), (real(3, *size), [2, 3, 4][:rank]), note="no batch")
        if rank > 1:
            x = real(2, 3, *size)
            x.flatten(2)[:, :, 0] = 9  # a place that a removed index of zero would overwrite
            values, places = pool(x, [2] * rank)
            extra = () if rank == 2 else ([2] * rank, [0] * rank)
            yield Sample(op(f"max_unpool{rank}d"), (values, places, list(size), *extra))


def _resampling() -> Iterator[Sample]:
    for name, rank, align in (
        ("upsample_nearest1d", 1, ()), ("upsample_nearest3d", 3, ()), ("upsample_linear1d", 1, (False,)),
        ("upsample_trilinear3d", 3, (False,)), ("_upsample_nearest_exact1d", 1, ()),
        ("_upsample_nearest_exact2d", 2, ()), ("_upsample_nearest_exact3d", 3, ()),
        ("_upsample_bilinear2d_aa", 2, (False,)), ("_upsample_bicubic2d_aa", 2, (True,)),
    ):  # fmt: skip
        x = real(2, 3, *_SPATIAL[rank])
        yield Sample(op(f"{name}.default"), (x, [9] * rank, *align))
        if name.startswith("_"):
            yield Sample(op(f"{name}.vec"), (x, None, *align, [2.0] * rank))


def _norms() -> Iterator[Sample]:
    yield Sample(aten._safe_softmax.default, (real(2, 3, 5), -1))
    yield Sample(aten.softmax.int, (real(), 0), note="number")
    yield Sample(aten.native_layer_norm.default, (real(2, 3, 5), [5], real(5), real(5), 1e-5))
    yield Sample(aten.native_layer_norm.default, (real(2, 3, 5), [3, 5], None, None, 1e-5), note="two dims")
    yield Sample(aten._weight_norm.default, (real(4, 3, 5), positive(4, 1, 1)))
    yield Sample(aten._weight_norm.default, (real(4, 3, 5), positive(1, 1, 5), 2), note="last")
    yield Sample(aten.renorm.default, (real(4, 3, 5), 2.0, 1, 0.5))
