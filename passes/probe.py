"""Probes: what a cut of one group alone, or a low rank of one weight, does to the model's own output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.evaluate import MaskedEvaluator
from fxslim.graph.liveness import number_of
from fxslim.graph.program import bind_symbols
from fxslim.graph.stores import entry_in
from fxslim.passes.divergence import divergence
from fxslim.passes.restore import Progress
from fxslim.passes.stream_curve import interpolated
from fxslim.passes.survey import Curve
from fxslim.passes.team import current_team

__all__ = ["PROBED", "few_examples", "probe"]

# Words or other examples: one number for each change is estimated, and all from the same ones.
PROBED = 512


def few_examples(analysis: Analysis, inputs: Sequence[Tensor], most: int = PROBED) -> list[Tensor]:
    """The first examples of a batch of words whose logits have no more rows than `most`, at least one; of other data
    the first `most`. All where the examples cannot be told apart: they are the first dimension of every input, which is
    dynamic and nothing else."""
    program = analysis.program
    sizes = [program.dynamic.get(name, {}) for name in program.input_names]
    dims = {of.get(0) for of in sizes}
    if len(dims) != 1 or None in dims or any(dims & {n for d, n in of.items() if d} for of in sizes):
        return list(inputs)
    named = zip(program.output_names, program.output_nodes, strict=True)
    shapes = [n.meta["val"].shape for name, n in named if isinstance(n, fx.Node) and "logits" in name]
    symbols, count = bind_symbols(program, inputs), len(inputs[0])
    words = [number_of(shape[1], symbols) for shape in shapes if len(shape) == 3]
    kept = max(1, min(count, most // max([1, *words])))
    return [value[:kept] for value in inputs]


def probe(
    analysis: Analysis, curves: Mapping[str, Curve], inputs: Sequence[Tensor], progress: Progress | None = None
) -> None:
    """Sets the effect of every curve: the divergence of the model's output on `inputs` when the group alone is cut, or
    the weight alone has its rank.

    `analysis` is that of the program for which the curves hold: for subspaces the one in their bases, for selections
    and ranks the original, whose weights they have refitted.
    """
    work, team = _Probe(analysis, inputs), current_team()
    order = sorted(curves, key=lambda name: work.start(name, curves[name]))
    for number, name in enumerate(order):
        curve = curves[name]
        if progress is not None:
            progress(f"probe: {name}", number, len(order))
        work.advance_to(work.start(name, curve))
        if team.turn(number):
            _measure(work, None if curve.mask is None else analysis.group(name), curve, analysis)
        curve.weights.clear()
        if curve.readers is not None:
            curve.readers.moments.clear()
    found = team.gathered({n: (curves[n].losses, curves[n].effect) for i, n in enumerate(order) if team.turn(i)})
    for name, (losses, effect) in found.items():
        curves[name].losses, curves[name].effect = losses, effect


def _measure(work: _Probe, group: Group | None, curve: Curve, analysis: Analysis) -> None:
    """Sets the effect of one curve."""
    if curve.readers is None:
        curve.effect = work.effect(group, curve.mask, curve.weights)
        return
    effects = curve.readers.effects(partial(work.effect, group), analysis.program)
    curve.losses, curve.effect = interpolated(len(curve.losses) - 1, effects), max(effects.values())


class _Probe:
    """Runs the original once, as far as the next change, and what comes behind it with the change: what comes before is
    the same for all."""

    def __init__(self, analysis: Analysis, inputs: Sequence[Tensor]) -> None:
        self.analysis = analysis
        self._nodes = list(analysis.program.graph.nodes)
        self._index = {node: i for i, node in enumerate(self._nodes)}
        self._whole = MaskedEvaluator(analysis.axes, Selection({}))
        self._original = self._whole.run(inputs)
        self._values, self._position = self._whole.bind(inputs), 0

    def start(self, name: str, curve: Curve) -> int:
        """The number of the first node on which the change may have an effect."""
        weights = self.analysis.program.weight_nodes()
        found = [user for weight in curve.weights for user in weights[weight].users]
        if curve.mask is not None:
            axis, terms = self.analysis.group(name).axis, self.analysis.axes.terms
            calls = self.analysis.axes.calls.items()
            found += [n for n, c in calls if any(axis in terms.atoms(e) for e in c.letters.values())]
        return min((self._index[node] for node in found), default=0)

    def advance_to(self, position: int) -> None:
        """Runs the original up to a node, which the changes to come do not precede."""
        self._whole.advance(self._values, self._nodes[self._position : position])
        self._position = max(position, self._position)

    def effect(self, group: Group | None, mask: Tensor | None, weights: Mapping[str, Tensor]) -> float:
        """How far the output is from the original's when a group keeps what `mask` says and `weights` replace
        others."""
        kept = {} if group is None or mask is None else {group.axis: Kept(group.batch, mask)}
        evaluator = MaskedEvaluator(self.analysis.axes, Selection(kept))
        for weight in weights:
            evaluator.set_weight(weight, entry_in(weights, weight))
        values = evaluator.fork(self._whole, self._values)
        evaluator.advance(values, self._nodes[self._position :])
        caches = frozenset(self.analysis.axes.caches.values())
        return divergence(self.analysis.program.output_names, self._original, evaluator.outputs(values), caches)
