"""Sample calls of linear algebra, Fourier transforms, products and statistics."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fxslim.graph.axes.oracle import Sample
from tests.graph.axes.samples_pointwise import boolean, integer, op, positive, real
from tests.graph.axes.samples_special import Parts

aten = torch.ops.aten


def samples() -> Iterator[Sample]:
    """All samples of this file."""
    for family in (_square, _rectangular, _solutions, _products, _fourier, _statistics, _pairs, _norms, _ordered):
        yield from family()


def definite(*shape: int) -> Tensor:
    """Symmetric positive definite matrices."""
    half = real(*shape)
    return half @ half.mT + torch.eye(shape[-1], dtype=torch.float64)


def _square() -> Iterator[Sample]:
    for name in (
        "linalg_inv", "linalg_inv_ex", "linalg_det", "linalg_slogdet", "logdet", "linalg_cholesky",
        "cholesky_inverse", "linalg_eigh", "linalg_eigvalsh", "matrix_exp",
    ):  # fmt: skip
        yield Sample(op(name), (definite(2, 4, 4),))
        yield Sample(op(name), (definite(4, 4),), note="no batch")
    yield Sample(aten.linalg_matrix_power.default, (definite(2, 4, 4), 3))


def _rectangular() -> Iterator[Sample]:
    for name in ("linalg_qr", "linalg_svd", "linalg_svdvals", "svd", "linalg_lu", "linalg_lu_factor",
                 "linalg_lu_factor_ex"):  # fmt: skip
        extra = (False,) if name == "linalg_svd" else ()
        yield Sample(op(name), (real(2, 3, 5), *extra))
        yield Sample(op(name), (real(5, 3), *extra), note="tall")
    yield Sample(aten.linalg_svd.default, (real(2, 3, 5),), note="full")
    yield Sample(aten.linalg_pinv.default, (real(2, 3, 5), 1e-9))
    yield Sample(aten.linalg_pinv.atol_rtol_float, (real(2, 3, 5),), {"rtol": 1e-9})
    yield Sample(aten.linalg_pinv.atol_rtol_tensor, (real(2, 3, 5),))
    yield Sample(aten.linalg_pinv.atol_rtol_tensor, (real(2, 3, 5),), {"rtol": positive(2) * 1e-9}, note="tolerance")
    yield Sample(aten.linalg_matrix_rank.default, (real(2, 3, 5), 1e-9))
    yield Sample(aten.linalg_matrix_rank.atol_rtol_tensor, (real(2, 3, 5),), {"atol": torch.tensor(1e-9).double()})
    yield Sample(aten.linalg_householder_product.default, (real(2, 5, 4), real(2, 3)))


def _solutions() -> Iterator[Sample]:
    square, triangle = definite(2, 4, 4), definite(2, 4, 4).triu()
    for name in ("linalg_solve", "linalg_solve_ex"):
        yield Sample(op(name), (square, real(2, 4, 3)))
        yield Sample(op(name), (square, real(2, 4)), note="vectors")
        yield Sample(op(name), (square, real(2, 3, 4)), {"left": False}, note="from the right")
    yield Sample(aten.linalg_solve.default, (definite(4, 4), real(4)), note="vector")
    yield Sample(aten.linalg_solve_triangular.default, (triangle, real(2, 4, 3)), {"upper": True})
    yield Sample(
        aten.linalg_solve_triangular.default, (triangle, real(2, 3, 4)), {"upper": True, "left": False},
        note="from the right",
    )  # fmt: skip
    yield Sample(aten.cholesky_solve.default, (real(2, 4, 3), torch.linalg.cholesky(square)))
    factor, pivots = torch.linalg.lu_factor(square)
    yield Sample(aten.linalg_lu_solve.default, (factor, pivots, real(2, 4, 3)))
    yield Sample(aten.linalg_lu_solve.default, (factor, pivots, real(2, 3, 4)), {"left": False}, note="from the right")


def _products() -> Iterator[Sample]:
    yield Sample(aten.outer.default, (real(3), real(5)))
    yield Sample(aten.vdot.default, (real(5), real(5)))
    yield Sample(aten.inner.default, (real(2, 3, 5), real(4, 5)))
    yield Sample(aten.inner.default, (real(5), real(5)), note="vectors")
    yield Sample(aten.inner.default, (real(3, 5), real()), note="number")
    yield Sample(aten.tensordot.default, (real(2, 3, 5), real(5, 3, 4), [1, 2], [1, 0]))
    yield Sample(aten.tensordot.default, (real(3, 5), real(4, 2), [], []), note="no pair")
    yield Sample(aten.tensordot.default, (real(3, 5, 4), real(4, 2), [-1], [-2]), note="negative")
    yield Sample(aten.tensordot.default, (real(3, 1, 4), real(5, 2), [1], [0]), note="broadcast")
    yield Sample(aten.addmv.default, (real(3), real(3, 5), real(5)))
    yield Sample(aten.addmv.default, (real(1), real(3, 5), real(5)), note="broadcast")
    yield Sample(aten.addr.default, (real(3, 5), real(3), real(5)))
    yield Sample(aten.addr.default, (real(5), real(3), real(5)), note="broadcast")
    yield Sample(aten.addbmm.default, (real(3, 4), real(2, 3, 5), real(2, 5, 4)))
    yield Sample(aten.bilinear.default, (real(2, 6, 3), real(2, 6, 5), real(4, 3, 5), real(4)))
    yield Sample(aten.bilinear.default, (real(2, 3), real(2, 5), real(4, 3, 5)), note="no bias")
    yield Sample(aten.kron.default, (real(2, 3), real(4, 5)))
    yield Sample(aten.kron.default, (real(3), real(4, 5)), note="vector")
    yield Sample(aten.linalg_multi_dot.default, ([real(2, 3), real(3, 5), real(5, 4)],))
    yield Sample(aten.linalg_multi_dot.default, ([real(3), real(3, 5), real(5)],), note="vectors")
    yield Sample(aten.linalg_cross.default, (real(2, 3, 5), real(2, 3, 5)), {"dim": 1})
    yield Sample(aten.linalg_cross.default, (real(4, 1, 3), real(1, 5, 3)), note="broadcast")
    indices, offsets = torch.tensor([0, 6, 2, 3, 1]), torch.tensor([0, 2])
    for mode, note in ((0, ""), (1, "mean"), (2, "largest")):
        bag = (real(7, 5), indices, offsets, False, mode, False, None, False, None)
        yield Sample(aten.embedding_bag.padding_idx, bag, note=note)
    yield Sample(aten.embedding_bag.default, (real(7, 5), indices, offsets))


def _fourier() -> Iterator[Sample]:
    waves = torch.complex(real(2, 4, 6), real(2, 4, 6))
    for name in ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft"):
        own = waves if name in ("fft_ifft", "fft_irfft", "fft_hfft") else real(2, 4, 6)
        yield Parts(op(name), (own,))
        yield Parts(op(name), (own, 5, 1), note="padded")
    for name in (
        "fft_fft2",
        "fft_ifft2",
        "fft_rfft2",
        "fft_irfft2",
        "fft_fftn",
        "fft_ifftn",
        "fft_rfftn",
        "fft_irfftn",
    ):
        own = waves if "_i" in name else real(2, 4, 6)
        yield Parts(op(name), (own, None, [0, -1]), note="")
        yield Parts(op(name), (own, [5, 6]), note="sizes")
    yield Parts(aten.fft_fftn.default, (real(4, 6),), note="all")
    for name in ("fft_fftshift", "fft_ifftshift"):
        yield Sample(op(name), (real(2, 3, 5), [1]))
        yield Sample(op(name), (real(3, 5),), note="all")
    for name in ("fft_fftfreq", "fft_rfftfreq"):
        yield Sample(op(name), (7,), {"dtype": torch.float64})
    window = {"window": positive(8), "return_complex": True}
    yield Parts(aten.stft.default, (real(3, 20), 8), window)
    yield Parts(aten.stft.default, (real(20), 8), {"return_complex": True}, note="no window")
    yield Sample(aten.stft.default, (real(3, 20), 8), {"return_complex": False}, note="pairs")
    yield Parts(aten.stft.center, (real(3, 20), 8), {"return_complex": True, "center": False})
    yield Parts(aten.istft.default, (torch.complex(real(3, 5, 11), real(3, 5, 11)), 8), {"window": positive(8)})
    yield Parts(aten.istft.default, (torch.complex(real(5, 11), real(5, 11)), 8), note="no window")
    yield Parts(aten.view_as_real.default, (waves,))
    yield Parts(aten.view_as_complex.default, (real(3, 5, 2),))


def _statistics() -> Iterator[Sample]:
    for name in ("prod", "std", "var", "median", "nanmedian", "max", "min"):
        sign = -1 if name in ("max",) else 1  # a zero in place of a number would be the extreme
        yield Sample(op(name), (sign * positive(3, 5),))
    yield Sample(aten.all.default, (torch.rand(3, 5) < 2,))
    yield Sample(aten.any.default, (torch.rand(3, 5) < 0.1,))
    for dims, note in (([0, 2], ""), (None, "all"), ([], "none")):
        yield Sample(aten.any.dims, (torch.rand(3, 5, 4) < 0.1, dims), note=note)
        yield Sample(aten.all.dims, (torch.rand(3, 5, 4) < 2, dims, True), note=note)
    for name in ("count_nonzero.dim_IntList", "nansum.default", "nanmean.default"):
        yield Sample(op(name), (real(3, 5, 4), [1]))
        yield Sample(op(name), (real(3, 5, 4), [-1, 0]), note="two")
    yield Sample(aten.count_nonzero.default, (boolean(3, 5),))
    yield Sample(aten.count_nonzero.default, (boolean(3, 5), -1), note="dim 1")
    for name in ("quantile", "nanquantile"):
        yield Sample(op(f"{name}.scalar"), (positive(3, 5, 4), 0.4, 1))
        yield Sample(op(f"{name}.scalar"), (positive(3, 5), 0.4), note="all")


def _pairs() -> Iterator[Sample]:
    for name in ("var_mean", "std_mean"):
        yield Sample(op(f"{name}.default"), (real(3, 5),))
        yield Sample(op(f"{name}.dim"), (real(3, 5, 4), [1]))
        yield Sample(op(f"{name}.correction"), (real(3, 5, 4), [0, -1]), {"correction": 0, "keepdim": True})
        yield Sample(op(f"{name}.correction"), (real(3, 5),), note="all")
    yield Sample(aten.aminmax.default, (positive(3, 5, 4),), {"dim": 1})
    yield Sample(aten.aminmax.default, (positive(3, 5),), note="all")
    for name, extra in (("kthvalue", (2,)), ("mode", ()), ("nanmedian.dim", None)):
        yield Sample(op(name), (real(3, 5, 4), *(extra or ()), 1))
        yield Sample(op(name), (real(3, 5, 4), *(extra or ()), -1, True), note="keepdim")


def _norms() -> Iterator[Sample]:
    yield Sample(aten.linalg_norm.default, (real(3, 5),))
    yield Sample(aten.linalg_norm.default, (positive(3, 5, 4), -1, [1], True), note="negative order")
    yield Sample(aten.linalg_norm.ord_str, (real(2, 3, 5), "nuc", [1, 2]))
    yield Sample(aten.linalg_matrix_norm.default, (real(2, 3, 5), 2))
    yield Sample(aten.linalg_matrix_norm.default, (positive(2, 3, 5), float("-inf")), note="smallest")
    yield Sample(aten.linalg_matrix_norm.str_ord, (real(2, 3, 5),))
    yield Sample(aten.linalg_matrix_norm.str_ord, (real(2, 3, 5), "nuc", [0, -1], True), note="nuclear")
    yield Sample(aten.norm.Scalar, (real(3, 5),))
    yield Sample(aten.norm.ScalarOpt_dtype, (real(3, 5), 1), {"dtype": torch.float64})
    yield Sample(aten.norm.ScalarOpt_dim_dtype, (real(3, 5), 2, [1], False), {"dtype": torch.float64})


def _ordered() -> Iterator[Sample]:
    for name in ("cummax", "cummin", "logcumsumexp"):
        yield Sample(op(name), (real(3, 5), -1))
        yield Sample(op(name), (real(3, 5), 0), note="dim 0")
    yield Sample(aten.argsort.default, (real(3, 5),))
    yield Sample(aten.argsort.stable, (real(3, 5),), {"stable": True, "dim": 0})
    yield Sample(aten.msort.default, (real(4, 5),))
    for name in ("trapezoid", "trapz", "cumulative_trapezoid"):
        yield Sample(op(f"{name}.dx"), (real(3, 5),))
        yield Sample(op(f"{name}.dx"), (real(4, 5),), {"dim": 0}, note="dim 0")
    yield Sample(aten.diff.default, (real(3, 5),))
    yield Sample(aten.diff.default, (real(4, 5), 2, 0, real(2, 5), real(3, 5)), note="padded")
    yield Sample(aten.histc.default, (real(20),))
    yield Sample(aten.bincount.default, (integer(6),), {"minlength": 9})
    yield Sample(aten.bincount.default, (integer(6), positive(6), 9), note="weights")
