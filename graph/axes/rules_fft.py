"""Rules of Fourier transforms and of complex numbers as pairs."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import clause, filled

__all__: list[str] = []

aten = torch.ops.aten
TRANSFORMED = "a transform mixes all its positions"


def _transform(call: Call, dims: tuple[int, ...]) -> DimRule:
    letters = names(len(call.shapes[0]))
    out = [f"f{n}" if d in dims else n for d, n in enumerate(letters)]
    fixed = clause("fixed", [x for d in dims for x in (letters[d], out[d])])
    return DimRule.parse(f"{text(letters)} -> {text(out)}{fixed}", why=TRANSFORMED)


@rule(
    aten.fft_fft.default, aten.fft_ifft.default, aten.fft_rfft.default, aten.fft_irfft.default, aten.fft_hfft.default,
    aten.fft_ihfft.default,
)  # fmt: skip
def transform(call: Call) -> DimRule:
    """Along one dimension."""
    return _transform(call, (call.dim("dim", len(call.shapes[0])),))


@rule(
    aten.fft_fft2.default, aten.fft_ifft2.default, aten.fft_rfft2.default, aten.fft_irfft2.default,
    aten.fft_fftn.default, aten.fft_ifftn.default, aten.fft_rfftn.default, aten.fft_irfftn.default,
)  # fmt: skip
def transform_many(call: Call) -> DimRule:
    """Along several dimensions; the last ones where only their sizes are named."""
    rank, sizes = len(call.shapes[0]), call.arg("s")
    if call.arg("dim") is None and sizes is not None:
        return _transform(call, tuple(range(rank - len(sizes), rank)))
    return _transform(call, call.dims("dim", rank))


@rule(aten.fft_fftshift.default, aten.fft_ifftshift.default)
def shift(call: Call) -> DimRule:
    """Half of the positions change places with the other half."""
    letters = names(len(call.shapes[0]))
    fixed = clause("fixed", [letters[d] for d in call.dims("dim", len(letters))])
    return DimRule.parse(f"{text(letters)} -> {text(letters)}{fixed}", why="positions move to other positions")


@rule(aten.stft.default, aten.stft.center)
def short_time(call: Call) -> DimRule:
    """Windows of a signal, transformed; as pairs of numbers where the result is not complex."""
    window = ", w" if len(call.tensors) > 1 else ""
    pairs = "" if call.node.meta["val"].is_complex() else " r"
    return filled(call, f"* t{window} -> * f n{pairs} | fixed t{window.replace(',', '')} f n{pairs}", why=TRANSFORMED)


@rule(aten.istft.default)
def inverse_short_time(call: Call) -> DimRule:
    """A signal from its transformed windows."""
    window = ", w" if len(call.tensors) > 1 else ""
    return filled(call, f"* f n{window} -> * t | fixed f n{window.replace(',', '')} t", why=TRANSFORMED)


@rule(aten.view_as_real.default)
def as_pairs(call: Call) -> DimRule:
    """Real and imaginary part in a new last dimension."""
    return filled(call, "* -> * r | fixed r", why="real and imaginary part")


@rule(aten.view_as_complex.default)
def from_pairs(call: Call) -> DimRule:
    """A last dimension of two numbers as one complex number."""
    return filled(call, "* r -> * | fixed r", why="real and imaginary part")
