"""Analysis time against depth: ResNets, and GPT-2 XL's shape captured on the meta device. Capture is not counted.

python -m benchmarks.analysis_time [--out FILE]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.zoo.shim import shim_torchvision
from fxslim.api import analyze, capture
from fxslim.graph.program import Program


def gpt2(layers: int) -> Program:
    """GPT-2 XL's widths with `layers` layers, without weights."""
    import transformers

    config = transformers.GPT2Config(n_embd=1600, n_head=25, n_layer=layers, use_cache=False)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
        ids = torch.ones(2, 16, dtype=torch.long)
    dims = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    return capture(model, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, dims)


def resnet(blocks: list[int]) -> Program:
    """torchvision's bottleneck ResNet with the given number of blocks in its four stages."""
    shim_torchvision()
    from torchvision.models.resnet import Bottleneck, ResNet

    model: nn.Module = ResNet(Bottleneck, blocks)
    return capture(model, (torch.randn(2, 3, 64, 64),), {}, ({0: "batch"},))


def fastest(program: Program, repeats: int = 3) -> float:
    """Seconds of the fastest of several analyses."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        analyze(program)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = ["| model | nodes | groups | seconds | µs a node |", "|---|---|---|---|---|"]
    cases = {
        "ResNet-50": lambda: resnet([3, 4, 6, 3]),
        "ResNet-101": lambda: resnet([3, 4, 23, 3]),
        "ResNet-152": lambda: resnet([3, 8, 36, 3]),
        "GPT-2 XL, 12 layers": lambda: gpt2(12),
        "GPT-2 XL, 24 layers": lambda: gpt2(24),
        "GPT-2 XL, 48 layers": lambda: gpt2(48),
    }
    for name, make in cases.items():
        program = make()
        seconds, nodes = fastest(program), len(program.graph.nodes)
        lines.append(
            f"| {name} | {nodes} | {len(analyze(program).groups)} | {seconds:.2f} | {1e6 * seconds / nodes:.0f} |"
        )
        print(lines[-1], flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
