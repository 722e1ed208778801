"""Selections that differ along a batch axis, tried on operators: what `batching` accepts must hold.

An axis d may be selected differently for each position of h where h accompanies it. The reference knows uniform
selections alone: position i of h must come out as the operator computes it on the operands at h = i, with that
position's own choice of d. Where the operator sums over h, removed positions must count as zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fxslim.graph.axes.analysis import Axes, CallAxes
from fxslim.graph.axes.batching import batch_axes
from fxslim.graph.axes.notation import DimRule, Kind, letters_of
from fxslim.graph.axes.oracle import BadRule, Sample, _expr, _Trial
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.axes.terms import Axis, Expr, Terms

__all__ = ["batch_violations"]


def batch_violations(sample: Sample, rule: DimRule, seed: int = 0) -> tuple[int, list[str]]:
    """How many pairs (letter, batch letter) that `batching` accepts were tried, and those that do not hold."""
    if sample.floor > 1:
        return 0, []  # the reference looks at one position
    try:
        trial = _BatchTrial(sample, rule, torch.Generator().manual_seed(seed))
    except BadRule:
        return 0, []  # `check` reports it
    tried = [(letter, other, trial.fault(letter, other)) for letter, other in trial.pairs()]
    return len(tried), [f"`{x}` selected differently for each `{h}` is {what}" for x, h, what in tried if what]


class _BatchTrial(_Trial):
    def pairs(self) -> Iterator[tuple[str, str]]:
        """Letters that may be sliced, each with a letter that accompanies it at every occurrence."""
        letters = {self.axis(x): x for x, n in self.sizes.items() if n > 1}
        for axis, letter in letters.items():
            if self.rule.kind(letter) is not Kind.FIXED:
                for other in self._company(axis):
                    if other in letters:
                        yield letter, letters[other]

    def axis(self, letter: str) -> Axis:
        """The axis of a letter of more than one position."""
        (axis,) = self.axes[letter]
        assert isinstance(axis, Axis)
        return axis

    def _company(self, axis: Axis) -> tuple[Axis, ...]:
        """What `batching` says of an axis in a program that has this call only."""
        node, operands = self.sample.call.node, self.sample.call.tensors
        axes = Axes(None, Terms())  # type: ignore[arg-type]  (batching reads no program)
        axes.values.update({n: (self._exprs(d),) for n, d in zip(operands, self.rule.operands, strict=True)})
        axes.values[node] = tuple(self._exprs(d) for d in self.rule.results)
        axes.calls[node] = CallAxes(node, self.rule, operands, self.axes)
        return batch_axes(axes, [axis])[axis]

    def fault(self, letter: str, other: str) -> str:
        """Empty if half of the positions of `letter`, chosen anew for each of `other`, do what they must."""
        mask = torch.zeros(self.sizes[other], self.sizes[letter], dtype=torch.bool)
        for row in mask:
            row[torch.randperm(self.sizes[letter], generator=self.generator)[: max(1, self.sizes[letter] // 2)]] = True
        selection = Selection({self.axis(letter): Kept((self.axis(other),), mask)})
        try:
            got = self._rerun(selection)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            return f"illegal: {error}"
        if all(other in letters_of(d) for d in self.rule.results):
            return self._against_each(got, letter, other, mask)
        return self._against_zeros(got, letter, selection)

    def _against_each(self, got: tuple[Tensor, ...], letter: str, other: str, mask: Tensor) -> str:
        small: Mapping[str, Expr] = {**self.axes, letter: (Axis(-1, int(mask[0].sum())),)}
        for position, row in enumerate(mask):
            here = torch.zeros(len(mask), dtype=torch.bool)
            here[position] = True
            at = {self.axis(other): Kept((), here)}
            wanted = self._rerun(Selection({**at, self.axis(letter): Kept((), row)}))
            mine = [
                Selection(at).take(t, tuple(_expr(p, small) for p in d))
                for t, d in zip(got, self.rule.results, strict=True)
            ]
            if not self._same(mine, wanted):
                return f"different at position {position}"
        return ""

    def _against_zeros(self, got: tuple[Tensor, ...], letter: str, selection: Selection) -> str:
        if any(letter in letters_of(d) for d in self.rule.results):
            return "left without its batch letter in the result"
        if self.rule.kind(letter) is not Kind.REDUCE:
            return f"{self.rule.kind(letter).value} where the batch letter is summed"
        wanted = self.sample.run([self._zeroed(t, d, selection) for t, d in self._pairs()])
        return "" if self._same(got, wanted) else "different from zeros"
