"""Train a small vision transformer on scikit-learn's handwritten digits, as a model for benchmarks.

    python examples/train_digits_vit.py --out build/digits-vit
    python -m benchmarks.quality build/digits-vit --of macs

Leaves a saved program, `calib.npz` (training images) and `valid.npz` (held-out ones, as of the bundled classifier), and
`training.json` with the held-out accuracy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_digits_resnet import BATCH, SEED, digits, save_data, shifted

import fxslim

WIDTH, HEADS, LAYERS, PATCH = 96, 4, 4, 2


class Block(nn.Module):
    """Attention and a feed-forward part, each behind a norm and beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(batch, length, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches of 2 x 2, learned positions, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (8 // PATCH) ** 2 + 1, WIDTH))
        self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(self.norm(x[:, 0]))}


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images whose largest logit is their label."""
    model.eval()
    hits = (model(images)["logits"].argmax(-1) == labels).float().mean()
    model.train()
    return float(hits)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW with a cosine schedule over `epochs` passes."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(shifted(images[index], generator))["logits"], labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1} loss {float(loss.detach()):.4f}", flush=True)


def main() -> None:
    """Trains, saves, and states the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=150)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    images, labels, held_images, held_labels = digits()
    model = VisionTransformer()
    train(model, images, labels, options.epochs)
    facts = {
        "architecture": f"ViT, {LAYERS} layers, width {WIDTH}, {HEADS} heads, patches of {PATCH} x {PATCH}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": f"{len(images)} images, {options.epochs} epochs, shifts by one pixel, seed {SEED}",
        "held_out_accuracy": round(accuracy(model, held_images, held_labels), 5),
    }
    program = fxslim.capture(model.eval(), (images[:8],), dynamic_shapes=({0: "batch"},))
    fxslim.save(program, options.out)
    save_data(options.out, (images, labels), (held_images, held_labels))
    (options.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
