"""Sample calls of contractions, normalisations, reductions, convolutions and pooling."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fxslim.graph.axes.oracle import Sample
from tests.graph.axes.samples_pointwise import boolean, integer, positive, real

aten = torch.ops.aten
INTEGRAL = {"scale": 0.3}


def samples() -> Iterator[Sample]:
    """All samples of this file."""
    for family in (
        _products,
        _einsum,
        _lookup,
        _attention,
        _norms,
        _reductions,
        _ordered,
        _convolutions,
        _transposed,
        _pooling,
        _resampling,
    ):
        yield from family()


def _products() -> Iterator[Sample]:
    yield Sample(aten.linear.default, (real(2, 3, 5), real(4, 5), real(4)))
    yield Sample(aten.linear.default, (real(3, 5), real(4, 5)), note="no bias")
    yield Sample(aten.linear.default, (real(5), real(4, 5), real(4)), note="vector")
    yield Sample(aten.linear.default, (real(3, 5), real(5)), note="one row")
    yield Sample(aten.addmm.default, (real(4), real(3, 5), real(5, 4)))
    yield Sample(aten.addmm.default, (real(3, 4), real(3, 5), real(5, 4)), note="full bias")
    yield Sample(aten.addmm.default, (real(3, 1), real(3, 5), real(5, 4)), note="column")
    yield Sample(aten.mm.default, (real(3, 5), real(5, 4)))
    yield Sample(aten.mv.default, (real(3, 5), real(5)))
    yield Sample(aten.dot.default, (real(5), real(5)))
    yield Sample(aten.bmm.default, (real(2, 3, 5), real(2, 5, 4)))
    yield Sample(aten.baddbmm.default, (real(2, 3, 4), real(2, 3, 5), real(2, 5, 4)))
    yield Sample(aten.baddbmm.default, (real(1, 4), real(2, 3, 5), real(2, 5, 4)), note="broadcast")
    yield Sample(aten.matmul.default, (real(2, 3, 5), real(2, 5, 4)))
    for left, right in (((5,), (5,)), ((5,), (5, 4)), ((3, 5), (5,)), ((3, 5), (5, 4)), ((2, 3, 5), (5, 4)),
    ((3, 5), (2, 5, 4)),
                        ((2, 1, 3, 5), (6, 5, 4)), ((2, 6, 3, 5), (2, 6, 5, 4)), ((5,), (2, 5, 4)), ((2, 3, 5), (5,)),
                        ((1, 3, 5), (2, 5, 4)), ((3, 1), (1, 4))):  # fmt: skip
        yield Sample(aten.matmul.default, (real(*left), real(*right)), note=f"{list(left)} {list(right)}")


def _einsum() -> Iterator[Sample]:
    yield Sample(aten.einsum.default, ("bhqd,bhkd->bhqk", [real(2, 3, 4, 5), real(2, 3, 6, 5)]))
    for equation, shapes in (
        ("ij,jk", ((3, 5), (5, 4))), ("ij->j", ((3, 5),)), ("ij->ji", ((3, 5),)), ("ii->i", ((5, 5),)),
        ("ii", ((5, 5),)),
        ("...ij,...jk->...ik", ((2, 3, 5), (2, 5, 4))), ("...i,i->...i", ((2, 3, 5), (5,))),
        ("b...d,de->b...e", ((2, 3, 5), (5, 4))),
        ("i,j,k->ijk", ((2,), (3,), (4,))), ("i,ij,j->", ((3,), (3, 5), (5,))), ("bi,bi->b", ((3, 5), (3, 5))),
        ("i,i,i->", ((5,), (5,), (5,))), ("ij,jk->", ((3, 5), (5, 4))), ("a...,...->a...", ((2, 3, 5), (5,))),
        ("ij,ij->ij", ((3, 5), (3, 5))), ("ij,kj->ik", ((3, 1), (4, 5))), (" i j , j k -> i k ", ((3, 5), (5, 4))),
        ("...ij,jk->...ik", ((3, 5), (5, 4))), ("iij,j->i", ((3, 3, 5), (5,))), ("ab,cd->abcd", ((2, 3), (4, 5))),
    ):  # fmt: skip
        yield Sample(aten.einsum.default, (equation, [real(*s) for s in shapes]), note=equation)


def _lookup() -> Iterator[Sample]:
    yield Sample(aten.embedding.default, (real(7, 5), torch.tensor([[0, 6, 2], [3, 1, 5]])))
    yield Sample(aten.embedding.default, (real(7, 5), torch.tensor([0, 6, 2, 1])), note="vector")


def _attention() -> Iterator[Sample]:
    sdpa = aten.scaled_dot_product_attention.default
    q, k, v = real(2, 3, 4, 5), real(2, 3, 6, 5), real(2, 3, 6, 8)
    yield Sample(sdpa, (q, k, v), INTEGRAL)
    yield Sample(sdpa, (q, k, v, real(2, 3, 4, 6)), INTEGRAL, note="mask")
    yield Sample(sdpa, (q, k, v, real(4, 6)), INTEGRAL, note="shared mask")
    yield Sample(sdpa, (q, k, v, real(2, 1, 1, 6)), INTEGRAL, note="broadcast mask")
    yield Sample(sdpa, (q, k, v, boolean(4, 6) | torch.eye(4, 6, dtype=torch.bool)), INTEGRAL, note="boolean mask")
    yield Sample(sdpa, (real(2, 3, 4, 5), real(2, 3, 4, 5), real(2, 3, 4, 8), None, 0.0, True), INTEGRAL, note="causal")
    yield Sample(sdpa, (real(3, 4, 5), real(3, 6, 5), real(3, 6, 8)), INTEGRAL, note="3d")
    yield Sample(sdpa, (real(4, 5), real(6, 5), real(6, 8)), INTEGRAL, note="2d")
    yield Sample(sdpa, (real(2, 3, 1, 5), k, v), INTEGRAL, note="one query")
    gqa = {**INTEGRAL, "enable_gqa": True}
    yield Sample(sdpa, (real(2, 6, 4, 5), k, v), gqa, note="gqa")
    yield Sample(sdpa, (real(2, 6, 4, 5), k, v, real(2, 6, 4, 6)), gqa, note="gqa mask")
    yield Sample(sdpa, (real(2, 6, 4, 5), k, v, real(2, 1, 4, 6)), gqa, note="gqa broadcast mask")
    yield Sample(sdpa, (real(2, 6, 4, 5), real(2, 1, 6, 5), real(2, 1, 6, 8)), gqa, note="mqa")


def _norms() -> Iterator[Sample]:
    yield Sample(aten.layer_norm.default, (real(2, 3, 5), [5], real(5), real(5)))
    yield Sample(aten.layer_norm.default, (real(2, 3, 5), [3, 5], real(3, 5), real(3, 5)), note="two dims")
    yield Sample(aten.layer_norm.default, (real(3, 5), [5]), note="no weight")
    yield Sample(aten.rms_norm.default, (real(2, 3, 5), [5], real(5)))
    yield Sample(aten.rms_norm.default, (real(2, 3, 5), [5], None, 1e-6), note="no weight")
    affine = (real(4), real(4))
    yield Sample(aten.batch_norm.default, (real(3, 4, 5, 2), *affine, real(4), positive(4), False, 0.1, 1e-5, False))
    yield Sample(
        aten.batch_norm.default, (real(3, 4), None, None, real(4), positive(4), False, 0.1, 1e-5, False), note="2d"
    )
    yield Sample(
        aten.batch_norm.default, (real(3, 4, 5), *affine, None, None, True, 0.1, 1e-5, False), note="own statistics"
    )
    yield Sample(aten.instance_norm.default, (real(2, 4, 5, 3), *affine, None, None, True, 0.1, 1e-5, False))
    yield Sample(
        aten.instance_norm.default,
        (real(2, 4, 5), *affine, real(4), positive(4), False, 0.1, 1e-5, False),
        note="running",
    )
    yield Sample(aten.group_norm.default, (real(2, 6, 5), 3, real(6), real(6)))
    yield Sample(aten.group_norm.default, (real(2, 4, 5), 1, real(4), real(4)), note="one group")
    yield Sample(aten.group_norm.default, (real(2, 4, 5), 4, real(4), real(4)), note="groups of one")
    yield Sample(aten.group_norm.default, (real(3, 6), 3), note="no positions")
    for op in (aten.softmax.int, aten.log_softmax.int):
        yield Sample(op, (real(2, 3, 5), -1))
        yield Sample(op, (real(2, 3, 5), 1), note="dim 1")
    for op in (aten._softmax.default, aten._log_softmax.default):
        yield Sample(op, (real(2, 3, 5), -1, False))


def _reductions() -> Iterator[Sample]:
    for op in (aten.sum.dim_IntList, aten.mean.dim):
        yield Sample(op, (real(3, 5, 4), [1]))
        yield Sample(op, (real(3, 5, 4), [-1, 0], True), note="keepdim")
        yield Sample(op, (real(3, 5), None), note="all")
    yield Sample(aten.sum.default, (real(3, 5),))
    yield Sample(aten.mean.default, (real(3, 5),))
    for op in (aten.var.correction, aten.std.correction, aten.linalg_vector_norm.default):
        extra = (2,) if op is aten.linalg_vector_norm.default else ()
        yield Sample(op, (real(3, 5, 4), *extra, [1]))
        yield Sample(op, (real(3, 5, 4), *extra, [-1, 0]), {"keepdim": True}, note="keepdim")
        yield Sample(op, (real(3, 5), *extra), note="all")
    yield Sample(aten.linalg_vector_norm.default, (positive(3, 5), float("inf"), [1]), note="largest")
    yield Sample(aten.linalg_vector_norm.default, (positive(3, 5), float("-inf"), [1]), note="smallest")
    for op in (aten.var.dim, aten.std.dim):
        yield Sample(op, (real(3, 5, 4), [1], True, True))
    for op in (aten.amax.default, aten.amin.default):
        sign = 1 if op is aten.amin.default else -1  # a zero in place of a number would be the extreme
        yield Sample(op, (sign * positive(3, 5, 4), [1]))
        yield Sample(op, (sign * positive(3, 5),), note="all")
    yield Sample(aten.logsumexp.default, (real(3, 5, 4), [1], True))
    yield Sample(aten.prod.dim_int, (positive(3, 5, 4), 1))
    yield Sample(aten.any.dim, (torch.rand(3, 5, 4) < 0.2, 1))
    yield Sample(aten.all.dim, (torch.rand(3, 5, 4) < 0.8, 1, True))
    yield Sample(aten.norm.ScalarOpt_dim, (real(3, 5, 4), 2, [1]))
    yield Sample(aten.norm.ScalarOpt_dim, (real(3, 5, 4), -1, [1], True), note="negative order")
    yield Sample(aten.norm.ScalarOpt_dim, (real(3, 5), None, [1]), note="default order")


def _ordered() -> Iterator[Sample]:
    for op in (aten.max.dim, aten.min.dim, aten.median.dim, aten.argmax.default, aten.argmin.default):
        yield Sample(op, (real(3, 5, 4), 1))
        yield Sample(op, (real(3, 5, 4), -1, True), note="keepdim")
    yield Sample(aten.argmax.default, (real(3, 5),), note="all")
    yield Sample(aten.cumsum.default, (real(3, 5), -1))
    yield Sample(aten.cumprod.default, (positive(3, 5), 0))
    yield Sample(aten.topk.default, (real(3, 5), 2))
    yield Sample(aten.topk.default, (real(6, 5), 3, 0), note="dim 0")
    yield Sample(aten.sort.default, (real(3, 5),))
    yield Sample(aten.sort.stable, (real(3, 5),), {"stable": True, "dim": 0})
    yield Sample(aten.triu.default, (real(2, 3, 5), 1))
    yield Sample(aten.tril.default, (real(3, 5),))
    yield Sample(aten.flip.default, (real(2, 3, 5), [1, -1]))
    yield Sample(aten.roll.default, (real(2, 3, 5), [1], [-1]))
    yield Sample(aten.roll.default, (real(3, 5), [2]), note="flat")


_SPATIAL = {1: (8,), 2: (7, 6), 3: (5, 4, 6)}
_KERNEL = {1: (3,), 2: (2, 3), 3: (2, 3, 2)}
_CONV = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
_PADDED = {1: aten.conv1d.padding, 2: aten.conv2d.padding, 3: aten.conv3d.padding}
_BACK = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


def _convolutions() -> Iterator[Sample]:
    for rank, op in _CONV.items():
        size, kernel = _SPATIAL[rank], _KERNEL[rank]
        yield Sample(op, (real(2, 4, *size), real(3, 4, *kernel), real(3), [2] * rank, [1] * rank))
        yield Sample(op, (real(4, *size), real(3, 4, *kernel)), note="no batch, no bias")
        yield Sample(
            op, (real(2, 6, *size), real(9, 2, *kernel), real(9), [1] * rank, [0] * rank, [1] * rank, 3), note="groups"
        )
        yield Sample(op, (real(2, 4, *size), real(4, 1, *kernel), real(4)), {"groups": 4}, note="depthwise")
        yield Sample(op, (real(2, 4, *size), real(12, 1, *kernel)), {"groups": 4}, note="multiplier")
        yield Sample(op, (real(2, 6, *size), real(3, 2, *kernel)), {"groups": 3}, note="one output a group")
    for rank, op in _PADDED.items():
        size, kernel = _SPATIAL[rank], _KERNEL[rank]
        yield Sample(op, (real(2, 4, *size), real(3, 4, *kernel), real(3), [1] * rank, "same"))
        yield Sample(op, (real(2, 6, *size), real(9, 2, *kernel)), {"padding": "valid", "groups": 3}, note="groups")
    yield Sample(aten.conv2d.default, (real(2, 4, 5, 6), real(3, 4, 1, 1), real(3)), note="1x1")
    rest = ([1, 1], [0, 0], [1, 1])
    yield Sample(aten.convolution.default, (real(2, 6, 7, 6), real(9, 2, 2, 3), real(9), *rest, False, [0, 0], 3))
    yield Sample(
        aten.convolution.default, (real(2, 6, 7, 6), real(6, 4, 2, 3), None, *rest, True, [0, 0], 3), note="transposed"
    )


def _transposed() -> Iterator[Sample]:
    for rank, op in _BACK.items():
        size, kernel = _SPATIAL[rank], _KERNEL[rank]
        yield Sample(op, (real(2, 4, *size), real(4, 3, *kernel), real(3), [2] * rank, [1] * rank))
        yield Sample(op, (real(2, 6, *size), real(6, 4, *kernel), real(12)), {"groups": 3}, note="groups")
        yield Sample(op, (real(2, 4, *size), real(4, 1, *kernel)), {"groups": 4}, note="depthwise")


def _pooling() -> Iterator[Sample]:
    for rank in (1, 2, 3):
        size = _SPATIAL[rank]
        for kind in ("max", "avg"):
            op = getattr(aten, f"{kind}_pool{rank}d").default
            yield Sample(op, (real(2, 3, *size), [2] * rank))
            yield Sample(op, (real(3, *size), [3] * rank, [1] * rank, [1] * rank), note="no batch")
        adaptive = getattr(aten, f"adaptive_avg_pool{rank}d").default
        yield Sample(adaptive, (real(2, 3, *size), [1] * rank))
        yield Sample(adaptive, (real(2, 3, *size), [2] * rank), note="two")
    yield Sample(aten._adaptive_avg_pool2d.default, (real(2, 3, 7, 6), [2, 3]))


def _resampling() -> Iterator[Sample]:
    for name, rank in (
        ("nearest", 1),
        ("nearest", 2),
        ("nearest", 3),
        ("linear", 1),
        ("bilinear", 2),
        ("bicubic", 2),
        ("trilinear", 3),
    ):
        packet = getattr(aten, f"upsample_{name}{rank}d" if name not in ("trilinear",) else "upsample_trilinear3d")
        align = () if name == "nearest" else (False,)
        x = real(2, 3, *_SPATIAL[rank])
        yield Sample(packet.vec, (x, None, *align, [2.0] * rank))
        yield Sample(packet.vec, (x, [3] * rank, *align, None), note="size")
        if rank == 2:
            yield Sample(packet.default, (x, [9, 11], *align))
    yield Sample(aten.pixel_shuffle.default, (real(2, 12, 3, 5), 2))
    yield Sample(aten.pixel_shuffle.default, (real(12, 3, 5), 2), note="no batch")
    yield Sample(aten.pixel_unshuffle.default, (real(2, 3, 6, 4), 2))
    yield Sample(aten.channel_shuffle.default, (real(2, 6, 5), 2))
    yield Sample(aten.channel_shuffle.default, (real(2, 6, 5, 4), 3), note="2d")


__all__ = ["integer", "samples"]
