"""Work: what choosing and restoring will compute, counted from the graph alone.

Counted are the products of the forward passes, second moments, and what is solved from them, each by the rate at which
a machine does it, and the bytes that everything else reads and writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.roles import STREAM
from fxslim.graph.costs import CostModel
from fxslim.graph.liveness import value_bytes
from fxslim.graph.program import bind_symbols
from fxslim.passes.budget import choose_groups
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.low_rank import Matrix, find_matrices
from fxslim.passes.methods import Settings
from fxslim.passes.options import matches_weight, patterns
from fxslim.passes.probe import few_examples
from fxslim.passes.stream_curve import SHARES
from fxslim.passes.subspaces import find_subspaces
from fxslim.passes.survey import looked_at
from fxslim.passes.upstream import choose_upstream

__all__ = ["Rates", "Work", "count_work", "cut_by"]

_LADDER = 5  # ridges that a refit tries, and once more with all data
_COMPARED = 16.0  # times that logits are read or written to compare two distributions
_DECOMPOSED = 10.0  # FLOPs of a symmetric eigendecomposition over n^3


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second: FLOPs of products in float32 and in float64, of solving and of decomposing in
    float64, and bytes that are read or written."""

    single: float
    double: float
    solving: float
    decomposing: float
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes, by the rate that they go at."""

    single: float = 0.0
    double: float = 0.0
    solving: float = 0.0
    decomposing: float = 0.0
    bandwidth: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: float) -> Work:
        return Work(*(getattr(self, f.name) * times for f in fields(self)))

    def seconds(self, rates: Rates) -> float:
        """The time that it takes."""
        return float(sum(getattr(self, f.name) / getattr(rates, f.name) for f in fields(self)))


def cut_by(
    analysis: Analysis, chosen: Settings, groups: Sequence[str] | None, *, inexact: bool
) -> tuple[Sequence[Group], list[Consumer]]:
    """The groups that a method may cut, or those of them that are asked for, and the calls that sum over them.

    Raises:
        InputError: nothing of the model may be cut.
    """
    wanted = groups if groups is not None else chosen.groups
    if chosen.metric is not None:  # ranks: patterns are of weights there
        named, info = patterns(wanted) or ["*"], analysis.program.info
        matrices = [(m, len(info[m.weight].shape)) for m in find_matrices(analysis)]
        return [], [m.consumer for m, rank in matrices if any(matches_weight(m.weight, rank, p) for p in named)]
    cut, _ = choose_groups(analysis, groups=wanted, keep_fixed=[], inexact=inexact, keep_caches=False)
    own = {node for group in cut for node in group.consumers}
    return cut, [c for c in find_consumers(analysis.axes)[0] if c.node.name in own]


def count_work(
    analysis: Analysis, batches: Sequence[Sequence[Tensor]], chosen: Settings, *, groups: Sequence[str] | None = None,
    inexact: bool = False,
) -> dict[str, Work]:  # fmt: skip
    """The work of a method, by part: `forward`, `moments`, `solves`, and of a global budget `curves` and `probes`."""
    cut, consumers = cut_by(analysis, chosen, groups, inexact=inexact)
    counted = _Counted(analysis, batches)
    found: dict[str, Work] = {}
    rounds = chosen.rounds
    surveyed = chosen.budget == "global" and chosen.metric is None
    surveying = _Counted(analysis, looked_at(analysis, batches)) if surveyed or chosen.subspace else counted
    if surveyed:
        found = surveying.survey(cut, consumers, chosen)
    if chosen.metric is not None:
        return counted.pairs(chosen, consumers)
    # One walk more, for what is known before the restoring one: shares of the groups, and bases.
    further = [counted] if chosen.budget in ("outliers", "influence", "standardised") else []
    for walked in (*further, *([surveying] if chosen.subspace and not surveyed else [])):
        for part, work in (("forward", walked.forward), ("moments", walked.moments(consumers))):
            found[part] = found.get(part, Work()) + work
    passes = (2 if chosen.refits and choose_upstream(analysis, consumers, batches) == "both" else 1) * rounds
    walk = {
        "forward": counted.forward * passes, "moments": counted.moments(consumers) * passes,
        "solves": _sum(_refit(*c.shape(analysis.program)) for c in consumers) * (rounds if chosen.refits else 0),
    }  # fmt: skip
    if chosen.importance == "obs":
        walk["solves"] += _sum(_elimination(*c.shape(analysis.program)) for c in consumers) * rounds
    return {name: found.get(name, Work()) + walk.get(name, Work()) for name in (*walk, *found)}


class _Counted:
    """The work of single steps of a program on all batches."""

    def __init__(self, analysis: Analysis, batches: Sequence[Sequence[Tensor]]) -> None:
        self.analysis = analysis
        shapes: dict[tuple[tuple[int, ...], ...], list[Sequence[Tensor]]] = {}
        for batch in batches:
            shapes.setdefault(tuple(tuple(t.shape) for t in batch), []).append(batch)
        self._kinds = [(same[0], len(same)) for same in shapes.values()]
        self.forward = _sum(self._forward(batch) * count for batch, count in self._kinds)
        self._few = few_examples(analysis, batches[-1])

    def _forward(self, batch: Sequence[Tensor]) -> Work:
        return _sum(self._calls(batch).values())

    def _calls(self, batch: Sequence[Tensor]) -> dict[fx.Node, Work]:
        """The work of every call, in their order."""
        program, symbols = self.analysis.program, bind_symbols(self.analysis.program, batch)
        macs = CostModel(self.analysis.axes, inputs=batch).macs_by_call()
        calls = [n for n in program.graph.nodes if n.op == "call_function"]
        return {n: Work(single=2.0 * macs.get(n, 0), bandwidth=2.0 * value_bytes(n, symbols)) for n in calls}

    def probes(self, cut: Sequence[Group], matrices: Sequence[Matrix]) -> Work:
        """One for each group and rank: the calls from the change on, on few examples, and the outputs compared."""
        axes, calls = self.analysis.axes, self._calls(self._few)
        first = {n: {a for e in c.letters.values() for a in axes.terms.atoms(e)} for n, c in axes.calls.items()}
        changed = {m.consumer.node for m in matrices}
        waiting, left, total = {g.axis for g in cut}, 0, self.compared * (len(cut) + len(matrices))
        for node, work in calls.items():
            met = waiting & first.get(node, set())
            waiting -= met
            left += len(met) + (node in changed)
            total += work * left
        return total

    @property
    def compared(self) -> Work:
        """Of the outputs of one probe with the original's."""
        program, symbols = self.analysis.program, bind_symbols(self.analysis.program, self._few)
        size = sum(value_bytes(n, symbols) for n in program.output_nodes if isinstance(n, fx.Node))
        return Work(bandwidth=_COMPARED * size)

    def stream(self, cut: Sequence[Group]) -> dict[str, Work]:
        """Of residual streams, where there are any: at each share all that read them are refitted and probed; and one
        walk more for the bases of the program that keeps them whole."""
        streams = [g for g in self.analysis.groups if g.kind == STREAM]
        if not streams:
            return {}
        own, size = {n for g in cut for n in g.consumers}, max(g.size for g in streams)
        shapes = [
            c.shape(self.analysis.program) for c in find_consumers(self.analysis.axes)[0] if c.node.name not in own
        ]
        solved = [_solved_once(n, k) for blocks, n, k in shapes if blocks == 1 and k == size]
        return {
            "forward": self.forward, "curves": _sum(solved) * len(SHARES),
            "probes": (self._forward(self._few) + self.compared) * len(SHARES),
        }  # fmt: skip

    def moments(self, consumers: Sequence[Consumer]) -> Work:
        """Second moments, one for each consumer; only one half of a symmetric product is computed."""
        return _sum(self._moment(c) for c in consumers)

    def _moment(self, consumer: Consumer) -> Work:
        blocks, _, columns = consumer.shape(self.analysis.program)
        total = Work()
        for batch, count in self._kinds:
            rows = consumer.rows(self.analysis.program, bind_symbols(self.analysis.program, batch))
            square = 8.0 * blocks * columns**2
            total += Work(single=float(rows) * blocks * columns**2, bandwidth=3 * square) * count
        return total

    def pairs(self, chosen: Settings, consumers: Sequence[Consumer]) -> dict[str, Work]:
        """Of low ranks alone."""
        found = {"curves": _sum(_pair(*c.shape(self.analysis.program)[1:]) for c in consumers) * 2}
        if chosen.metric != "plain":  # once to choose, once to apply
            found |= {"forward": self.forward * 2, "moments": self.moments(consumers) * 2}
        return found

    def survey(self, cut: Sequence[Group], consumers: Sequence[Consumer], chosen: Settings) -> dict[str, Work]:
        """Of a global budget: one walk, the curve of every group and rank, and a probe of each; bases once more."""
        program = self.analysis.program
        subspaces = find_subspaces(self.analysis, [g for g in cut if g.exact])[0] if chosen.subspace else []
        based = {s.group.name for s in subspaces}
        selected = {node for g in cut if g.name not in based for node in g.consumers}
        matrices = find_matrices(self.analysis) if chosen.ranks else []
        curves = _sum(_elimination(*c.shape(program)) for c in consumers if c.node.name in selected)
        curves += _sum(_pair(*m.consumer.shape(program)[1:]) for m in matrices) * 2
        curves += _sum(_decomposition(s.group.size) * len(s.sides) for s in subspaces)
        walked = {c.node: c for c in (*consumers, *(m.consumer for m in matrices))}
        found = {
            "forward": self.forward, "moments": self.moments(list(walked.values())), "curves": curves,
            "probes": self.probes(cut, matrices),
        }  # fmt: skip
        further = self.stream(cut) if chosen.streams else {}
        return {name: work + further.get(name, Work()) for name, work in found.items()}


