"""Plans of sharing: neighbouring residual branches of equal structure use one set of weights until the budget is met.

What sharing costs is measured: the divergence of the model's output on a batch when the branches run with the weights
of one of them. The cheapest step for each number saved comes first; costs are measured again, in the context of the
steps that were taken, before one is taken (the lazy greedy algorithm of Minoux 1978).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.passes.budget import TOLERANCE, check_share
from fxslim.passes.divergence import divergence
from fxslim.passes.drop_branches import Branch
from fxslim.passes.isomorphic import neighbours
from fxslim.passes.plan import Plan
from fxslim.passes.prepare import preparations_of
from fxslim.passes.restore import Progress
from fxslim.passes.share_branches import ShareBranches, replaced_by

__all__ = ["plan_sharing"]

Members = tuple[Branch, ...]
"""Branches that use the weights of the first."""


def plan_sharing(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, *, of: Target = "params",
    uncounted: frozenset[str] = frozenset(), progress: Progress | None = None,
) -> tuple[Plan, Analysis]:  # fmt: skip
    """A plan that keeps at most the share `keep` of the parameters by letting neighbouring residual branches use one
    set of weights, and the analysis of the program in which they do; the last batch judges what that costs.

    A branch is the smallest step, so fewer may remain than was asked for: a note says how many.

    Raises:
        InputError: there is no data, no share, or nothing that could be shared; or the share is one of MACs.
        PlanError: sharing all that can be shared is not enough.
    """
    if keep is None:
        raise InputError("weights are shared for a share of the whole", remedy="give keep instead of width")
    check_share(keep, "keep")
    if of != "params":
        raise InputError(
            "sharing weights saves parameters and no multiply-accumulates: every branch is still computed",
            remedy="give of='params' (--of params), or leave branches out: --method shortgpt",
        )
    if not batches:
        raise InputError("sharing weights needs calibration data", remedy="give `calibration=` (--calibration FILE)")
    runs = neighbours(analysis.program)
    if not runs:
        raise InputError("no neighbouring residual branches have the same structure", remedy="try --method best")
    costs = CostModel(analysis.axes, uncounted)
    search = _Search(analysis.program, runs, batches[-1], uncounted)
    target = keep * costs.whole(of)
    while costs.params() - search.saved > target:
        if progress is not None:
            progress("share", search.saved, int(costs.params() - target))
        if not search.step():
            share = (costs.params() - search.saved) / costs.whole(of)
            raise PlanError(
                f"keep={keep:g} of the {of} cannot be met by sharing: {share:.1%} remain when all branches share",
                remedy="ask for more, or try --method best",
            )
    slim = analysis
    for members in search.shared():
        slim = analyze(ShareBranches(tuple(b.add.name for b in members))(slim).program)
    after = CostModel(slim.axes, uncounted)
    notes = _notes(search, after.params() / costs.whole(of), keep)
    options: dict[str, Any] = {"keep": keep, "of": of, "share": True, "uncounted": sorted(uncounted)}
    program = slim.program
    return Plan(program.fingerprint(), (), options, costs.change(after), tuple(notes), preparations_of(program)), slim


def _notes(search: _Search, share: float, keep: float) -> list[str]:
    notes = [f"{', '.join(b.add.name for b in m[1:])} use the weights of {m[0].add.name}" for m in search.shared()]
    if not notes:
        return []
    notes.append(f"with all of them the output diverges by {search.cost:.4f} before any restoration")
    notes.append("shared weights make the file smaller and not the model faster: every branch is still computed")
    if share < keep - TOLERANCE:
        notes.append(f"{share:.1%} of the params remain: a whole branch is the smallest step")
    return notes


@dataclass
class _Step:
    """Two neighbouring sets that become one: `merged` in the place `index` and the one behind it of a run."""

    run: int
    index: int
    merged: Members
    score: float = float("-inf")  # divergence for each number saved; not measured yet
    measured: int = -1  # how many steps had been taken then


class _Search:
    """Sets of branches that share weights, merged one step after the other."""

    def __init__(
        self, program: Program, runs: Sequence[Sequence[Branch]], inputs: Sequence[Tensor], uncounted: frozenset[str]
    ) -> None:
        self._program, self._inputs, self._uncounted = program, inputs, uncounted
        self._runs: list[list[Members]] = [[(branch,) for branch in run] for run in runs]
        self._places: dict[tuple[str, str], Mapping[str, str]] = {}
        self._original = Evaluator(program).run(inputs)
        self._taken = 0
        self.saved, self.cost = 0, 0.0
        self._steps = [step for run in range(len(runs)) for i in range(len(runs[run]) - 1) for step in self._at(run, i)]

    def shared(self) -> list[Members]:
        """The sets of more than one branch, in the order of the graph within each run."""
        return [members for run in self._runs for members in run if len(members) > 1]

    def step(self) -> bool:
        """Takes the step that costs least for each number that it saves; False where there is none."""
        while self._steps:
            best = min(self._steps, key=lambda step: step.score)
            if best.measured == self._taken:
                self._take(best)
                return True
            saved = self._saved(self._with(best)) - self.saved
            if saved <= 0:  # weights that are not counted
                self._steps.remove(best)
                continue
            best.score = (self._cost(self._with(best)) - self.cost) / saved
            best.measured = self._taken
        return False

    def _take(self, step: _Step) -> None:
        self._runs = self._with(step)
        self._taken += 1
        self.saved, self.cost = self._saved(self._runs), self._cost(self._runs)
        left = [s for s in self._steps if s.run != step.run or s.index not in range(step.index - 1, step.index + 2)]
        for other in left:
            other.index -= other.run == step.run and other.index > step.index
        around = range(max(0, step.index - 1), min(step.index + 1, len(self._runs[step.run]) - 1))
        self._steps = left + [new for i in around for new in self._at(step.run, i)]

    def _at(self, run: int, index: int) -> list[_Step]:
        """The steps that merge a set with the next: either's weights may be used."""
        first, second = self._runs[run][index : index + 2]
        return [_Step(run, index, first + second), _Step(run, index, second + first)]

    def _with(self, step: _Step) -> list[list[Members]]:
        runs = list(self._runs)
        run = runs[step.run]
        runs[step.run] = [*run[: step.index], step.merged, *run[step.index + 2 :]]
        return runs

    def _replaced(self, runs: Sequence[Sequence[Members]]) -> dict[str, str]:
        """The weights that go -> those that are used instead."""
        found: dict[str, str] = {}
        for first, *others in (members for run in runs for members in run):
            for other in others:
                found |= self._places_of(first, other)
        return found

    def _places_of(self, first: Branch, second: Branch) -> Mapping[str, str]:
        key = first.add.name, second.add.name
        if key not in self._places:
            self._places[key] = replaced_by(self._program, first, second) or {}
        return self._places[key]

    def _saved(self, runs: Sequence[Sequence[Members]]) -> int:
        info = self._program.info
        return sum(info[name].numel for name in self._replaced(runs) if name not in self._uncounted)

    def _cost(self, runs: Sequence[Sequence[Members]]) -> float:
        """The divergence of the output."""
        evaluator = Evaluator(self._program)
        for name, kept in self._replaced(runs).items():
            evaluator.set_weight(name, self._program.weights[kept])
        return divergence(self._program.output_names, self._original, evaluator.run(self._inputs))
