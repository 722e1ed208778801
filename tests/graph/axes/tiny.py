"""Small modules, one idea each, whose groups are known by hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture


class ResidualMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(F.silu(self.up(self.norm(x)))))


class GatedFFN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 12, bias=False), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Multi-head attention with separate projections; value dimensions of another size than the keys'."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 15), nn.Linear(15, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, 3, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 15))


class RotaryGQA(nn.Module):
    """Six query heads on two key-value heads, rotary embeddings from a table of frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, n, bias=False) for n in (48, 16, 16, 8))
        self.o = nn.Linear(48, 8, bias=False)
        self.register_buffer("freq", torch.arange(1.0, 5.0))

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = torch.cat([-x[..., 4:], x[..., :4]], -1)
        return x * cos + half * sin

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        angles = torch.arange(s).to(x.dtype)[:, None] * self.freq
        angles = torch.cat([angles, angles], -1)
        cos, sin = angles.cos(), angles.sin()
        q = self.rotate(self.q(x).view(b, s, 6, 8).transpose(1, 2), cos, sin)
        k = self.rotate(self.k(x).view(b, s, 2, 8).transpose(1, 2), cos, sin)
        v = self.v(x).view(b, s, 2, 8).transpose(1, 2)
        k, v = (t[:, :, None].expand(b, 2, 3, s, 8).reshape(b, 6, s, 8) for t in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 48))


class FusedBySplit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(8, 36), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (t.view(b, s, 3, 4).transpose(1, 2) for t in self.qkv(x).split(12, -1))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 12))


class FusedByView(FusedBySplit):
    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 12))


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mid = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.mid(x))


class Dense(nn.Module):
    """Concatenated features, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.a(x))
        return self.c(torch.cat([first, F.relu(self.b(first))], 1))


class UNet(nn.Module):
    """A skip connection around a smaller scale."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(6, 5, 2, stride=2), nn.Conv2d(9, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.gelu(self.enter(x))
        return self.leave(torch.cat([self.up(F.gelu(self.inner(F.max_pool2d(skip, 2)))), skip], 1))


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        b, _, h, w = x.shape
        return self.b(F.relu(x.view(b, 3, 4, h, w).transpose(1, 2).reshape(b, 12, h, w)))


class Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).flatten(1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid())


class Separable(nn.Module):
    """Pointwise, depthwise with batch norm, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.norm = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
        self.project = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu6(self.norm(self.depth(F.relu6(self.expand(x))))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mid, self.leave = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.mid(F.relu(self.enter(x)))))


class LoRA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 3, bias=False), nn.Linear(3, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class Cache(nn.Module):
    """One step of attention with a key-value cache that goes in and comes out longer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 12, bias=False) for _ in range(4))
        self.o = nn.Linear(12, 8)

    def forward(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 12)), k, v


class Unknown(nn.Module):
    """An operator without a rule between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(torch.linalg.cholesky_ex(self.a(x) @ self.a(x).mT + torch.eye(8))[0])))


def _images() -> tuple[Tensor, ...]:
    return (torch.randn(2, 3, 8, 8),)


def _tokens() -> tuple[Tensor, ...]:
    return (torch.randn(2, 5, 8),)


MODELS: dict[type[nn.Module], Callable[[], tuple[Tensor, ...]]] = {
    ResidualMLP: lambda: (torch.randn(2, 3, 6),), GatedFFN: lambda: (torch.randn(2, 8),),
    Attention: _tokens, RotaryGQA: _tokens,
    FusedBySplit: _tokens, FusedByView: _tokens, TiedEmbedding: lambda: (torch.tensor([[1, 2, 3], [4, 5, 6]]),),
    Dense: _images, UNet: _images, Shuffle: _images, Flatten: _images, SqueezeExcite: _images, Separable: _images,
    Grouped: _images, LoRA: _tokens,
    Cache: lambda: (torch.randn(2, 1, 8), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)),
    Unknown: lambda: (torch.randn(8, 6),),
}  # fmt: skip

_DONE: dict[type[nn.Module], Analysis] = {}


def analysis_of(model: type[nn.Module]) -> Analysis:
    """The groups of one of the models above; captured once."""
    if model not in _DONE:
        torch.manual_seed(0)
        _DONE[model] = analyze(capture(model(), MODELS[model]()))
    return _DONE[model]
