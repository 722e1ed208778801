"""What the fuzzer found, each as the smallest module that failed: all that is asked of random modules holds of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.check import examine_module


def _example(*shape: int) -> Callable[..., tuple[Tensor, ...]]:
    def make(**_: int) -> tuple[Tensor, ...]:
        return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)),)

    return make


class WeightNormed(nn.Module):
    """`aten._weight_norm` had no rule."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up = nn.utils.parametrizations.weight_norm(nn.Linear(3, 6), dim=dim)
        self.down = nn.utils.parametrizations.weight_norm(nn.Linear(6, 2), dim=dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).relu())
        return y


class Padded(nn.Module):
    """`aten.pad` in a mode other than constant had no rule."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.up, self.down = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.pad(self.up(x), (1, 1, 1, 1), mode=self.mode))
        return y


class OneToken(nn.Module):
    """The rule of attention named a letter that it did not have where there is one key."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(2, 12), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], -1, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


FOUND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "weight norm by rows": (lambda: WeightNormed(0), (2, 3)),
    "weight norm by columns": (lambda: WeightNormed(1), (2, 3)),
    "reflected padding": (lambda: Padded("reflect"), (2, 3, 4, 4)),
    "replicated padding": (lambda: Padded("replicate"), (2, 3, 4, 4)),
    "circular padding": (lambda: Padded("circular"), (2, 3, 4, 4)),
    "attention to one token": (OneToken, (3, 1, 2)),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_module_that_failed_once_passes(name: str) -> None:
    make, shape = FOUND[name]
    torch.manual_seed(0)
    for seed in range(2):
        outcome = examine_module(make().eval(), _example(*shape), {}, seed, onnx=False)
        assert outcome.failure is None
        assert outcome.plans


class Talking(nn.Module):
    """Heads that a linear layer mixes, at a length that torch writes as `s0**2 // s0` when shapes are derived again."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.talk, self.out = nn.Linear(8, 75), nn.Linear(9, 9), nn.Linear(27, 4)
        self.emb = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        fused = self.qkv(self.emb(x).relu()).view(x.shape[0], -1, 3, 5, 5)[..., :3]
        q = fused[:, :, :, :-2].flatten(2, 3).transpose(1, 2)
        k, v = (
            fused[:, :, :, i].transpose(1, 2).unsqueeze(2).expand(-1, -1, 3, -1, -1).flatten(1, 2) for i in (-2, -1)
        )
        weights = F.softmax(q @ k.transpose(-2, -1), dim=-1)
        mixed = self.talk(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], 27))
        return y


def test_sizes_that_are_written_in_another_way_are_the_same() -> None:
    torch.manual_seed(0)

    def example(batch: int = 3, s: int = 4, **_: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, s, 8, generator=torch.Generator().manual_seed(0)),)

    outcome = examine_module(Talking().eval(), example, {"x": {0: "batch", 1: "s"}}, 1, onnx=False, thorough=True)
    assert outcome.failure is None, outcome.failure
