"""Draws nets: a few sources, a few layers on what there is, and an end for every value that nothing reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import prod

from tests.fuzz import layers_attention, layers_common, layers_image, layers_tokens  # noqa: F401  (fill the catalogue)
from tests.fuzz.grammar import LAYERS, Emitter, Invalid, Net, Node, Ref, Text, Value, apply_layer, write

__all__ = ["generate"]

_INPUTS = ("source_tokens", "source_ids", "source_image", "source_vector")
_TABLES = ("source_table_tokens", "source_table_image")
_ENDS = {
    "image": ("global_pool", "flatten_image", "global_pool", "to_tokens"),
    "tokens": ("head", "flattened", "pooled", "mlp", "head"),
    "vector": ("head", "head", "mlp"),
}
_LIMIT = 1500  # elements of one value, without the batch
_WIDEST = 48


class _Drawing:
    """A net while it is drawn."""

    def __init__(self, rng: random.Random, dynamic: str, length: int) -> None:
        self.rng = rng
        self.emitter = Emitter(dynamic, length, rng)
        self.nodes: list[Node] = []
        self.values: dict[Ref, Value] = {}
        self.read: set[Ref] = set()

    def add(self, name: str, inputs: Sequence[Ref] = ()) -> list[Ref]:
        """Adds a layer; returns its results, none where it does not fit."""
        before = self.emitter.saved()
        self.emitter.begin(len(self.nodes), {})
        try:
            made = apply_layer(self.emitter, name, [self.values[r] for r in inputs])
            if any(_too_large(v) for v in made):
                raise Invalid("too large")
        except Invalid:
            self.emitter = before
            return []
        refs = [(len(self.nodes), port) for port in range(len(made))]
        self.nodes.append(Node(name, tuple(inputs), tuple(sorted(self.emitter.chosen.items()))))
        self.values.update(zip(refs, made, strict=True))
        self.read.update(inputs)
        return refs

    def leaves(self) -> list[Ref]:
        """Values that nothing reads."""
        return [ref for ref in self.values if ref not in self.read]

    def some_layer(self, recent: Ref) -> list[Ref]:
        """One random layer, most often on the most recent value."""
        for _ in range(20):
            first = recent if self.rng.random() < 0.75 else self.rng.choice(list(self.values))
            kind = self.values[first].kind
            fitting = [f for f in LAYERS.values() if f.kinds and f.kinds[0] in (kind, "any")]
            found = self.rng.choices(fitting, [f.weight for f in fitting])[0]
            inputs = [first]
            if len(found.kinds) == 2:
                wanted = kind if found.kinds[1] == "any" else found.kinds[1]
                others = [r for r, v in self.values.items() if v.kind == wanted and r != first]
                if not others:
                    continue
                inputs.append(self.rng.choice(others))
            made = self.add(found.name, inputs)
            if made:
                return self._around(first, made)
        return []

    def _around(self, first: Ref, made: list[Ref]) -> list[Ref]:
        """Sometimes a residual sum around a layer that keeps the shape."""
        before, after = self.values[first], self.values[made[0]]
        if len(made) == 1 and before.shape == after.shape and self.rng.random() < 0.35:
            return self.add("join_sum", [made[0], first] if self.rng.random() < 0.5 else [first, made[0]]) or made
        return made

    def meet(self) -> None:
        """Values of one shape that nothing reads are joined, more often than not."""
        for _ in range(3):
            leaves = self.leaves()
            pairs = [(a, b) for a in leaves for b in leaves if a < b and self.values[a].kind == self.values[b].kind]
            if not pairs or self.rng.random() < 0.3:
                return
            a, b = self.rng.choice(pairs)
            self.add(self.rng.choice(("join_sum", "join_concat", "join_product", "join_concat")), [a, b])

    def end(self, ref: Ref) -> Ref:
        """What becomes of a value before it is returned; now and then nothing."""
        for _ in range(3):
            value = self.values[ref]
            if value.batch == "batch" and self.rng.random() < 0.12:
                return ref
            name = self.rng.choice(_ENDS[value.kind]) if value.batch == "batch" else _reducing(value)
            made = self.add(name, [ref])
            ref = made[0] if made else ref
            if name in ("head", "tied_head") and made:
                break
        return ref


def _reducing(value: Value) -> str:
    """For a value of weights alone: its length belongs to weights too, so something must sum over it."""
    return {"image": "flatten_image", "tokens": "flattened", "vector": "head"}[value.kind]


def _too_large(value: Value) -> bool:
    return value.width > _WIDEST or prod(s for s in value.shape if isinstance(s, int)) > _LIMIT


def generate(seed: int) -> Text:
    """The net of a seed, written."""
    rng = random.Random(seed)
    while True:
        text = _attempt(rng, seed)
        if text is not None:
            return text


def _attempt(rng: random.Random, seed: int) -> Text | None:
    dynamic = rng.choices(("none", "batch", "both"), (55, 28, 17))[0]
    length = rng.choice((3, 4, 2, 5, 6) if dynamic != "none" else (3, 4, 1, 2, 5, 6, 7))
    batch = rng.choice((2, 3) if dynamic != "none" else (2, 1, 3))
    drawing = _Drawing(rng, dynamic, length)
    recent = drawing.add(rng.choice(_INPUTS))[0]
    for _ in range(rng.choices((0, 1, 2), (70, 25, 5))[0]):
        drawing.add(rng.choice((*_INPUTS, *_TABLES)))
    for _ in range(rng.randint(1, 4)):
        made = drawing.some_layer(recent)
        recent = rng.choice(made) if made else recent
    drawing.meet()
    ends = [drawing.end(ref) for ref in drawing.leaves()]
    outputs = tuple(dict.fromkeys(ends))[:4]
    try:
        return write(Net(tuple(drawing.nodes), outputs, dynamic, batch, length, seed))
    except Invalid:
        return None