def _refit(blocks: int, outputs: int, columns: int) -> Work:
    """Two right sides, a factor and a solution for each ridge and for the final one, residuals."""
    n, k = float(outputs), float(columns)
    products = 4 * n * k**2 + 2 * (_LADDER + 2) * n * k**2
    return Work(double=products, solving=(_LADDER + 1) * (k**3 / 3 + 2 * n * k**2)) * blocks


def _solved_once(outputs: int, columns: int) -> Work:
    """A factor and a solution."""
    n, k = float(outputs), float(columns)
    return Work(double=2 * n * k**2, solving=k**3 / 3 + 2 * n * k**2)


def _elimination(blocks: int, outputs: int, columns: int) -> Work:
    """An inverse, and its update and that of the weight for each portion, which become smaller as columns go."""
    n, k = float(outputs), float(columns)
    return Work(double=2 / 3 * k**3 + n * k**2, solving=k**3) * blocks


def _pair(outputs: int, inputs: int) -> Work:
    """Full-rank factors of a weight, and the basis between them."""
    small, large = float(min(outputs, inputs)), float(max(outputs, inputs))
    return _decomposition(small) + Work(double=4 * small**2 * large, solving=4 * small**2 * large)


def _decomposition(size: float) -> Work:
    """Two symmetric eigendecompositions."""
    return Work(decomposing=2 * _DECOMPOSED * size**3)


def _sum(parts: Iterable[Work]) -> Work:
    return sum(parts, start=Work())
