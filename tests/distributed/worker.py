"""What each process of a team does in the tests: plans and slim weights by several methods, written to a folder.

Run by `torch.distributed.run`, or alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fxslim.api import analyze, capture, compress, load, save
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.stores import Spill
from fxslim.passes import enough
from fxslim.passes.methods import settings
from fxslim.passes.team import current_team

WIDTH, HEADS, INNER = 12, 3, 20
KEEP = 0.7
IMAGES, STREAMED, FEW = " of images", " on disk", " surveyed on two batches"
METHODS = (
    "fasp of images",
    "best",
    "best on disk",
    "best surveyed on two batches",
    "modegpt surveyed on two batches",
    "fasp",
    "flap",
    "osscar",
    "owl",
    "pca",
    "asvd",
    "shortgpt",
    "foldgpt",
)


class Block(nn.Module):
    """Attention and a feed-forward branch, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        y = self.first(x)
        q, k, v = (f(y).view(b, s, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, WIDTH)
        x = x + self.o(attended)
        return x + self.down(F.gelu(self.up(self.second(x))))


@cache
def model() -> Analysis:
    """The same model in every process."""
    torch.manual_seed(0)
    layers = nn.Linear(5, WIDTH), Block(), Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)
    module = nn.Sequential(*layers).double().eval()
    return analyze(capture(module, (torch.randn(2, 7, 5, dtype=torch.float64),), dynamic_shapes=({0: "b", 1: "s"},)))


def data(count: int = 19) -> list[list[Tensor]]:
    """Batches of unlike shapes; nineteen, so that no number of processes divides them."""
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(2 + i % 3, 6 + i % 4, 5, generator=generator, dtype=torch.float64)] for i in range(count)]


@cache
def images() -> Analysis:
    """Convolutions with a batch norm between, whose statistics are estimated anew."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ]
    module = nn.Sequential(*layers).double()
    for i in range(4):
        module(2 * torch.randn(4, 3, 9, 9, dtype=torch.float64) + i)  # the norm has seen data
    example = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    return analyze(capture(module.eval(), (example,), dynamic_shapes=({0: "b"},)))


def pictures(count: int = 19) -> list[list[Tensor]]:
    """As `data`, for `images`."""
    generator = torch.Generator().manual_seed(1)
    return [[torch.randn(2 + i % 3, 3, 9, 9, generator=generator, dtype=torch.float64)] for i in range(count)]


def on_disk(analysis: Analysis, folder: Path) -> Analysis:
    """The same with weights that are read when they are used, and spilled where they are replaced."""
    streamed = load(save(analysis.program, folder / "saved"), stream=True)
    (folder / "spill").mkdir()
    streamed.weights.spill = Spill(folder / "spill")
    return analyze(streamed)


@contextmanager
def few() -> Iterator[None]:
    """A block in which a survey looks at two batches: of three processes one has none."""
    with mock.patch.multiple(enough, LEAST=1, FEWEST=2, ENOUGH=0.0):
        yield


@mock.patch.object(enough, "LEAST", 100)  # rows: a survey leaves out batches of these few, too
def work(folder: Path) -> None:
    """Writes the plan and the slim weights of every method."""
    team = current_team()
    for method in METHODS:
        chosen = settings(method.removesuffix(IMAGES).removesuffix(STREAMED).removesuffix(FEW), data=True)
        analysis, batches = (images(), pictures()) if method.endswith(IMAGES) else (model(), data())
        if method.endswith(STREAMED):
            analysis = on_disk(analysis, folder / f"disk-{team.rank}")
        keep = {"foldgpt": 0.85, "shortgpt": 0.85, "pca": 0.65, "fasp of images": 0.4633}.get(method, KEEP)
        with few() if method.endswith(FEW) else nullcontext():
            plan, applied = compress(analysis, keep, calibration=batches, restore=chosen.restore, **chosen.options())
        norms = () if applied.restoration is None else applied.restoration.norms
        seen = [[norm.node, norm.values, norm.before, norm.after] for norm in norms]
        (folder / f"{method}.{team.rank}.norms").write_text(json.dumps(seen), encoding="utf-8")
        (folder / f"{method}.{team.rank}.json").write_text(plan.to_json(), encoding="utf-8")
        save_file(
            {k: v.contiguous().clone() for k, v in applied.program.weights.items()}, folder / f"{method}.{team.rank}.st"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    work(Path(sys.argv[1]))
    dist.destroy_process_group()
