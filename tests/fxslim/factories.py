"""Models that the command line is tested with: `tests.fxslim.factories:classifier`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

CLASSIFIER = "tests.fxslim.factories:classifier"
OTHER = "tests.fxslim.factories:wider"
BROKEN = "tests.fxslim.factories:broken"
FEATURES, CLASSES = 8, 3


class Classifier(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


def made(hidden: int) -> tuple[Any, ...]:
    torch.manual_seed(0)
    return Classifier(hidden), (torch.randn(2, FEATURES),), None, ({0: "batch"},)


def classifier() -> tuple[Any, ...]:
    return made(32)


def wider() -> tuple[Any, ...]:
    return made(48)


def broken() -> tuple[Any, ...]:
    model, *rest = made(32)
    with torch.no_grad():
        model.first.weight[0, 0] = float("nan")
    return model, *rest


def write_data(path: Path, rows: int = 64, *, labels: bool = True) -> Path:
    """Inputs, and as labels what the classifier itself answers: its accuracy is 1."""
    model, *_ = classifier()
    x = torch.randn(rows, FEATURES)
    with torch.no_grad():
        answers = model(x).argmax(-1)
    arrays = {"x": x.numpy()} | ({"labels": answers.numpy()} if labels else {})
    np.savez(path, **arrays)
    return path


class Fused(nn.Module):
    """Attention whose queries, keys and values are one product, and a weight that is normalised in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(FEATURES, 3 * FEATURES), nn.Linear(FEATURES, FEATURES)
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, FEATURES // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return self.head(self.out(mixed).relu()).mean(1)


def fused() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return Fused(), (torch.randn(2, 5, FEATURES),), None, ({0: "batch"},)


class Bottleneck(nn.Module):
    """Neurons, and a linear bottleneck in which any basis will do."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.up = nn.Linear(FEATURES, 64), nn.Linear(64, 20), nn.Linear(20, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(self.enter(x).relu()))


def bottleneck() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return Bottleneck(), (torch.randn(2, FEATURES),), None, ({0: "batch"},)


class Repeated(nn.Module):
    """Three residual branches of one structure."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [nn.Sequential(nn.Linear(FEATURES, 24), nn.Tanh(), nn.Linear(24, FEATURES)) for _ in range(3)]
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


def repeated() -> tuple[Any, ...]:
    torch.manual_seed(0)
    return Repeated(), (torch.randn(2, FEATURES),), None, ({0: "batch"},)
