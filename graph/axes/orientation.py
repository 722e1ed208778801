"""Orientation: a change of basis A of an axis reaches one side of a contraction as A and the other as its inverse
transpose.

Where both sides turn out to be one and the same dimension of a value (queries and keys fused in one weight, a tied
embedding and head), only rotations are left, for which the two agree. Occurrences of an axis are coloured: an operator
that passes a letter keeps the colour, one that sums over it flips it; an axis whose colours contradict each other is
reported.
"""

from __future__ import annotations

import operator

from torch import fx

from fxslim.graph.axes.analysis import Axes, CallAxes
from fxslim.graph.axes.notation import Dims, Kind, letters_of
from fxslim.graph.axes.terms import Axis

__all__ = ["Orientations", "conflicting_orientations", "orientations"]

Place = tuple[fx.Node, int, int, Axis]  # a value, which of its tensors, a dimension, an axis on it


class Orientations:
    """Which places of an axis change with a basis as it does, and which with its inverse transpose. Union-find with
    parity."""

    def __init__(self) -> None:
        self._parent: dict[Place, tuple[Place, bool]] = {}
        self.conflicts: set[Axis] = set()

    def find(self, place: Place) -> tuple[Place, bool]:
        """The representative of a place and whether their colours differ."""
        path: list[Place] = []
        flip = False
        while place in self._parent:
            path.append(place)
            place = self._parent[place][0]
        for member in reversed(path):
            flip ^= self._parent[member][1]
            self._parent[member] = (place, flip)
        return place, flip

    def place(self, node: fx.Node, dim: int, axis: Axis) -> tuple[Place, bool]:
        """The representative of an axis on a dimension of a value, and whether their colours differ."""
        return self.find((*_source(node), dim, axis))

    def relate(self, a: Place, b: Place, flipped: bool) -> None:
        """Both have the same colour, or opposite ones."""
        (root_a, flip_a), (root_b, flip_b) = self.find(a), self.find(b)
        if root_a == root_b:
            if (flip_a ^ flip_b) != flipped:
                self.conflicts.add(a[3])
        else:
            self._parent[root_a] = (root_b, flip_a ^ flip_b ^ flipped)


def conflicting_orientations(axes: Axes) -> set[Axis]:
    """Axes that reach both sides of a contraction through one dimension of one value: of their symmetries only
    rotations remain."""
    return orientations(axes).conflicts


def orientations(axes: Axes) -> Orientations:
    """The orientations of all places of a program."""
    colours = Orientations()
    for call in axes.calls.values():
        _relate(axes, call, colours)
    return colours


def _relate(axes: Axes, call: CallAxes, colours: Orientations) -> None:
    operands = [(*_source(o), _dims_by_letter(d)) for o, d in zip(call.operands, call.rule.operands, strict=True)]
    made = [(call.node, i, _dims_by_letter(d)) for i, d in enumerate(call.rule.results)]
    for letter, expr in call.letters.items():
        kind = call.rule.kind(letter)
        if kind is Kind.FIXED:
            continue
        for axis in dict.fromkeys(axes.terms.atoms(expr)):
            places = [(node, index, d, axis) for node, index, dims in operands for d in dims.get(letter, ())]
            results = [(node, index, d, axis) for node, index, dims in made for d in dims.get(letter, ())]
            contraction = kind is Kind.REDUCE and len(places) == 2
            for place in (*places[1:], *results):
                colours.relate(places[0] if places else results[0], place, flipped=contraction)


def _source(node: fx.Node) -> tuple[fx.Node, int]:
    """The call that made a value and which of its results it is."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        index = node.args[1]
        assert isinstance(index, int)
        return node.args[0], index
    return node, 0


def _dims_by_letter(dims: Dims) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for d, pattern in enumerate(dims):
        for letter in dict.fromkeys(letters_of((pattern,))):
            found.setdefault(letter, []).append(d)
    return found
