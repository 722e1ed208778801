"""The modules of `nets`: small, of every layout that the analysis must understand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 7, bias=False), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 11, bias=False), nn.Linear(6, 11), nn.Linear(11, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm1, self.norm2 = nn.Linear(5, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down, self.leave = nn.Linear(8, 13), nn.Linear(13, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.down(F.gelu(self.up(self.norm1(x))))
        return self.leave(self.norm2(x))


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(c_out), nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.short = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.short = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.layers = nn.Sequential(Block(6, 6, 1), Block(6, 10, 2))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.max_pool2d(F.relu(self.bn(self.stem(x))), 2))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(13, 3)
        self.convs = nn.ModuleList([nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(9, 4, 3, padding=1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(5), nn.BatchNorm2d(9)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 7, 3, padding=1)
        self.up, self.leave = nn.ConvTranspose2d(7, 6, 2, stride=2), nn.Conv2d(11, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.enter(x))
        low = F.relu(self.inner(F.max_pool2d(skip, 2)))
        return self.leave(torch.cat([self.up(low), skip], 1))


class Grouped(nn.Module):
    """A grouped convolution, then pointwise, depthwise with batch norm, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mid = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2, padding=1)
        self.expand, self.depth, self.norm = nn.Conv2d(12, 9, 1), nn.Conv2d(9, 9, 3, groups=9), nn.BatchNorm2d(9)
        self.leave = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(F.relu(self.mid(F.relu(self.enter(x)))))
        return self.leave(F.relu(self.norm(self.depth(F.relu(x)))))


class Decoder2d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.ConvTranspose2d(5, 8, 3, stride=2), nn.ConvTranspose2d(8, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Attention(nn.Module):
    """Separate projections; the values' dimensions are of another size than the keys'."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 15), nn.Linear(15, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, 3, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 15))


class ViT(nn.Module):
    """Patches, class token, positions, one block whose q, k and v come from one projection by view and unbind."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 5)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.zeros(1, 5, 12))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(12), nn.LayerNorm(12), nn.LayerNorm(12)
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 17), nn.Linear(17, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        b, s, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, s, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, 12))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x)[:, 0])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Decoder(nn.Module):
    """Six query heads on two key-value heads, rotary embeddings, a causal mask of positions, RMS norms, gated FFN."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 10), nn.Linear(10, 20, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(10), nn.RMSNorm(10)
        self.q, self.k, self.v = (nn.Linear(10, n, bias=False) for n in (48, 16, 16))
        self.o = nn.Linear(48, 10, bias=False)
        self.gate, self.up, self.down = nn.Linear(10, 14), nn.Linear(10, 14), nn.Linear(14, 10)
        self.register_buffer("freq", 1.0 / 10.0 ** torch.arange(4.0), persistent=False)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids)
        b, s, _ = x.shape
        y = self.norm1(x)
        angles = torch.arange(s)[:, None] * self.freq
        angles = torch.cat([angles, angles], -1)
        q, k = (f(y).view(b, s, n, 8).transpose(1, 2) for f, n in ((self.q, 6), (self.k, 2)))
        q, k = rotate(q, angles.cos(), angles.sin()), rotate(k, angles.cos(), angles.sin())
        v = self.v(y).view(b, s, 2, 8).transpose(1, 2)
        k, v = (t[:, :, None].expand(b, 2, 3, s, 8).reshape(b, 6, s, 8) for t in (k, v))
        mask = torch.arange(s)[:, None] >= torch.arange(s)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(b, s, 48)
        x = x + self.o(y)
        y = self.norm2(x)
        return {"logits": self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))}


class Cached(nn.Module):
    """A step of attention with a key-value cache that goes in and comes out longer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 12, bias=False) for _ in range(4))
        self.o = nn.Linear(12, 8)

    def forward(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, s, _ = x.shape
        q, k, v = (f(x).view(b, s, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.o(y.transpose(1, 2).reshape(b, s, 12)), k, v


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(20, 9), nn.Linear(9, 12), nn.Linear(12, 9)
        self.head = nn.Linear(9, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(F.relu(self.up(x))))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 9, 3, padding=1), nn.Conv2d(9, 2, 1)
        self.down, self.up = nn.Conv2d(9, 4, 1), nn.Conv2d(4, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.enter(x))
        return self.leave(x * self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid())


class Shuffle(nn.Module):
    """Grouped convolutions with a channel shuffle between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1, groups=4), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        b, _, h, w = x.shape
        x = x.view(b, 3, 4, h, w).transpose(1, 2).reshape(b, 12, h, w)
        return self.c(F.relu(self.b(x)))


class LoRA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 6), nn.Linear(8, 5, bias=False), nn.Linear(5, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class TwoByTwo(nn.Module):
    """Two inputs, two outputs in a dictionary, one stream in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 9), nn.Linear(6, 9)
        self.small, self.big = nn.Linear(9, 2), nn.Linear(9, 7)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.left(left) + self.right(right))
        return {"small": self.small(x), "big": self.big(x)}


class Unused(MLP):
    """A layer that no output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(5, 5)


class Single(nn.Module):
    """One output channel, and a bottleneck of one in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 1, 1), nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Shared(nn.Module):
    """One weight used by two layers, at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.up, self.down, self.leave = (nn.Linear(a, b) for a, b in ((5, 7), (7, 11), (11, 7), (7, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(2):
            x = x + self.down(F.relu(self.up(x)))
        return self.leave(x)
