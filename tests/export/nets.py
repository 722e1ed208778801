"""Three small models: a perceptron, a residual convolution with a batch norm, one layer of attention."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fxslim.export.model_file import OnnxFile
from fxslim.graph.program import Program


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    program: Program
    file: OnnxFile

    def copy(self, folder: Path) -> Path:
        """A copy of the file (and its data) that a test may damage."""
        target = folder / self.file.path.name
        shutil.copy(self.file.path, target)
        return target


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(12, 40)
        self.down = nn.Linear(40, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class ResidualConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        return self.head((x + self.branch(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embed(input_ids)
        batch, length, width = hidden.shape
        q, k, v = self.qkv(self.norm(hidden)).view(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = attention_mask[:, None, None, :].bool()
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return {"hidden": hidden + self.out(mixed.transpose(1, 2).reshape(batch, length, width))}


def randomise(model: nn.Module) -> nn.Module:
    """Distinct values everywhere: equal weights (all zeros, all ones) would be stored once, under one name."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor.data, 0.1, 0.9).sub_(0.3 * (tensor.dim() > 1))
    return model.eval()
