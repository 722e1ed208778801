"""Small models of every architecture that fxslim claims to serve, each with inputs of any batch and sequence size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from tests.models.modules import (
    MLP,
    Attention,
    Cached,
    Decoder,
    Decoder2d,
    DenseNet,
    Gated,
    Grouped,
    LoRA,
    Residual,
    ResNet,
    Shared,
    Shuffle,
    Single,
    SqueezeExcite,
    Tied,
    TwoByTwo,
    UNet,
    Unused,
    ViT,
)

__all__ = ["INTEGER", "NETS", "OWN", "TRANSFORMERS", "Captured", "Net", "captured"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Net:
    """A model, and how it is called: `call(batch, sequence)` gives args and kwargs."""

    build: Callable[[], nn.Module]
    call: Callable[[int, int], Call]
    dynamic: Any
    integer: bool = False  # nothing in it rounds on small integers: ReLU, sums, means over powers of two


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
    """One of the models above with weights that leave no path dead; captured once, so nobody may change it."""
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
    """Weights initialised to constants (heads to zero, norms to one) would hide what a wrong slice changes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 2.0)


def _integers(model: nn.Module) -> None:
    """Small integers everywhere, batch norms that divide by one: float64 then adds without rounding, in any order."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
                module.running_mean.copy_(torch.randint(-1, 2, module.running_mean.shape))
                module.running_var.fill_(1.0)
