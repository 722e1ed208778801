"""Small models of every architecture that fxslim claims to serve, each with inputs of any batch and sequence size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture

__all__ = ["INTEGER", "NETS", "OWN", "TRANSFORMERS", "Captured", "Net", "captured"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Net:
    """A model, and how it is called: `call(batch, sequence)` gives args and kwargs."""

    build: Callable[[], nn.Module]
    call: Callable[[int, int], Call]
    dynamic: Any
    integer: bool = False  # nothing in it rounds on small integers: ReLU, sums, means over powers of two


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
    """Six query heads on two key-value heads, rotary embeddings, a causal mask made of positions, RMS norms, gated FFN."""

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


def _features(width: int) -> Callable[[int, int], Call]:
    return lambda b, s: ((torch.randn(b, s, width),), {})


def _images(channels: int, side: int) -> Callable[[int, int], Call]:
    return lambda b, s: ((torch.randn(b, channels, side, side),), {})


def _ids(b: int, s: int) -> Call:
    return (torch.randint(0, 20, (b, s)),), {}


def _step(b: int, s: int) -> Call:
    return (torch.randn(b, 2, 8), torch.randn(b, 3, s, 4), torch.randn(b, 3, s, 4)), {}


def _pair(b: int, s: int) -> Call:
    return (torch.randn(b, s, 4),), {"right": torch.randn(b, s, 6)}


_BS = ({0: "batch", 1: "sequence"},)
_B = ({0: "batch"},)
_PAST = {0: "batch", 2: "past"}

OWN: dict[str, Net] = {
    "mlp": Net(MLP, _features(6), _BS, integer=True),
    "gated": Net(Gated, _features(6), _BS),
    "residual": Net(Residual, _features(5), _BS),
    "resnet": Net(ResNet, _images(3, 8), _B, integer=True),
    "densenet": Net(DenseNet, _images(3, 4), _B, integer=True),
    "unet": Net(UNet, _images(3, 8), _B, integer=True),
    "grouped": Net(Grouped, _images(3, 6), _B, integer=True),
    "conv_transpose": Net(Decoder2d, _images(5, 3), _B, integer=True),
    "attention": Net(Attention, _features(8), _BS),
    "vit": Net(ViT, _images(3, 8), _B),
    "decoder": Net(Decoder, _ids, _BS),
    "cached": Net(Cached, _step, ({0: "batch"}, _PAST, _PAST)),
    "tied": Net(Tied, _ids, _BS, integer=True),
    "squeeze_excite": Net(SqueezeExcite, _images(3, 6), _B),
    "shuffle": Net(Shuffle, _images(3, 4), _B, integer=True),
    "lora": Net(LoRA, _features(8), _BS, integer=True),
    "two_by_two": Net(TwoByTwo, _pair, {"left": _BS[0], "right": _BS[0]}, integer=True),
    "unused": Net(Unused, _features(6), _BS, integer=True),
    "single": Net(Single, _images(1, 5), _B, integer=True),
    "shared": Net(Shared, _features(5), _BS, integer=True),
}


def _text(b: int, s: int) -> Call:
    return (), {"input_ids": torch.randint(0, 50, (b, s)), "attention_mask": torch.ones(b, s, dtype=torch.long)}


def _both_texts(b: int, s: int) -> Call:
    return (), {**_text(b, s)[1], "decoder_input_ids": torch.randint(0, 50, (b, s + 2))}


def _hf(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers  # seconds to import: only where such a model is tested

        return getattr(transformers, model)(getattr(transformers, config)(**{"use_cache": False, **options}))

    return build


_TEXT = {"input_ids": _BS[0], "attention_mask": _BS[0]}
_SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 22,
    "max_position_embeddings": 32,
}  # fmt: skip
_GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 4, "n_positions": 32}
_OPT = {**_SMALL, "num_hidden_layers": 2, "ffn_dim": 22, "word_embed_proj_dim": 16}
_T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 22, "num_layers": 1, "num_heads": 4}

TRANSFORMERS: dict[str, Net] = {
    "bert": Net(_hf("BertModel", "BertConfig", **_SMALL), _text, _TEXT),
    "gpt2": Net(_hf("GPT2LMHeadModel", "GPT2Config", **_GPT2), _text, _TEXT),
    "opt": Net(_hf("OPTForCausalLM", "OPTConfig", **_OPT), _text, _TEXT),
    "llama": Net(_hf("LlamaForCausalLM", "LlamaConfig", **_SMALL, num_key_value_heads=2), _text, _TEXT),
    "qwen3": Net(_hf("Qwen3ForCausalLM", "Qwen3Config", **_SMALL, num_key_value_heads=2, head_dim=4), _text, _TEXT),
    "neox": Net(_hf("GPTNeoXForCausalLM", "GPTNeoXConfig", **_SMALL, rotary_pct=0.5), _text, _TEXT),
    "t5": Net(
        _hf("T5ForConditionalGeneration", "T5Config", **_T5),
        _both_texts,
        {**_TEXT, "decoder_input_ids": {0: "batch", 1: "target"}},
    ),
}

NETS = {**OWN, **TRANSFORMERS}
INTEGER = tuple(name for name, net in OWN.items() if net.integer)


@dataclass(frozen=True)
class Captured:
    """A captured net with its groups and the module that it was made from."""

    net: Net
    model: nn.Module
    analysis: Analysis


@cache
def captured(name: str, integer: bool = False) -> Captured:
    """One of the models above with weights that leave no path dead; captured once. Nobody may change what it returns."""
    net = NETS[name]
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = net.build().eval()
    (_integers if integer else _noise)(model)
    args, kwargs = net.call(2, 5)
    if integer:
        args = tuple(a.mul(2).round() for a in args) if args[0].is_floating_point() else args
        kwargs = {k: v.mul(2).round() for k, v in kwargs.items()}
    analysis = analyze(capture(model, args, kwargs, net.dynamic))
    torch.random.set_rng_state(state)
    return Captured(net, model, analysis)


def _noise(model: nn.Module) -> None:
    """Weights that were initialised to constants (heads to zero, norms to one) would hide what a wrong slice changes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2.0)


def _integers(model: nn.Module) -> None:
    """Small integers everywhere, and batch norms that divide by one: float64 then adds without rounding, in any order."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
                module.running_mean.copy_(torch.randint(-1, 2, module.running_mean.shape))
                module.running_var.fill_(1.0)
