"""The small models of `nets.py`, each exported once for all tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxslim.export.to_onnx import export_onnx
from fxslim.graph.capture import capture
from tests.export.nets import Attention, Exported, Mlp, ResidualConv, randomise

Build = Callable[..., Exported]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    def make(model: nn.Module, args: tuple[torch.Tensor, ...], dynamic: tuple[dict[int, str], ...]) -> Exported:
        program = capture(model, args, {}, dynamic)
        path = tmp_path_factory.mktemp(type(model).__name__) / "model.onnx"
        return Exported(model, program, export_onnx(program, path))

    return make


@pytest.fixture(scope="session")
def mlp(build: Build) -> Exported:
    torch.manual_seed(1)
    return build(randomise(Mlp()), (torch.randn(4, 12),), ({0: "batch"},))


@pytest.fixture(scope="session")
def conv(build: Build) -> Exported:
    torch.manual_seed(2)
    return build(randomise(ResidualConv()), (torch.randn(2, 3, 9, 9),), ({0: "batch"},))


@pytest.fixture(scope="session")
def attention(build: Build) -> Exported:
    torch.manual_seed(3)
    args = (torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64))
    dims = {0: "batch", 1: "sequence"}
    return build(randomise(Attention()), args, (dims, dims))
