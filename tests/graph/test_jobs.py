"""Jobs against the counted multiply-accumulates: their sizes must say the same, whole and slim."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.costs import CostModel, LowRank
from fxslim.graph.jobs import Job, find_jobs
from fxslim.graph.latency import TimeModel
from fxslim.passes.planner import make_plan
from tests.models.nets import captured

NETS = ("mlp", "gated", "resnet", "unet", "grouped", "conv_transpose", "attention", "vit", "decoder", "lora", "shared")


class MacsClock:
    """Says of every job how many multiply-accumulates it has, computed from its sizes alone."""

    fixed = 0.0

    def __init__(self, inputs: tuple[torch.Tensor, ...]) -> None:
        self.inputs = inputs

    def nanoseconds(self, job: Job, whole: tuple[int, ...], sizes: tuple[int, ...]) -> float:
        assert len(whole) == len(sizes)
        if job.kind in ("matmul", "product"):
            return math.prod(sizes)
        if job.kind == "attention":
            b, q, t, e, v = sizes
            return b * q * t * (e + v)
        if job.kind == "conv":
            rank, transposed, stride, padding, dilation = job.about
            rows, inputs, outputs, groups, *rest = sizes
            places, kernel = rest[:rank], rest[rank:]
            moved = places if transposed else [
                (p + 2 * q - d * (k - 1) - 1) // s + 1
                for p, q, d, k, s in zip(places, padding, dilation, kernel, stride, strict=True)
            ]  # fmt: skip
            return math.prod([rows, inputs, outputs, groups, *moved, *kernel])
        return 0.0


def model(axes: object, inputs: tuple[torch.Tensor, ...]) -> TimeModel:
    return TimeModel(axes, MacsClock(inputs))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETS)
def test_sizes_multiply_to_the_counted_macs_whole_and_cut(name: str) -> None:
    analysis = captured(name).analysis
    times, costs = model(analysis.axes, analysis.program.example_inputs), CostModel(analysis.axes)
    assert times.nanoseconds(None, None) == costs.macs() > 0
    plan = make_plan(analysis, width=0.5)
    counts = {analysis.group(cut.group).axis: cut.count for cut in plan.cuts}
    assert times.nanoseconds(counts, None) == costs.macs(counts) < costs.macs()


def test_a_pair_of_a_linear_map_and_of_a_strided_convolution_counts_as_its_two_factors() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(12 * 16, 30))
    analysis = analyze(capture(module, (torch.randn(2, 8, 8, 8),)))
    times = model(analysis.axes, analysis.program.example_inputs)
    ranks = {"0.weight": LowRank(0, 3), "2.weight": LowRank(0, 5)}
    conv = 2 * 16 * (8 * 3 * 9 + 3 * 12)
    linear = 2 * (192 * 5 + 5 * 30)
    assert times.nanoseconds(None, ranks) == conv + linear
    assert CostModel(analysis.axes).macs(None, ranks) == conv + linear


def test_sizes_are_those_of_the_clocks_inputs() -> None:
    module = nn.Linear(6, 5)
    analysis = analyze(capture(module, (torch.randn(2, 6),), dynamic_shapes=({0: "batch"},)))
    assert model(analysis.axes, (torch.randn(2, 6),)).nanoseconds(None, None) == 2 * 30
    assert model(analysis.axes, (torch.randn(7, 6),)).nanoseconds(None, None) == 7 * 30


def test_what_a_runtime_folds_or_fuses_is_no_job_of_its_own() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.GELU()).eval()
    jobs = find_jobs(analyze(capture(module, (torch.randn(2, 3, 6, 6),))).axes)
    assert [(j.kind, j.about[0]) for j in jobs] == [("conv", 2), ("pointwise", "Gelu")]


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(3, 5), nn.Conv2d(4, 6, (3, 1), groups=2)

    def forward(self, x: torch.Tensor, image: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.linear(x), self.conv(image), torch.bmm(q[0], k[0].transpose(1, 2)), attended


def test_every_size_is_in_its_place() -> None:
    inputs = (
        torch.randn(2, 7, 3), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 5, 6), torch.randn(2, 4, 11, 6),
        torch.randn(2, 4, 11, 13),
    )  # fmt: skip
    times = model(analyze(capture(Products(), inputs)).axes, inputs)
    found = {job.kind + str(job.weight or ""): sizes for job, sizes in times.whole() if job.kind != "pointwise"}
    assert found == {
        "matmullinear.weight": (1, 14, 3, 5),
        "convconv.weight": (2, 2, 3, 2, 9, 8, 3, 1),
        "matmul": (4, 5, 6, 11),
        "attention": (8, 5, 11, 6, 13),
    }
