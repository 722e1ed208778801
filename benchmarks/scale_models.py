"""Shapes of known models with random weights, as directories of sharded safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxslim.graph.shards import index_of
from fxslim.graph.stores import WeightStore, write_safetensors

__all__ = ["LLAMA", "OPT_125M", "text_batches", "write_llama", "write_opt"]

OPT_125M: Mapping[str, int] = {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LLAMA: Mapping[str, int] = {
    "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4,
    "vocab_size": 8192, "max_position_embeddings": 512,
}  # fmt: skip
_SPREAD = 0.02  # of random weights


def write_opt(place: Path, layers: int | None = None, shard: str = "100MB") -> Path:
    """OPT-125M's shape, or with fewer layers, as transformers saves it."""
    import transformers

    torch.manual_seed(0)
    shape = {**OPT_125M, **({} if layers is None else {"num_hidden_layers": layers})}
    config = transformers.OPTConfig(**shape, word_embed_proj_dim=shape["hidden_size"])
    transformers.OPTForCausalLM(config).eval().save_pretrained(place, max_shard_size=shard)
    return place


def write_llama(place: Path, layers: int, dtype: torch.dtype = torch.float32, shape: Mapping[str, int] = LLAMA) -> Path:
    """A LLaMA-shaped model, one shard for each layer: written layer by layer, so that it may be larger than memory."""
    import transformers

    config = transformers.LlamaConfig(**shape, num_hidden_layers=layers, tie_word_embeddings=False, dtype=dtype)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(place)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    shards: dict[str, list[str]] = {}
    for name in model.state_dict():
        shards.setdefault(_shard(name), []).append(name)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    generator, places, total = torch.Generator().manual_seed(0), dict[str, str](), 0
    for number, names in enumerate(shards.values(), 1):
        file = place / f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _drawn(shapes[name], name, generator).to(dtype) for name in names}
        write_safetensors(file, WeightStore(tensors))
        places |= dict.fromkeys(names, file.name)
        total += sum(t.nbytes for t in tensors.values())
    index = index_of(place / "model.safetensors")
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}), encoding="utf-8")
    return place


def _shard(name: str) -> str:
    parts = name.split(".")
    return parts[2] if parts[:2] == ["model", "layers"] else "rest"


def _drawn(shape: tuple[int, ...], name: str, generator: torch.Generator) -> Tensor:
    if "norm" in name:
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * _SPREAD


def text_batches(names: tuple[str, ...], vocabulary: int, windows: int, tokens: int, rows: int) -> list[Any]:
    """Batches of `rows` windows of random tokens, in the order of a program's inputs."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for start in range(0, windows, rows):
        ids = torch.randint(0, vocabulary, (min(rows, windows - start), tokens), generator=generator)
        found.append(tuple(ids if name == "input_ids" else torch.ones_like(ids) for name in names))
    return found
