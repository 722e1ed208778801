"""A module of your own: cut its hidden neurons, prove the cut, and use what remains."""

from __future__ import annotations

import torch
from torch import nn

import fxslim


class Gated(nn.Module):
    """A gated perceptron: `up` and `gate` meet in a product, so their neurons must go together."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 64)
        self.gate = nn.Linear(16, 64)
        self.down = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))


def main() -> None:
    torch.manual_seed(0)
    model = Gated()
    program = fxslim.capture(model, (torch.randn(8, 16),), dynamic_shapes=({0: "batch"},))
    analysis = fxslim.analyze(program)
    for group in analysis.groups:
        print(group)
    print(analysis.explain("up.weight[0]", "gate.weight[0]"))

    plan = fxslim.make_plan(analysis, width=0.5)  # half of the positions of every exact group, by magnitude
    print(plan)

    proof = fxslim.prove(analysis, plan)  # float64, masked original against slim
    print(proof)
    assert proof.ok and proof.exact

    slim = fxslim.apply(analysis, plan)
    print(f"{program.parameters():,} parameters -> {slim.parameters():,}")
    module = slim.module()  # an nn.Module again, trainable, with the original's parameter names
    assert module.up.weight.shape == (32, 16)
    assert module(torch.randn(3, 16)).shape == (3, 4)


if __name__ == "__main__":
    main()
