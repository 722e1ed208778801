"""What is written differently before export: the file computes what the program does, in the runtime as it is used."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from fxslim.api import apply
from fxslim.export.check import check_onnx
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.capture import capture
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prepare import prepare


class PaddedPool(nn.Module):
    """Zeros around what is negative everywhere: they win the maximum at the border."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.pad = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)[rank - 1](1, 0.0)
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1](3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.pad(-x.abs() - 1))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_zeros_that_a_maximum_pool_reads_stay_zeros(tmp_path: Path, rank: int) -> None:
    program = capture(PaddedPool(rank), (torch.randn(2, 3, *[7] * rank),), {}, ({0: "batch"},))
    result = check_onnx(program, export_onnx(program, tmp_path / "m.onnx").path)
    assert result.ok, result.failures


class Attention(nn.Module):
    """Attention as its inputs have it: without a dimension for heads, or with several before it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), x)


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 5, 6), (2, 3, 4, 5, 6), (2, 2, 3, 4, 5, 6)], ids=len)
@pytest.mark.parametrize("dynamic", [True, False])
def test_attention_over_any_number_of_dimensions_is_exported(
    tmp_path: Path, shape: tuple[int, ...], dynamic: bool
) -> None:
    program = capture(Attention(), (torch.randn(shape),), {}, ({0: "batch"},) if dynamic else None)
    result = check_onnx(program, export_onnx(program, tmp_path / "m.onnx").path)
    assert result.ok, result.failures


class Biased(Attention):
    """Attention with a bias on its logits, as relative positions give one."""

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), x, attn_mask=bias)


@pytest.mark.parametrize(
    ("shape", "bias"),
    [((4, 5, 6), (4, 5, 5)), ((4, 5, 6), (5, 5)), ((2, 3, 4, 5, 6), (2, 3, 4, 5, 5)), ((2, 3, 4, 5, 6), (4, 5, 5))],
    ids=str,
)
def test_a_bias_on_attention_over_other_than_four_dimensions_is_exported(
    tmp_path: Path, shape: tuple[int, ...], bias: tuple[int, ...]
) -> None:
    program = capture(Biased(), (torch.randn(shape), 3 * torch.randn(bias)))
    result = check_onnx(program, export_onnx(program, tmp_path / "m.onnx").path)
    assert result.ok, result.failures


class Roots(nn.Module):
    """RMSNorm as most models write it, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.weight = nn.Embedding(9, 12), nn.Parameter(torch.randn(12))
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.norm(x))


@pytest.mark.parametrize("stream", [None, 12, 7], ids=["as it came", "folded", "cut"])
def test_norms_are_written_as_the_runtime_fuses_them(tmp_path: Path, stream: int | None) -> None:
    torch.manual_seed(0)
    program = capture(Roots().eval(), (torch.arange(6).reshape(2, 3),), {}, ({0: "batch"},))
    if stream is not None:
        analysis = prepare(program, ["fold-norms"])
        group = next(g for g in analysis.prunable if g.size == 12)
        cut = Cut.from_mask(group, torch.arange(12) < stream)
        program = apply(analysis, Plan(analysis.program.fingerprint(), (cut,)))
    path = export_onnx(program, tmp_path / "m.onnx").path
    result = check_onnx(program, path)
    assert result.ok, result.failures
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds.count("SimplifiedLayerNormalization") == 2 and "ReduceMean" not in kinds and "ReduceL2" not in kinds


class Twice(nn.Module):
    """The result of one norm goes through another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            length = torch.linalg.vector_norm(x, 2, [-1], True)
            x = x * torch.rsqrt(length * length / 6 + 1e-6)
        return x


class Otherwise(nn.Module):
    """What looks like a norm and is none: another epsilon, another type."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "alpha":
            length = torch.linalg.vector_norm(x, 2, [-1], True)
            return x * torch.rsqrt(torch.add(length * length / 6, 0.1, alpha=5))
        length = torch.linalg.vector_norm(x, 2, [-1], True, dtype=torch.float64)
        return x * torch.rsqrt(length * length / 6 + 1e-6)


@pytest.mark.parametrize("module", [Twice(), Otherwise("alpha"), Otherwise("type")], ids=["twice", "alpha", "type"])
def test_norms_one_after_the_other_and_what_is_none(tmp_path: Path, module: nn.Module) -> None:
    program = capture(module, (torch.randn(3, 6),), {}, ({0: "batch"},))
    result = check_onnx(program, export_onnx(program, tmp_path / "m.onnx").path)
    assert result.ok, result.failures


@pytest.mark.parametrize("rank", [3, 4])
def test_a_mask_for_all_queries_is_one_for_each_where_attention_is_one_operator(rank: int, tmp_path: Path) -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            added = mask[(slice(None), *([None] * (rank - 2)))]
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=added)

    x = torch.randn(2, 5, 4) if rank == 3 else torch.randn(2, 3, 5, 4)
    program = capture(Masked(), (x, torch.rand(2, 5) < 0.7), {}, ({0: "b", rank - 2: "s"}, {0: "b", 1: "s"}))
    path = tmp_path / "m.onnx"
    assert export_onnx(program, path, opset=23).ops.get("Attention") == 1
    found = check_onnx(program, path, provider="cpu")
    assert found.ok, found.failures
