"""Models on disk that are larger than what a test wants to hold of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.program import Program
from fxslim.graph.serialize import load, save

__all__ = ["tiny_llama", "token_data", "wide_layers"]


def tiny_llama(place: Path, layers: int = 2) -> Path:
    """Layers with grouped queries, in sharded safetensors."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).eval().save_pretrained(place, max_shard_size="20kB")
    return place


def token_data(path: Path, rows: int, tokens: int = 16) -> Path:
    """Random ids for `tiny_llama`, as an .npz file."""
    ids = np.random.default_rng(0).integers(0, 64, (rows, tokens))
    np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids))
    return path


class _Layer(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def wide_layers(folder: Path, placing: Callable[[Program, Path], None]) -> tuple[Analysis, list[tuple[Tensor]]]:
    """A stack of layers, saved and streamed, and batches whose activations, moments and solves all take megabytes."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(_Layer(256, 1024) for _ in range(6)))
    program = capture(layers.eval(), (torch.randn(2, 8, 256),), dynamic_shapes=({0: "batch", 1: "sequence"},))
    streamed = load(save(program, folder / "saved"), stream=True)
    placing(streamed, folder / "weights")
    return analyze(streamed), [(torch.randn(4, 64, 256),) for _ in range(8)]
