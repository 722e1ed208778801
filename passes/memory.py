"""Memory: what choosing and restoring will need at their peak, counted from the graph alone.

The walk holds the weights of one piece, what all calibration batches need later on, the second moments of one call, and
what solving for it takes; everything else waits on disk. Counted is what is added to what the process has already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.liveness import Liveness, liveness, value_bytes
from fxslim.graph.pieces import pieces, weights_of
from fxslim.graph.program import Program, bind_symbols
from fxslim.graph.stores import FileTensor
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.upstream import Upstream

__all__ = ["Peak", "proof_memory", "slice_memory", "walk_memory"]

_DOUBLE, _SINGLE = 8, 4  # bytes
_SYSTEMS = 3  # matrices as large as a second moment: what is kept of one, the same damped, its factor
_TARGETS = 8  # as large as a weight in float64: the weight, sliced, refitted, right sides, differences
_ELIMINATION = 4  # as large as a second moment: the sum of both, damped, its inverse, what inverting takes


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak by what holds them, and the call or weight at which that is."""

    at: str
    parts: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.parts.values())


def walk_memory(
    analysis: Analysis, batches: Sequence[Sequence[Tensor]], *, consumers: Sequence[Consumer] | None = None,
    upstream: Upstream = "both", eliminates: bool = False,
) -> Peak:  # fmt: skip
    """The peak of a walk over `batches` that stops at `consumers` (by default all), takes second moments over the
    compressed `upstream` or over the original one too, and refits. `eliminates`: positions are chosen by second order.
    """
    graph = list(analysis.program.graph.nodes)
    index = {node: i for i, node in enumerate(graph)}
    stops = sorted(find_consumers(analysis.axes)[0] if consumers is None else consumers, key=lambda c: index[c.node])
    refitted = set[str]() if upstream == "compressed" else {c.weight for c in stops}
    counted = _Counted(analysis.program, batches, 2 if upstream == "both" else 1, refitted)
    found, position = [], 0
    for consumer in stops:
        target = index[consumer.node]
        for piece in filter(None, pieces(analysis.program, graph[position:target])):
            held = counted.activations(index[piece[0]], index[piece[-1]] + 1)
            found.append(Peak(piece[-1].name, {"weights": counted.weights(piece), "activations": held}))
        position = max(position, target)
        parts = {
            "weights": counted.weights([consumer.node]), "activations": counted.activations(position, position),
            **_statistics(analysis.program, consumer, counted.largest, eliminates=eliminates),
        }  # fmt: skip
        found.append(Peak(consumer.node.name, parts))
    return max(found, key=lambda peak: peak.bytes, default=Peak("", {}))


class _Counted:
    """What a walk holds, piece by piece."""

    def __init__(self, program: Program, batches: Sequence[Sequence[Tensor]], passes: int, refitted: set[str]) -> None:
        self._program = program
        self._refitted = refitted  # of these the original and the new one are read
        self._offload = program.weights.placement.offload
        self._runs: dict[Liveness, int] = {}
        known: dict[tuple[tuple[int, ...], ...], Liveness] = {}
        for batch in batches:
            shapes = tuple(tuple(t.shape) for t in batch)
            if shapes not in known:
                known[shapes] = liveness(program, batch)
            self._runs[known[shapes]] = self._runs.get(known[shapes], 0) + passes
        self.largest = max(batches, key=lambda batch: sum(t.nbytes for t in batch))

    def weights(self, piece: Sequence[fx.Node]) -> int:
        """Bytes of the weights that calls read; those in memory are there already."""
        if not self._program.weights.on_disk:
            return 0
        entries = {name: self._program.weights.entry(name) for name in weights_of(piece)}
        twice = sum(entry.nbytes for name, entry in entries.items() if name in self._refitted)
        return sum(entry.nbytes for entry in entries.values()) + twice + _reading(self._program, piece)

    def activations(self, start: int, end: int) -> int:
        """Bytes of all runs while the nodes from `start` to `end` are evaluated for one after the other."""
        waiting, running = 0, 0
        for run, count in self._runs.items():
            most = max(run.live[start], run.live[end])
            inner = max(run.inner[start:end], default=0)
            waiting += 0 if self._offload else count * most
            running = max(running, inner if self._offload else inner - most)
        return waiting + running


def _statistics(
    program: Program, consumer: Consumer, inputs: Sequence[Tensor], *, eliminates: bool
) -> dict[str, int]:  # fmt: skip
    """Bytes of the second moments of a call, and of taking them, or of solving for it, whichever is more."""
    blocks, outputs, columns = consumer.shape(program)
    square, weight = _DOUBLE * blocks * (columns + 1) ** 2, _DOUBLE * blocks * outputs * (columns + 1)
    value = value_bytes(consumer.source, bind_symbols(program, inputs)) * consumer.window
    taking = square * _SINGLE // _DOUBLE + square + 2 * value * max(1, _SINGLE // consumer.source.meta["val"].itemsize)
    solving = _SYSTEMS * square + _TARGETS * weight
    if eliminates:
        solving = max(solving, _ELIMINATION * square + _TARGETS // 2 * weight)
    return {"second moments": 2 * square, "solving": max(taking, solving)}


def _reading(program: Program, nodes: Sequence[fx.Node]) -> int:
    """Bytes that reading the weights of calls needs besides theirs: they are read one after the other."""
    entries = (program.weights.entry(name) for name in weights_of(nodes))
    return max((e.besides for e in entries if isinstance(e, FileTensor)), default=0)


def proof_memory(program: Program, inputs: Sequence[Tensor]) -> Peak:
    """The peak of running a program in float64 on one set of inputs, each weight read when it is used."""
    run, found = liveness(program, inputs, double=True), []
    for number, node in enumerate(program.graph.nodes):
        if node.op == "call_function":
            read = [program.info[name] for name in weights_of([node])]
            wide = sum(w.numel * (_DOUBLE + program.weights.on_disk * w.dtype.itemsize) for w in read)
            wide += _reading(program, [node])
            found.append(Peak(node.name, {"weights": wide, "activations": run.inner[number]}))
    return max(found, key=lambda peak: peak.bytes, default=Peak("", {}))


def slice_memory(program: Program) -> Peak:
    """The peak of slicing weights one by one: the whole one, what stays of it, and room for one in another layout."""
    sizes = {name: weight.numel * weight.dtype.itemsize for name, weight in program.info.items()}
    name = max(sizes, key=sizes.__getitem__, default="")
    return Peak(name, {"weights": 3 * sizes.get(name, 0)})
