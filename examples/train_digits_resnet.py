"""Train the bundled image classifier on the handwritten digits that come with scikit-learn.

    python examples/train_digits_resnet.py --out fxslim/models/digits-resnet --epochs 40

The 1,797 images of 8 x 8 pixels with values 0 .. 16 are divided by 16. Of each class, a fifth is held out, drawn with
a fixed seed. Leaves `model.safetensors` (float32), `config.json`, `calib.npz` (training images) and `valid.npz` (the
held-out ones) with the arrays `x` [n, 1, 8, 8] float32 and `labels` [n] int64, and `training.json` with the held-out
accuracy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

from fxslim.models.digits_resnet import DigitsResNet

SEED = 0
HELD_OUT_SHARE = 0.2
CALIBRATION_IMAGES = 512
BATCH = 64
CONFIG = {"widths": [32, 64, 96], "blocks": 2, "classes": 10}


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images [n, 1, 8, 8] and labels [n] of the training part, then of the held-out part."""
    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=HELD_OUT_SHARE, random_state=SEED, stratify=labels)
    images, held_images, labels, held_labels = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    return images, labels, held_images, held_labels


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch moved by up to one pixel in each direction, the border filled with background."""
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    return F.pad(images, (1, 1, 1, 1))[:, :, dy : dy + images.shape[2], dx : dx + images.shape[3]]


@torch.no_grad()
def accuracy(model: DigitsResNet, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the images whose largest logit is their label."""
    model.eval()
    hits = (model(images).argmax(-1) == labels).float().mean()
    model.train()
    return float(hits)


def train(model: DigitsResNet, images: torch.Tensor, labels: torch.Tensor, epochs: int) -> None:
    """SGD with momentum and a cosine schedule over `epochs` passes; reports the loss of every tenth."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        total = 0.0
        for index in torch.randperm(len(images), generator=generator).split(BATCH):
            logits = model(shifted(images[index], generator))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(index)
        schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1} loss {total / len(images):.4f}", flush=True)


def save_data(
    out: Path, training: tuple[torch.Tensor, torch.Tensor], held_out: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Leaves `calib.npz`, some of the training images, and `valid.npz`, all held-out ones."""
    (images, labels), (held_images, held_labels) = training, held_out
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))[:CALIBRATION_IMAGES]
    np.savez_compressed(out / "calib.npz", x=images[chosen].numpy(), labels=labels[chosen].numpy())
    np.savez_compressed(out / "valid.npz", x=held_images.numpy(), labels=held_labels.numpy())


def main() -> None:
    """Trains, saves, reads back what was saved and states the accuracy of that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    images, labels, held_images, held_labels = digits()
    model = DigitsResNet(**CONFIG)  # type: ignore[arg-type]
    train(model, images, labels, options.epochs)

    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "model.safetensors")
    model.load_state_dict(load_file(out / "model.safetensors"))
    facts = {
        "architecture": "residual network, stem 32, stages 32/64/96 of 2 blocks, batch norm, global average",
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": "scikit-learn load_digits (UCI optical recognition of handwritten digits), 8 x 8, divided by 16",
        "training": f"{len(images)} images, {options.epochs} epochs, shifts by one pixel, seed {SEED}",
        "held_out_accuracy": round(accuracy(model, held_images, held_labels), 5),
        "protocol": f"{len(held_images)} held-out images of valid.npz, one fifth of each class",
    }
    config = {"model_type": "digits-resnet", **CONFIG}
    save_data(out, (images, labels), (held_images, held_labels))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
