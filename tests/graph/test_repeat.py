"""Deep models: of equal layers a few are captured, the program is that of a whole capture, and unequal ones are not
taken for equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fxslim.graph.capture as capturing
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.placeholder import Placeholder
from fxslim.graph.program import Program
from fxslim.graph.repeat import CAPTURED, WORTH_IT
from fxslim.graph.stores import read_header
from fxslim.graph.verify import verify

DEPTH = WORTH_IT + 2
WIDTH = 4


class Block(nn.Module):
    """A residual layer that knows its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.up, self.down = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH, bias=False)
        self.register_buffer("shift", torch.randn(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x))).reshape(x.shape[0], x.shape[1], WIDTH) + self.shift


class Numbered(Block):
    """Its number enters what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (self.number + 1)


class Threshold(Block):
    """The last layers compute something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2 if self.number >= DEPTH - 2 else x)


class Attribute(Block):
    """An attribute that no run on these inputs shows."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.window = 100 if number % 2 else 200

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, -self.window :] if x.shape[1] > self.window else x)


class Net(nn.Module):
    """Layers between two others."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first, self.blocks, self.head = nn.Linear(3, WIDTH), nn.ModuleList(blocks), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]


class Collecting(Net):
    """Reads what every layer returns."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        every = [x := block(x) for block in self.blocks]
        return self.head(torch.stack(every).sum(0))  # type: ignore[no-any-return]


class Counting(Net):
    """Knows how many layers there are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / len(self.blocks)


class Reaching(Net):
    """Every layer also reads what the first one returned."""

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.blocks[0](self.first(x))
        for block in list(self.blocks)[1:]:
            x = block(x) + first
        return self.head(x)  # type: ignore[no-any-return]


def _special() -> list[nn.Module]:
    return [nn.Tanh(), *(Block(i) for i in range(1, DEPTH))]


def _tied() -> list[nn.Module]:
    blocks = [Block(i) for i in range(DEPTH)]
    for block in blocks[1:]:
        block.up.weight = blocks[0].up.weight
    return list(blocks)


def _tied_in_pairs() -> list[nn.Module]:
    blocks = [Block(i) for i in range(DEPTH)]
    for one, other in zip(blocks[::2], blocks[1::2], strict=True):
        other.up.weight = one.up.weight
    return list(blocks)


ALIKE = {
    "plain": lambda: Net([Block(i) for i in range(DEPTH)]),
    "special first": lambda: Net(_special()),
}
UNLIKE = {
    "numbered": lambda: Net([Numbered(i) for i in range(DEPTH)]),
    "threshold": lambda: Net([Threshold(i) for i in range(DEPTH)]),
    "attribute": lambda: Net([Attribute(i) for i in range(DEPTH)]),
    "tied": lambda: Net(_tied()),
    "tied in pairs": lambda: Net(_tied_in_pairs()),
    "collecting": lambda: Collecting([Block(i) for i in range(DEPTH)]),
    "counting": lambda: Counting([Block(i) for i in range(DEPTH)]),
    "reaching": lambda: Reaching([Block(i) for i in range(DEPTH)]),
    "shallow": lambda: Net([Block(i) for i in range(WORTH_IT - 1)]),
}
INPUT = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def on_disk(model: nn.Module, path: Path) -> nn.Module:
    """The model with placeholders for its parameters, tied ones tied."""
    made: dict[int, nn.Parameter] = {}
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, path)
    entries = read_header(path)
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            made[id(parameter)] = nn.Parameter(Placeholder(entries[name]))
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, made[id(parameter)])
    return model


def both(model: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Program, Program, int]:
    """The programs of the loaded model and of the one on disk, and how many layers were captured for the latter."""
    dims = ({0: "batch", 1: "length"},)
    whole = capture(model, (INPUT,), dynamic_shapes=dims)
    depths: list[int] = []
    export = capturing.export_strategies

    def counted(given: nn.Module, *args: object) -> object:
        depths.append(len(given.blocks))  # type: ignore[arg-type]
        return export(given, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(capturing, "export_strategies", counted)
    stored = on_disk(model, path)
    program = capture(stored, (INPUT,), dynamic_shapes=dims)
    assert len(stored.blocks) == len(list(stored.blocks.children())) >= WORTH_IT - 1  # type: ignore[arg-type, union-attr]
    return whole, program, depths[-1]


def same(a: Program, b: Program) -> None:
    """Both are one program, described alike, and compute the same."""
    assert a.fingerprint() == b.fingerprint()
    assert list(a.info.items()) == list(b.info.items())
    assert a.dynamic == b.dynamic
    assert set(a.weights) == set(b.weights)
    for x, y in zip(Evaluator(a).run([INPUT]), Evaluator(b).run([INPUT]), strict=True):
        assert torch.equal(x, y)
    stacks = [[n.meta.get("nn_module_stack") for n in program.graph.nodes] for program in (a, b)]
    assert stacks[0] == stacks[1]


@pytest.mark.parametrize("name", ALIKE)
def test_equal_layers_are_copied(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ALIKE[name]()
    whole, program, captured = both(model, tmp_path / "w.safetensors", monkeypatch)
    assert captured == CAPTURED + (name == "special first")
    same(whole, program)
    verify(program, whole)


@pytest.mark.parametrize("name", UNLIKE)
def test_others_are_captured_as_they_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = UNLIKE[name]()
    whole, program, captured = both(model, tmp_path / "w.safetensors", monkeypatch)
    assert captured == len(model.blocks)  # type: ignore[arg-type]
    same(whole, program)
