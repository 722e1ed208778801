"""Plans of ranks: linear maps and convolutions become pairs [r, k], [n, r], each with a rank below its break-even."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError, PlanError
from fxslim.passes.bases import change_bases
from fxslim.passes.basis import Basis
from fxslim.passes.budget import TOLERANCE, Budget, check_share
from fxslim.passes.factorise import Factorise, factorisable
from fxslim.passes.options import matches_weight
from fxslim.passes.pairs import Metric, Pair, find_pairs, pair_bases
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prepare import preparations_of, prepare
from fxslim.passes.rank_schedule import SLOPE, by_depth
from fxslim.passes.restore import Progress
from fxslim.passes.statistics import digest
from fxslim.passes.subspaces import leading
from fxslim.passes.survey import Survey

__all__ = ["plan_ranks"]

_STEPS = 40  # of the bisection
_FLAT = 1e-6  # of the largest singular value: a spectrum within this has no end to cut off


@dataclass(frozen=True)
class _Candidate:
    """A weight [n, k] that may become a pair."""

    name: str
    pair: Pair
    slope: float  # what one more rank costs
    limit: float  # n k / (n + k): at this rank the pair costs what the weight does
    spectrum: Tensor  # [min(n, k)] singular values, descending

    def saved(self, rank: int) -> float:
        """What the pair saves at a rank; nothing where it would cost more."""
        return self.slope * max(0.0, self.limit - rank)


def plan_ranks(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, metric: Metric, *,
    budget: Budget = "uniform", of: Target = "params", round_to: int = 1, groups: Sequence[str] | None = None,
    keep_fixed: Sequence[str] = (), uncounted: frozenset[str] = frozenset(), progress: Progress | None = None,
    slope: float = SLOPE,
) -> tuple[Plan, Analysis]:  # fmt: skip
    """A plan that keeps the share `keep` by low ranks alone, and the analysis of the program that it applies to.

    With a uniform budget every weight keeps the same share of its own cost. With a global one a single threshold on
    normalised singular values decides: weights of a rank above their break-even stay whole (WeLore, Jaiswal 2024).
    With a linear one the share changes with depth, by `slope` (LR-SMS, Fernandez-Lopez 2024).

    Raises:
        InputError: an option is out of range, no weight can be factorised, or data is missing.
        PlanError: the target cannot be met.
    """
    if keep is None:
        raise InputError("ranks are chosen for a share of the whole", remedy="give keep instead of width")
    check_share(keep, "keep")
    if metric != "plain" and not batches:
        raise InputError(f"the metric {metric!r} needs calibration data", remedy="give `calibration=`")
    work = _Ranks(analysis, batches, metric, CostModel(analysis.axes, uncounted), of, round_to, progress)
    candidates = work.candidates(groups, keep_fixed, uncounted)
    rules: dict[str, Rule] = {"uniform": _by_share, "global": _by_threshold, "linear": by_depth(analysis, slope)}
    chosen = work.choose(candidates, keep, rules[budget]) if keep < 1 else {}
    options = {
        "keep": keep, "of": of, "metric": metric, "budget": budget, "round_to": round_to, "groups": groups,
        "keep_fixed": list(keep_fixed), "uncounted": sorted(uncounted),
        "data": digest(batches) if batches and metric != "plain" else None,
        "slope": slope if budget == "linear" else None,
    }  # fmt: skip
    return work.planned(chosen, options)


Rule = Callable[[Sequence[_Candidate], float, int], dict[str, int]]
"""Ranks of all candidates at a degree from 0, where the most is kept, to 1; multiples of the last argument."""


class _Ranks:
    """The steps of choosing ranks."""

    def __init__(
        self, analysis: Analysis, batches: Sequence[Sequence[Tensor]] | None, metric: Metric, costs: CostModel,
        of: Target, round_to: int, progress: Progress | None,
    ) -> None:  # fmt: skip
        self.analysis, self.batches, self.metric, self.costs = analysis, batches, metric, costs
        self.of, self.round_to, self.progress = of, round_to, progress
        self.considered: list[str] = []
        self._bases: dict[str, Basis] = {}  # by weight

    def candidates(
        self, groups: Sequence[str] | None, keep_fixed: Sequence[str], uncounted: frozenset[str]
    ) -> list[_Candidate]:
        """The weights that can become pairs, with what their ranks are worth."""
        self._require_matches((*(groups or ()), *keep_fixed))
        names = [n for n in factorisable(self.analysis) if n not in uncounted or self.of != "params"]
        names = [n for n in names if groups is None or self._matches(n, groups)]
        names = [n for n in names if not self._matches(n, keep_fixed)]
        self.considered = names
        if not names:
            raise InputError(
                "no weight can be factorised", remedy="`fxslim groups MODEL` lists the weights; allow more of them"
            )
        opened = prepare(self.analysis, [Factorise(tuple(names)).spec()])
        pairs = {name: pair for name, pair in find_pairs(opened).items() if name in names}
        bases = pair_bases(opened, list(pairs.values()), self.metric, self.batches, self.progress).bases
        self._bases = {name: bases[pair.group.name] for name, pair in pairs.items()}
        costs = CostModel(opened.axes)
        total = costs.of(self.of)
        found = []
        for name, pair in pairs.items():
            size = pair.group.size
            slope = total - costs.of(self.of, {pair.group.axis: size - 1})
            n, k = pair.second.shape(opened.program)[1], pair.first.shape(opened.program)[2]
            if slope > 0 and n * k / (n + k) > self.round_to:
                spectrum = self._bases[name].energy.reshape(-1).sqrt()
                found.append(_Candidate(name, pair, float(slope), n * k / (n + k), spectrum))
        return found

    def _require_matches(self, given: Sequence[str]) -> None:
        for pattern in given:
            if not any(self._matches(n, (pattern,)) for n in self.analysis.program.info):
                raise InputError(
                    f"{pattern!r} matches no weight", remedy="ranks are chosen by patterns of weights' names"
                )

    def _matches(self, name: str, given: Sequence[str]) -> bool:
        rank = len(self.analysis.program.info[name].shape)
        return any(matches_weight(name, rank, pattern) for pattern in given)

    def choose(self, candidates: Sequence[_Candidate], keep: float, rule: Rule) -> dict[str, int]:
        """The ranks of the weights that become pairs."""
        total = self.costs.whole(self.of)
        low, high = 0.0, 1.0  # more is kept at the lower end
        for _ in range(_STEPS):
            middle = (low + high) / 2
            enough = self._share(candidates, rule(candidates, middle, self.round_to), total) <= keep
            low, high = (low, middle) if enough else (middle, high)
        ranks = rule(candidates, high, self.round_to)
        share = self._share(candidates, ranks, total)
        if share > keep + TOLERANCE:
            raise PlanError(
                f"keep={keep:g} of the {self.of} cannot be met by low ranks: at the lowest {share:.4f} remains",
                remedy="ask for more, or use a smaller round_to",
            )
        self._fill(candidates, ranks, keep, total)
        saving = {c.name for c in candidates if c.saved(ranks[c.name]) > 0}
        return {name: rank for name, rank in ranks.items() if name in saving}

    def _fill(self, candidates: Sequence[_Candidate], ranks: dict[str, int], keep: float, total: int) -> None:
        """What rounding has left of the budget goes to ranks, the largest singular values that are left out first;
        beyond its break-even a weight is whole."""
        while True:
            open_ = [c for c in candidates if c.saved(ranks[c.name]) > 0]
            fitting = [
                c for c in open_
                if self._share(candidates, {**ranks, c.name: ranks[c.name] + self.round_to}, total) <= keep
            ]  # fmt: skip
            if not fitting:
                return
            best = max(fitting, key=lambda c: float(c.spectrum[min(ranks[c.name], len(c.spectrum) - 1)]))
            ranks[best.name] += self.round_to

    @staticmethod
    def _share(candidates: Sequence[_Candidate], ranks: Mapping[str, int], total: int) -> float:
        return 1 - sum(c.saved(ranks[c.name]) for c in candidates) / total

    def planned(self, ranks: Mapping[str, int], options: Mapping[str, Any]) -> tuple[Plan, Analysis]:
        """The plan for the program in which these weights are pairs, and its analysis in their bases."""
        opened = prepare(self.analysis, [Factorise(tuple(ranks)).spec()]) if ranks else self.analysis
        pairs = {name: pair for name, pair in find_pairs(opened).items() if name in ranks}
        bases = {pair.group.name: self._bases[name] for name, pair in pairs.items()}
        found = Survey({}, bases, tuple(pair.subspace for pair in pairs.values()), ())
        counts = {pair.group.axis: ranks[name] for name, pair in pairs.items()}
        cuts = tuple(
            Cut.from_mask(pair.group, leading(pair.group, ranks[name]), subspace=True) for name, pair in pairs.items()
        )
        predicted = self.costs.change(CostModel(opened.axes, self.costs.uncounted), counts)
        whole = [n for n in self.considered if n not in ranks] if ranks else []
        notes = [f"{name} stays whole: no rank below its break-even is enough" for name in whole]
        share = predicted[self.of][1] / predicted[self.of][0]
        if share < options["keep"] - TOLERANCE:
            notes.append(f"{share:.1%} of the {self.of} remain: one step more of any rank would exceed the budget")
        program = opened.program
        plan = Plan(program.fingerprint(), cuts, options, predicted, tuple(notes), preparations_of(program))
        return plan, change_bases(opened, found, tuple(found.bases))


def _by_share(candidates: Sequence[_Candidate], removed: float, round_to: int) -> dict[str, int]:
    """Every weight keeps the share 1 - `removed` of its own cost."""
    return {c.name: max(round_to, int((1 - removed) * c.limit / round_to) * round_to) for c in candidates}


def _by_threshold(candidates: Sequence[_Candidate], threshold: float, round_to: int) -> dict[str, int]:
    """Singular values, scaled to run from 0 to 1, stay where they exceed the threshold."""
    ranks = {}
    for candidate in candidates:
        values = candidate.spectrum
        width = float(values[0] - values[-1])
        flat = width <= _FLAT * float(values[0])  # no direction matters less than another
        rank = len(values) if flat else int(((values - values[-1]) / width > threshold).sum())
        ranks[candidate.name] = max(round_to, -(-rank // round_to) * round_to)
    return ranks
