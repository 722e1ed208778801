"""Random modules as data: a net is a small graph of layers, and its Python text is what is built, printed and shrunk.

A layer is one function. It asks its `Emitter` for every choice (`pick`), so that the same function draws a layer at
random and writes it again from recorded choices; where a recorded choice no longer fits, the simplest one counts.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "LAYERS",
    "Built",
    "Emitter",
    "Example",
    "Invalid",
    "Layer",
    "Net",
    "Node",
    "Text",
    "Value",
    "build",
    "layer",
    "write",
]

WIDTHS = (2, 3, 4, 1, 6, 7, 8, 9, 12, 15, 16, 17)
"""Sizes of axes, simple ones first: shrinking moves to the front."""


class Invalid(Exception):
    """The layer cannot be applied to these values."""


@dataclass(frozen=True)
class Value:
    """A tensor of the forward pass: its name, what it is, and its shape without the batch dimension.

    tokens: (length, width), image: (channels, height, width), vector: (width,). A dynamic length is a name.
    """

    code: str
    kind: str
    shape: tuple[int | str, ...]
    batch: str = "batch"  # "one" where it depends on weights alone

    @property
    def width(self) -> int:
        """The number of channels."""
        return int(self.shape[0] if self.kind == "image" else self.shape[-1])

    @property
    def axis(self) -> int:
        """The dimension of the channels."""
        return 2 if self.kind == "tokens" else 1

    @property
    def length(self) -> int:
        """The number of tokens, where it is static."""
        if self.kind != "tokens" or not isinstance(self.shape[0], int):
            raise Invalid("a static length is needed")
        return self.shape[0]

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of an image."""
        return int(self.shape[1]), int(self.shape[2])

    def now(self, code: str, width: int | None = None) -> Value:
        """The same kind of value under another name, with as many channels."""
        shape = list(self.shape)
        if width is not None:
            shape[0 if self.kind == "image" else -1] = width
        return replace(self, code=code, shape=tuple(shape))


Ref = tuple[int, int]
"""A value: the number of a node and of its result."""


