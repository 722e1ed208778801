"""The steps of making one plan of positions, subspaces and ranks: which groups, how many positions, which ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel
from fxslim.graph.errors import InputError, PlanError
from fxslim.passes.allocation import allocate
from fxslim.passes.bases import Rebased, rebase
from fxslim.passes.budget import TOLERANCE, Widths, choose_groups, counts_for_keep, counts_for_width
from fxslim.passes.caches import cache_notes
from fxslim.passes.consumers import find_consumers
from fxslim.passes.importance import BY_DATA, Chooser, needs_data, scores_for, scores_on_original, sums_once, top
from fxslim.passes.influence import by_influence
from fxslim.passes.low_rank import Matrix, find_matrices
from fxslim.passes.options import PlanOptions, matches_weight, patterns, uncounted_names
from fxslim.passes.outliers import outlier_shares, shifted, width_offsets
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prepare import preparations_of
from fxslim.passes.probe import few_examples, probe
from fxslim.passes.products import find_products, product_curve, product_scores
from fxslim.passes.restore import By, Restoration, restore_weights
from fxslim.passes.sized import Sized, with_pairs
from fxslim.passes.standardised import standardised_counts
from fxslim.passes.statistics import digest
from fxslim.passes.subspaces import Subspace, find_subspaces, leading
from fxslim.passes.survey import Survey, fitted, looked_at, survey

__all__ = ["Planned", "Planning"]


@dataclass(frozen=True)
class Planned:
    """A plan, the analysis that it applies to (its subspaces in their bases), and the restoration that choosing brought
    about on the way: None where choosing needed none, or where a group is cut that calls without weights, or norms, see
    before it is decided. `calibration` is the data in the coordinates of that analysis, None where it is what was
    given."""

    plan: Plan
    analysis: Analysis
    restoration: Restoration | None
    calibration: Sequence[Sequence[Tensor]] | None = None


class Planning:
    """The steps of making one plan: which groups, in which basis, how many positions, which ones."""

    def __init__(
        self, analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, options: PlanOptions,
        original: Analysis | None = None, known: Survey | None = None,
    ) -> None:  # fmt: skip
        self.analysis, self.keep, self.batches = analysis, keep, batches
        self.width, self.of = options.get("width"), options.get("of", "params")
        self.importance, self.budget = options.get("importance", "magnitude"), options.get("budget", "uniform")
        self.round_to, self.seed = options.get("round_to", 1), options.get("seed", 0)
        self.inexact, self.progress = options.get("inexact", False), options.get("progress")
        self.groups, self.keep_fixed = patterns(options.get("groups")), patterns(options.get("keep_fixed", ())) or []
        self.keep_caches = options.get("keep_caches", False)
        self.subspace, self.surveys = options.get("subspace", False), options.get("surveys")
        self.curves, self.journal = options.get("curves"), options.get("journal")
        self.restore: By = options.get("restore") or "least-squares"
        self.scaled: dict[str, Tensor] = {}  # losses that the budget was divided by
        self.uncounted = patterns(options.get("uncounted", ())) or []
        self.clock = options.get("clock") if self.of == "latency" else None
        before = None
        if original is not None:
            before = CostModel(original.axes, uncounted_names(original, self.uncounted), clock=self.clock)
        outside = uncounted_names(analysis, self.uncounted, original)
        self.costs = CostModel(analysis.axes, outside, before, self.clock)
        self._check()
        self.chosen, self.notes = choose_groups(
            analysis, groups=self.groups, keep_fixed=self.keep_fixed, inexact=self.inexact,
            keep_caches=self.keep_caches,
        )  # fmt: skip
        self.subspaces: list[Subspace] = []
        if self.subspace:
            self.subspaces, refused = find_subspaces(analysis, [g for g in self.chosen if g.exact])
            self.notes += [f"{text}; it is cut by position" for text in refused]
        self.consumers = {c.node.name: c for c in find_consumers(analysis.axes)[0]}
        based = {s.group.name for s in self.subspaces}
        asked = self.groups is not None or self.budget == "global"  # at one ratio FASP leaves queries and keys alone
        unbased = [g for g in self.chosen if g.name not in based and g.exact]
        self.products = find_products(analysis, unbased if asked and self.importance in BY_DATA else [])
        self._product_scores: dict[str, Tensor] = {}
        if self.importance in BY_DATA:
            self._leave_out(based | self.products.keys())
        if self.importance == "obs" or self.budget == "global":
            self._leave_products_out(based)
        self.subspaces = [s for s in self.subspaces if s.group in self.chosen]
        self.matrices: list[Matrix] = []
        if options.get("ranks") and self.groups is None:
            self.matrices = find_matrices(analysis, self.costs.uncounted | self._fixed_weights())
        self.known = known  # a survey of the same program in another form: what it says of a group by name holds here
        self.found: Survey | None = None
        self.scores: dict[str, Tensor] = {}  # on the original, where one ranking divides the budget and chooses
        self.kept: dict[Axis, int] = {}
        self.ranks: dict[str, int] = {}  # of the weights that become pairs
        self.expected = 0.0  # the sum of all losses, in units of the output's divergence

    def _check(self) -> None:
        if (self.keep is None) == (self.width is None):
            raise InputError("give either keep or width")
        if self.budget != "uniform" and self.keep is None:
            raise InputError(f"a {self.budget} budget divides a share of the whole", remedy="give keep, not width")
        if self.budget == "standardised" and self.subspace:
            raise InputError(
                "a standardised budget ranks positions, and subspaces have none", remedy="give --budget global"
            )
        needs = {
            f"the importance {self.importance!r}": needs_data(self.importance), "subspace": self.subspace,
            f"the budget {self.budget!r}": self.budget not in ("uniform", "standardised"),
        }  # fmt: skip
        if not self.batches and any(needs.values()):
            what = next(name for name, needed in needs.items() if needed)
            raise InputError(f"{what} needs calibration data", remedy="give `calibration=` (--calibration FILE)")

    def _fixed_weights(self) -> frozenset[str]:
        """The weights that the user keeps whole."""
        info = self.analysis.program.info
        return frozenset(n for n, w in info.items() for p in self.keep_fixed if matches_weight(n, len(w.shape), p))

    def _leave_out(self, based: set[str]) -> None:
        """Groups that data says nothing of stay whole, and unless asked for by name an axis whose inner axis is also
        cut: single dimensions inside heads go, not heads."""
        weighted = [g for g in self.chosen if g.name in based or self.consumers.keys() & set(g.consumers)]
        self._leave([g for g in self.chosen if g not in weighted], "no weight sums over it, data does not judge it")
        if self.groups is None:
            outer = {axis for g in weighted for axis in g.batch}
            heads = [g for g in self.chosen if g.axis in outer or g.kind in ("heads", "key-value heads")]
            self._leave(heads, "what lies inside it is cut")

    def _leave_products_out(self, based: set[str]) -> None:
        """Second-order selection, which the curves of a global budget come from, has one position for each column."""
        squared = [
            g for g in self.chosen if g.name not in based
            and not all(sums_once(self.consumers[n], g) for n in g.consumers if n in self.consumers)
        ]  # fmt: skip
        self._leave(squared, "it is multiplied with itself")

    def _leave(self, groups: Sequence[Group], why: str) -> None:
        self.notes += [f"{g.name} ({g.kind}) stays whole: {why}" for g in groups]
        self.chosen = [g for g in self.chosen if g not in groups]

    def counts(self) -> dict[Axis, int]:
        """How many positions each chosen group keeps."""
        self.kept = self._counts()
        return self.kept

    def cuts_streams(self) -> bool:
        """Whether a residual stream loses anything."""
        return any(s.stream and self.kept[s.group.axis] < s.group.size for s in self.subspaces)

    def _counts(self) -> dict[Axis, int]:
        if self.budget == "global":
            return self._allocated(self.costs)
        if self.budget == "standardised":
            return self._ranked(self.costs)
        if self.keep is not None:
            return counts_for_keep(self.chosen, self.keep, self.of, self.costs, self.round_to, self._widths())
        assert self.width is not None
        return counts_for_width(self.chosen, self.width, self.round_to)

    def _widths(self) -> Widths | None:
        """What single groups keep beside the common ratio."""
        if self.budget == "outliers" and self.batches:
            return shifted(width_offsets(self.chosen, outlier_shares(self.analysis, self.chosen, self.batches)))
        if self.budget == "influence" and self.batches:
            return by_influence(self.analysis, self.chosen, self.batches)
        return None

    def _allocated(self, costs: CostModel) -> dict[Axis, int]:
        assert self.keep is not None and self.batches is not None
        self.found = self._surveyed()
        self.notes += self.found.notes
        self.chosen = [g for g in self.chosen if g.name in self.found.curves]
        if not self.chosen and not self.matrices and self.keep < 1:
            why = self.notes[0] if self.notes else "it has no group that may be cut"
            raise PlanError(f"nothing of the model can be cut by data: {why}", remedy="try --method magnitude")
        idle = [name for name, curve in self.found.curves.items() if not curve.effect]
        if self.found.curves and len(idle) == len(self.found.curves) and self.keep < 1:
            raise PlanError(
                "a global budget has nothing to go by: no cut that was tried changed a floating point output",
                remedy="give --budget uniform, or other calibration data",
            )
        self.notes += [f"{name}: what was tried changed no floating point output; it counts as free" for name in idle]
        curves = {name: curve.scaled() for name, curve in self.found.curves.items()}
        self.scaled = curves
        found = allocate(self.chosen, curves, self.keep, self.of, costs, self.round_to, self.matrices)
        counts, self.ranks = found.counts, {name: pair.rank for name, pair in found.ranks.items()}
        self.expected = sum(float(curves[g.name][counts[g.axis]]) for g in self.chosen)
        self.expected += sum(float(curves[name][rank]) for name, rank in self.ranks.items())
        self._note_rest(costs.of(self.of, counts, found.ranks), "one unit more of any group would exceed the budget")
        return counts

    def _note_rest(self, remaining: int, why: str) -> None:
        share = remaining / self.costs.whole(self.of)
        if self.keep is not None and share < self.keep - TOLERANCE:
            self.notes.append(f"{share:.1%} of the {self.of} remain: {why}")
        if self.keep is not None and share > self.keep:
            self.notes.append(f"{share:.2%} of the {self.of} remain, more than was asked for: nothing smaller is left")

    def _ranked(self, costs: CostModel) -> dict[Axis, int]:
        """Counts by one ranking of all positions, whose scores choose them as well."""
        assert self.keep is not None
        if self.importance in BY_DATA:
            assert self.batches is not None
            by_weights = scores_on_original(self.importance, self.analysis, self.chosen, self.batches)
            self.scores = {**by_weights, **self._scored_products(self.chosen)}
        else:
            self.scores = scores_for(self.importance, self.analysis, self.chosen, self.seed, self.batches)
        counts = standardised_counts(self.chosen, self.scores, self.keep, self.of, costs, self.round_to)
        self._note_rest(costs.of(self.of, counts), "the position that was ranked next is that large")
        return counts

    def _surveyed(self) -> Survey:
        """What every chosen group costs at every size, probed; what is known already is not asked again."""
        based = {s.group.name for s in self.subspaces}
        if self.known is not None:
            wanted = [g.name for g in self.chosen] + [m.weight for m in self.matrices]
            curves = {name: self.known.curves[name] for name in wanted if name in self.known.curves}
            bases = {name: basis for name, basis in self.known.bases.items() if name in curves}
            if len(curves) == len(wanted) and bases.keys() == based & curves.keys():
                return Survey(
                    curves, {}, tuple(self.subspaces), ()
                )  # what a norm's mean was moved into has other bases
        assert self.batches is not None
        key = self._asked() if self.surveys is not None else ""
        if self.surveys is not None and key in self.surveys:
            return self.surveys[key]
        weighted = [g for g in self.chosen if g.name not in self.products]
        found = survey(self.analysis, weighted, self.subspaces, self._looked_at, self.progress, self.matrices)
        found.curves.update((n, product_curve(s)) for n, s in self._scored_products(self.chosen).items())
        changed = rebase(self.analysis, found, tuple(found.bases))
        few = few_examples(self.analysis, self.batches[-1])
        for program, in_basis in ((changed, True), (Rebased(self.analysis), False)):
            own = {n: c for n, c in found.curves.items() if (n in found.bases) == in_basis}
            probe(program.analysis, own, program.inputs([few])[0], self.progress)
        if self.surveys is not None:
            self.surveys[key] = found
        return found

    @cached_property
    def _looked_at(self) -> Sequence[Sequence[Tensor]]:
        """The batches of a survey, here and where the plan is applied."""
        assert self.batches is not None
        return looked_at(self.analysis, self.batches)

    def _asked(self) -> str:
        """What a survey depends on: the program, its weights, the data, and what is asked."""
        program, names = self.analysis.program, ([g.name for g in self.chosen], [m.weight for m in self.matrices])
        assert self.batches is not None
        based, products = [s.group.name for s in self.subspaces], sorted(self.products)
        asked = (self.importance, names, based, products)
        weights = digest([(program.weights[name] for name in program.info)])
        return repr((program.fingerprint(), weights, digest(self.batches), asked))

    def planned(self, counts: Mapping[Axis, int]) -> Planned:
        """The plan with these counts."""
        cut = [g for g in self.chosen if counts[g.axis] < g.size]
        number = {g.name: counts[g.axis] for g in cut}
        bases = {} if self.found is None else self.found.bases
        alone = {n: top(s, number[n]) for n, s in self._scored_products(cut).items()}
        based = tuple(s for s in self.subspaces if s.group.name in number)
        sized = with_pairs(Sized(self.analysis, number, based, bases, alone), self.ranks)
        if self.curves is not None:  # by the names that the groups have where weights are pairs, which come last
            renamed = dict(zip(number, sized.number, strict=False))
            self.curves.clear()
            self.curves.update({renamed.get(name, name): losses for name, losses in self.scaled.items()})
        opened, changed = sized.analysis, self._in_bases(sized)
        analysis, batches = changed.analysis, None if self.batches is None else changed.inputs(self.batches)
        groups = {name: analysis.group(name) for name in sized.number}
        first = {s.group.name: leading(s.group, sized.number[s.group.name]) for s in sized.subspaces}
        masks, restoration = self._choose(analysis, batches, groups, sized.number, {**first, **sized.masks})
        cuts = tuple(Cut.from_mask(g, masks[n], subspace=n in first) for n, g in groups.items())
        costs = CostModel(opened.axes, self.costs.uncounted, clock=self.clock) if self.ranks else self.costs
        remaining = {opened.group(name).axis: count for name, count in sized.number.items()}
        plan = Plan(
            opened.program.fingerprint(), cuts, self.options(), self._predicted(costs, remaining),
            (*self.notes, *cache_notes(based)), preparations_of(opened.program),
        )  # fmt: skip
        if any(not g.exact for g in cut) or self._summed_unseen(
            analysis, (g for n, g in groups.items() if n not in {**first, **sized.masks})
        ):
            restoration = None  # decided behind calls that ran uncut: the finished plan has to be restored by itself
        return Planned(plan, analysis, restoration, batches)

    def _predicted(self, costs: CostModel, remaining: Mapping[Axis, int]) -> dict[str, Any]:
        """Parameters and MACs before and after; of a budget by effect also the loss that it expects."""
        loss = {"loss": self.expected} if self.budget == "global" and math.isfinite(self.expected) else {}
        return {**self.costs.change(costs, remaining), **loss}

    def _scored_products(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """The scores of those groups that products of activations alone sum over, by name."""
        wanted = [g for g in groups if g.name in self.products]
        if new := [g for g in wanted if g.name not in self._product_scores]:
            assert self.batches is not None
            batches = fitted(self.batches)
            self._product_scores |= product_scores(self.analysis, new, self.products, batches, self.importance)
        return {g.name: self._product_scores[g.name] for g in wanted}

    def _choose(
        self, analysis: Analysis, batches: Sequence[Sequence[Tensor]] | None, groups: Mapping[str, Group],
        number: Mapping[str, int], first: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], Restoration | None]:  # fmt: skip
        """What each group keeps, by name, where `first` is decided already; and the restoration on the way."""
        rest = [g for n, g in groups.items() if n not in first]
        if self.scores or self.importance not in BY_DATA:
            scores = self.scores or scores_for(self.importance, analysis, rest, self.seed, batches)
            return {**first, **{g.name: top(scores[g.name], number[g.name]) for g in rest}}, None
        assert batches is not None
        selection = Selection({groups[n].axis: Kept(groups[n].batch, mask) for n, mask in first.items()})
        counts = {group.axis: number[n] for n, group in groups.items()}
        chooser = Chooser(analysis, rest, counts, batches, self.importance)
        restoration = restore_weights(
            analysis, selection, batches, chooser=chooser, progress=self.progress, journal=self.journal, by=self.restore
        )
        masks = {n: restoration.selection.kept[g.axis].mask for n, g in groups.items()}
        return masks, None if self.restore == "none" else restoration

    @staticmethod
    def _summed_unseen(analysis: Analysis, groups: Iterable[Group]) -> bool:
        """Whether a group is also summed over by calls that decide nothing (queries against keys): they may come before
        the one that does."""
        consumers = {c.node.name for c in find_consumers(analysis.axes)[0]}
        return any(not consumers >= set(g.consumers) for g in groups)

    def _in_bases(self, sized: Sized) -> Rebased:
        """The analysis of the program in the bases of its subspaces; those that are not known are estimated."""
        names = [s.group.name for s in sized.subspaces]
        bases = {name: basis for name, basis in sized.bases.items() if name in names}
        if missing := [s for s in sized.subspaces if s.group.name not in bases]:
            bases |= survey(sized.analysis, [], missing, self._looked_at, self.progress).bases
        return rebase(sized.analysis, Survey({}, bases, sized.subspaces, ()), names)

    def options(self) -> dict[str, Any]:
        """How the plan was made, as it says itself."""
        return {
            "keep": self.keep, "width": self.width, "of": self.of, "importance": self.importance,
            "subspace": self.subspace, "ranks": bool(self.matrices), "budget": self.budget, "round_to": self.round_to,
            "inexact": self.inexact, "seed": self.seed, "groups": self.groups, "keep_fixed": self.keep_fixed,
            "keep_caches": self.keep_caches, "uncounted": self.uncounted,
            "data": digest(self.batches) if (self.subspaces or self.ranks) and self.batches else None,
            "surveyed": len(self._looked_at) if (self.subspaces or self.ranks) and self.batches else None,
        }  # fmt: skip
