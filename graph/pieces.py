"""Pieces of a graph whose weights fit into memory together, and what a run holds between two of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from fxslim.graph.program import Program
from fxslim.graph.stores import FileTensor, Spill

__all__ = ["Environment", "Shelf", "pieces", "weights_of"]

Environment = dict[fx.Node, Any]


def weights_of(nodes: Iterable[fx.Node]) -> list[str]:
    """The names of the weights that calls read, each once, in order."""
    return list(dict.fromkeys(str(a.target) for n in nodes for a in n.all_input_nodes if a.op == "get_attr"))


def pieces(program: Program, nodes: Sequence[fx.Node]) -> Iterator[list[fx.Node]]:
    """The nodes, in order, in pieces whose weights fit the bound that the program's store has; all in one where
    nothing is read from disk, and nothing is moved."""
    weights = program.weights
    if not weights.on_disk and weights.placement.device is None and not weights.placement.offload:
        yield list(nodes)
        return
    piece: list[fx.Node] = []
    held, size = set[str](), 0
    for node in nodes:
        new = {n for n in weights_of([node]) if n not in held}
        more = sum(weights.entry(n).nbytes for n in new)
        if held and more and size + more > weights.placement.piece:
            yield piece
            piece, held, size = [], set(), 0
            new = set(weights_of([node]))
            more = sum(weights.entry(n).nbytes for n in new)
        piece.append(node)
        held |= new
        size += more
    if piece:
        yield piece


@dataclass(frozen=True)
class _Shelved:
    """A tensor on disk: its whole storage, and what it sees of that."""

    file: FileTensor
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Shelf:
    """The values that one run holds between two pieces, on disk but for small ones.

    Whole storages are written: what was a view is one again, in the same layout, so that whatever reads it computes
    the same to the last bit.
    """

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._values: Environment = {}
        self._out: Environment = {}  # what was taken, as it lay here

    def value(self, node: fx.Node) -> Any:
        """The value of one node, read anew."""
        return pytree.tree_map_only(_Shelved, lambda s: _seen(s, s.file.read().untyped_storage()), self._values[node])

    def take(self, nodes: Iterable[fx.Node]) -> Environment:
        """The values of `nodes`, as far as there are any; `put` brings them back, with what came of them."""
        read: dict[FileTensor, torch.UntypedStorage] = {}

        def fetched(shelved: _Shelved) -> Tensor:
            if shelved.file not in read:
                read[shelved.file] = shelved.file.read().untyped_storage()
            return _seen(shelved, read[shelved.file])

        self._out = {node: self._values.pop(node) for node in dict.fromkeys(nodes) if node in self._values}
        return {node: pytree.tree_map_only(_Shelved, fetched, value) for node, value in self._out.items()}

    def put(self, environment: Environment) -> None:
        """Values that are needed later, new ones and those that were taken; the others are forgotten."""
        written: dict[int, FileTensor] = {}  # by the address of a storage that `environment` keeps alive
        for node, lay in self._out.items():
            if node in environment:
                for old, tensor in zip(pytree.tree_leaves(lay), pytree.tree_leaves(environment[node]), strict=True):
                    if isinstance(old, _Shelved):
                        written[tensor.untyped_storage().data_ptr()] = old.file

        def shelved(tensor: Tensor) -> Tensor | _Shelved:
            storage = tensor.untyped_storage()
            if storage.nbytes() < self._spill.least:
                return tensor
            if storage.data_ptr() not in written:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                written[storage.data_ptr()] = self._spill.put(whole)
            view = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
            return _Shelved(written[storage.data_ptr()], tensor.dtype, *view)

        for node, value in environment.items():
            kept = self._out.get(node)
            self._values[node] = pytree.tree_map_only(Tensor, shelved, value) if kept is None else kept
        self._out = {}


def _seen(shelved: _Shelved, storage: torch.UntypedStorage) -> Tensor:
    empty = torch.empty(0, dtype=shelved.dtype)
    return empty.set_(storage, shelved.offset, shelved.shape, shelved.stride)
