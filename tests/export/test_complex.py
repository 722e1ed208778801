"""Complex arithmetic, written on real and imaginary parts: the file computes what the program does at every size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxslim.export.check import check_onnx
from fxslim.export.complex import split_complex
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.capture import capture


class Rotary(nn.Module):
    """Pairs of a head as complex numbers, turned by an angle for each position."""

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1, 0.01])
        turn = torch.polar(torch.ones_like(angle), angle) * 0.5
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], 3, 2))
        return torch.view_as_real(pairs * turn[None, :, None]).flatten(3)


class Products(nn.Module):
    """Every product that there is, sums, and layouts."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.complex(x, y)
        w = (z * z + 2 * z - z * x).transpose(1, 2) * torch.polar(y.exp(), x).mT
        return w.real, -w.imag


class Transform(nn.Module):
    def __init__(self, what: str, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.what, self.dims = what, dims

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.fft.fft(x) if self.what == "fft" else getattr(torch.fft, self.what)(x, dim=self.dims)
        return found.real, found.imag


CASES = {
    "rotary": (Rotary(), (torch.randn(2, 5, 4, 6),)),
    "products": (Products(), (torch.randn(2, 5, 6), torch.randn(2, 5, 6))),
    "fft": (Transform("fft", ()), (torch.randn(2, 9, 48),)),
    "fft2": (Transform("fft2", (1, 2)), (torch.randn(2, 9, 48),)),
    "fftn": (Transform("fftn", (1, 2, 3)), (torch.randn(2, 5, 6, 7),)),
}


@pytest.mark.parametrize("name", CASES)
def test_complex_arithmetic_is_exported_on_parts(tmp_path: Path, name: str) -> None:
    model, args = CASES[name]
    program = capture(model, args, {}, tuple({0: "batch", 1: "sequence"} for _ in args))
    file = export_onnx(program, tmp_path / "m.onnx")
    assert "DFT" not in file.ops
    result = check_onnx(program, file.path)
    assert result.ok, result.failures
    assert len(result.shapes) > 1 and all(row.ok for row in result.shapes)


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.ifft(torch.fft.fft(x) * 2).real


class Returned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x, x) * 2


@pytest.mark.parametrize("model", [Inverse(), Returned()])
def test_what_has_no_rule_or_is_returned_stays_as_it_was(model: nn.Module) -> None:
    graph = capture(model, (torch.randn(2, 6),)).flat_module().graph
    before = str(graph)
    split_complex(graph)
    assert str(graph) == before