@dataclass(frozen=True)
class Node:
    """A layer, what it is applied to, and the choices that were made."""

    layer: str
    inputs: tuple[Ref, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Net:
    """A module as data: layers in order, the values that it returns, and what of its inputs is dynamic."""

    nodes: tuple[Node, ...]
    outputs: tuple[Ref, ...]
    dynamic: str = "none"  # none / batch / both
    batch: int = 2
    length: int = 3
    seed: int = 0  # of the weights and inputs


@dataclass(frozen=True)
class Layer:
    """A layer of the catalogue; `kinds` are those of its operands (`any`: all of one kind, whichever)."""

    name: str
    kinds: tuple[str, ...]
    features: tuple[str, ...]
    emit: Callable[..., Value | tuple[Value, ...]]
    weight: float = 1.0  # how often it is drawn


LAYERS: dict[str, Layer] = {}

Emit = Callable[..., Value | tuple[Value, ...]]


def layer(*kinds: str, features: str = "", weight: float = 1.0) -> Callable[[Emit], Emit]:
    """Registers a layer for operands of `kinds`; `features` are words that the coverage table counts."""

    def register(emit: Emit) -> Emit:
        name = emit.__name__
        assert name not in LAYERS
        LAYERS[name] = Layer(name, kinds, tuple(features.split()), emit, weight)
        return emit

    return register


@dataclass
class Emitter:
    """Collects the text of a module while its layers are written one after the other."""

    dynamic: str
    static_length: int
    rng: random.Random | None = None
    arguments: dict[str, str] = field(default_factory=dict)  # name -> how its example is made
    specs: dict[str, dict[int, str]] = field(default_factory=dict)  # dynamic dimensions by argument
    init: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    features: set[str] = field(default_factory=set)
    linears: dict[tuple[int, int], list[str]] = field(default_factory=dict)  # modules that may be used again
    menus: dict[tuple[int, str], Sequence[Any]] = field(default_factory=dict)
    index: int = 0
    given: Mapping[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    fresh: Any = field(default_factory=itertools.count)

    def begin(self, index: int, options: Mapping[str, Any]) -> None:
        """What follows belongs to node `index`."""
        self.index, self.given, self.chosen = index, options, {}

    def pick(self, name: str, choices: Sequence[Any]) -> Any:
        """A choice: the recorded one, else a random one while a net is drawn, else the first."""
        if not choices:
            raise Invalid(f"no choice for {name}")
        value = self.chosen.get(name, self.given.get(name))
        if value is None or value not in choices:
            value = self.rng.choice(list(choices)) if self.rng is not None else choices[0]
        self.chosen[name] = value
        self.menus[self.index, name] = choices
        return value

    def width(self, name: str = "width", *, multiple: int = 1) -> int:
        """A size out of `WIDTHS`, those that `multiple` divides."""
        return int(self.pick(name, [w * multiple for w in WIDTHS if w * multiple <= 17] or [multiple]))

    def flag(self, name: str) -> bool:
        """A choice between no and yes."""
        return bool(self.pick(name, (False, True)))

    def uses(self, *features: str) -> None:
        """Notes features for the coverage table."""
        self.features.update(features)

    def module(self, name: str, text: str) -> str:
        """A submodule; returns how it is called."""
        self.init.append(f"self.n{self.index}_{name} = {text}")
        return f"self.n{self.index}_{name}"

    def parameter(self, name: str, *shape: int) -> str:
        """An unwrapped parameter."""
        return self.module(name, f"nn.Parameter(torch.ones({', '.join(map(str, shape))}))")

    def buffer(self, name: str, text: str) -> str:
        """A buffer with the value of an expression."""
        self.init.append(f'self.register_buffer("n{self.index}_{name}", {text})')
        return f"self.n{self.index}_{name}"

    def linear(self, name: str, inner: int, outer: int, *, bias: bool = True) -> str:
        """A linear layer, or one of an earlier node that fits."""
        known = self.linears.setdefault((inner, outer), [])
        if known and self.pick(f"{name}_again", (0, 0, 0, 1)):
            self.uses("shared module")
            return known[-1]
        found = self.module(name, f"nn.Linear({inner}, {outer}{'' if bias else ', bias=False'})")
        known.append(found)
        return found

    def let(self, text: str) -> str:
        """Assigns an expression; returns the name."""
        name = f"v{next(self.fresh)}"
        self.forward.append(f"{name} = {text}")
        return name

    def let_many(self, count: int, text: str) -> list[str]:
        """Unpacks an expression into `count` names."""
        names = [f"v{next(self.fresh)}" for _ in range(count)]
        self.forward.append(f"{', '.join(names)}{',' if count == 1 else ''} = {text}")
        return names

    def saved(self) -> Emitter:
        """A copy that shares nothing that grows: what an abandoned layer wrote is not in it."""
        return replace(
            self, arguments=dict(self.arguments), specs=dict(self.specs), init=list(self.init),
            forward=list(self.forward), features=set(self.features), menus=dict(self.menus),
            linears={k: list(v) for k, v in self.linears.items()},
        )  # fmt: skip

    def argument(self, kind: str, example: str, dims: dict[int, str]) -> str:
        """An input of the module; `dims` names the dimensions that are dynamic where the net says so."""
        name = f"x{len(self.arguments)}"
        self.arguments[name] = example
        wanted = {"none": (), "batch": ("batch",), "both": ("batch", "s", "t")}[self.dynamic]
        self.specs[name] = {d: n for d, n in dims.items() if n in wanted}
        return name


@dataclass(frozen=True)
class Text:
    """A written net: its Python text, the net with the choices that were really made, and what is known of it."""

    source: str
    net: Net
    features: frozenset[str]
    menus: Mapping[tuple[int, str], Sequence[Any]]
    specs: Mapping[str, Mapping[int, str]]


_FILL = '''
def fill(model: nn.Module, seed: int) -> nn.Module:
    """Random weights that keep values alive."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=random)
            if p.dim() > 1:
                fan = p[0].numel() if p.dim() > 3 else max(p.shape[1:])
                p.copy_(noise * fan**-0.5)
            else:
                p.copy_(noise * 0.3 + (0.0 if name.endswith("bias") else 1.0))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.3 * torch.randn(b.shape, generator=random))
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=random))
    return model.eval()
'''


def apply_layer(e: Emitter, name: str, operands: Sequence[Value]) -> tuple[Value, ...]:
    """Writes one layer.

    Raises:
        Invalid: it does not fit its operands.
    """
    found = LAYERS[name]
    kinds = [v.kind for v in operands]
    wanted = [kinds[0] if k == "any" and kinds else k for k in found.kinds]
    if kinds != wanted:
        raise Invalid(f"{name} takes {wanted}, not {kinds}")
    result = found.emit(e, *operands)
    e.uses(name, *found.features)
    return result if isinstance(result, tuple) else (result,)


def write(net: Net) -> Text:
    """The text of a net.

    Raises:
        Invalid: a layer does not fit what it is applied to.
    """
    e = Emitter(net.dynamic, net.length)
    values: list[tuple[Value, ...]] = []
    nodes = []
    for index, node in enumerate(net.nodes):
        e.begin(index, dict(node.options))
        operands = [_at(values, ref) for ref in node.inputs]
        values.append(apply_layer(e, node.layer, operands))
        nodes.append(replace(node, options=tuple(sorted(e.chosen.items()))))
    outputs = [_at(values, ref).code for ref in net.outputs]
    return finish(e, replace(net, nodes=tuple(nodes)), outputs)


def finish(e: Emitter, net: Net, outputs: Sequence[str]) -> Text:
    """The text of what an emitter has collected."""
    if not e.arguments or not outputs:
        raise Invalid("a module has an input and an output")
    if net.dynamic != "none":
        e.uses("dynamic batch", *(["dynamic length"] if net.dynamic == "both" else []))
    e.uses(*(["several outputs"] if len(outputs) > 1 else []), *(["several inputs"] if len(e.arguments) > 1 else []))
    returned = outputs[0] if len(outputs) == 1 else f"({', '.join(outputs)})"
    lines = [
        "import torch", "import torch.nn.functional as F", "from torch import nn", "", "",
        "class M(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in e.init), "",
        f"    def forward(self, {', '.join(e.arguments)}):",
        *(f"        {line}" for line in e.forward),
        f"        return {returned}",
        "", _FILL, "",
        f"def example(batch={net.batch}, s={net.length}, t={net.length + 1}, seed={net.seed}):",
        "    g = torch.Generator().manual_seed(seed + 1)",
        f"    return ({', '.join(e.arguments.values())},)",
        "", "",
        f"DYNAMIC = {dict(e.specs)!r}",
        f"SEED = {net.seed}",
    ]  # fmt: skip
    return Text("\n".join(lines) + "\n", net, frozenset(e.features), dict(e.menus), dict(e.specs))


def _at(values: Sequence[tuple[Value, ...]], ref: Ref) -> Value:
    node, port = ref
    if node >= len(values) or port >= len(values[node]):
        raise Invalid(f"there is no value {ref}")
    return values[node][port]


class _Source(importlib.abc.InspectLoader):
    """Imports a text as a module; the text is found again in tracebacks."""

    def __init__(self, text: str) -> None:
        self.text = text

    def get_source(self, fullname: str) -> str:
        return self.text


Example = Callable[..., tuple[Tensor, ...]]
"""Makes inputs; takes `batch`, `s`, `t` and `seed`, all with defaults."""


@dataclass(frozen=True)
class Built:
    """A module with all that is needed to capture and run it."""

    model: nn.Module
    example: Example
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)  # names of dimensions by argument

    @property
    def dynamic_shapes(self) -> dict[str, dict[int, str]] | None:
        """For `capture`."""
        return {n: dict(dims) for n, dims in self.dynamic.items()} if any(self.dynamic.values()) else None


def load(source: str, name: str = "fuzzed") -> ModuleType:
    """A Python text as a module."""
    loader = _Source(source)
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def build(text: Text) -> Built:
    """The module of a text, its weights filled from the net's seed."""
    module = load(text.source)
    return Built(module.fill(module.M(), text.net.seed), module.example, text.specs)


def seeded(seed: int) -> torch.Generator:
    """A generator that starts at `seed`."""
    return torch.Generator().manual_seed(seed)
