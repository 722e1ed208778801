"""Pieces hold what fits, and a shelf gives back what was put there: values, layout and what they share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import fx

from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.pieces import Shelf, pieces, weights_of
from fxslim.graph.stores import Spill
from tests.models.modules import MLP
from tests.models.stored import stored


def nodes(count: int) -> list[fx.Node]:
    graph = fx.Graph()
    return [graph.placeholder(f"v{i}") for i in range(count)]


def test_pieces_hold_at_most_the_bound_or_one_call(tmp_path: Path) -> None:
    analysis = analyze(capture(MLP(), (torch.randn(2, 6),)))
    program = stored(analysis, tmp_path, piece=1).program
    every = list(program.graph.nodes)
    split = list(pieces(program, every))
    assert [n for piece in split for n in piece] == every
    reading = [piece for piece in split if weights_of(piece)]
    assert len(reading) > 1
    assert all(sum(bool(weights_of([n])) for n in piece) == 1 for piece in reading)
    assert list(pieces(stored(analysis, tmp_path, piece=1 << 20).program, [])) == []
    assert len(list(pieces(stored(analysis, tmp_path, piece=1 << 20).program, every))) == 1
    assert list(pieces(analysis.program, list(analysis.program.graph.nodes))) == [list(analysis.program.graph.nodes)]


def test_a_shelf_gives_back_values_with_their_layout(tmp_path: Path) -> None:
    a, b, c, d = nodes(4)
    base = torch.randn(6, 8)
    values = {a: base, b: base.t(), c: base[1:4, ::2], d: (base.expand(3, 6, 8), 7, torch.randn(2, 3).bfloat16())}
    shelf = Shelf(Spill(tmp_path, 1))
    shelf.put(dict(values))
    found = shelf.take([a, b, c, d])
    for node in (a, b, c):
        assert torch.equal(found[node], values[node]) and found[node].stride() == values[node].stride()
    assert found[d][0].stride() == values[d][0].stride() and found[d][1] == 7 and torch.equal(found[d][2], values[d][2])
    assert found[a].untyped_storage().data_ptr() == found[b].untyped_storage().data_ptr()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_taken_is_not_written_again_and_what_is_dead_goes(tmp_path: Path) -> None:
    a, b, c = nodes(3)
    shelf = Shelf(Spill(tmp_path, 1))
    shelf.put({a: torch.randn(5), b: torch.randn(5)})
    before = {f.name for f in tmp_path.iterdir()}
    values = shelf.take([a, b])
    values[c] = values[a].view(5, 1)
    dead = values.pop(b)
    shelf.put(values)
    del values, dead
    left = {f.name for f in tmp_path.iterdir()}
    assert len(left) == 1 and left < before
    assert torch.equal(shelf.value(c).flatten(), shelf.value(a))


def test_a_shelf_leaves_what_it_is_not_asked_for(tmp_path: Path) -> None:
    a, b = nodes(2)
    shelf = Shelf(Spill(tmp_path, 1))
    shelf.put({a: torch.ones(4), b: torch.zeros(4)})
    assert set(shelf.take([a])) == {a}
    shelf.put({})
    assert torch.equal(shelf.value(b), torch.zeros(4))
