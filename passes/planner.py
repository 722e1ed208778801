"""Making plans: which groups, how many positions of each, and which ones."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError, PlanError
from fxslim.passes.allocation import allocate
from fxslim.passes.bases import change_bases
from fxslim.passes.budget import BUDGETS, TOLERANCE, Budget, choose_groups, counts_for_keep, counts_for_width
from fxslim.passes.consumers import find_consumers
from fxslim.passes.depth import plan_depth
from fxslim.passes.fold_norms import FoldNorms
from fxslim.passes.importance import BY_DATA, IMPORTANCES, Chooser, Importance, scores_for, sums_once, top
from fxslim.passes.outliers import outlier_shares, width_offsets
from fxslim.passes.pairs import Metric
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prepare import preparations_of, prepare
from fxslim.passes.ranks import plan_ranks
from fxslim.passes.restore import Progress, Restoration, restore_weights
from fxslim.passes.statistics import digest
from fxslim.passes.subspaces import Subspace, find_subspaces
from fxslim.passes.survey import Survey, fitted, leading, probe, survey

__all__ = ["Choices", "PlanOptions", "Planned", "make_plan", "plan_and_restore"]


class Choices(TypedDict, total=False):
    """What is cut, and by what it is chosen: what makes a method."""

    importance: Importance  # how positions are chosen: "magnitude" by default
    subspace: bool  # axes on which any basis will do are cut in the one that costs least: False by default
    budget: Budget  # "uniform", one ratio (default), "global", by what each costs the output, or "outliers" (OWL)
    streams: bool  # residual streams are opened (`fold-norms`), so that they can be cut in another basis: False
    groups: Sequence[str] | None  # kinds or patterns of names: only these are cut
    metric: Metric | None  # linear maps become pairs of a low rank instead of losing positions; how inputs are weighed
    depth: bool  # residual branches are left out whole instead: False


class PlanOptions(Choices, total=False):
    """What a plan may be asked for, besides the share that remains and the data."""

    width: float | None  # instead of `keep`: the share of positions that every chosen group keeps
    of: Target  # what `keep` is a share of: "params" (default) or "macs"
    round_to: int  # counts are multiples of this: 1 by default
    keep_fixed: Sequence[str]  # patterns of groups or weights that stay whole
    uncounted: Sequence[str]  # patterns of weights that `keep` does not count: embeddings, where blocks are meant
    inexact: bool  # also groups that a normalisation or softmax runs over: False by default
    seed: int
    progress: Progress | None


@dataclass(frozen=True)
class Planned:
    """A plan, the analysis that it applies to (its subspaces in their bases), and the restoration that choosing brought
    about on the way: None where choosing needed none, or where a group is cut that calls without weights, or norms, see
    before it is decided."""

    plan: Plan
    analysis: Analysis
    restoration: Restoration | None


def make_plan(
    analysis: Analysis,
    keep: float | None = None,
    *,
    calibration: Sequence[Sequence[Tensor]] | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """A plan for a program.

    `keep` is the share of all parameters (or MACs, `of`) that remains, `width` instead the share of positions that
    every chosen group keeps. An importance that needs data chooses by `calibration`, batches of flat inputs, and cuts
    what FASP cuts (neurons, channels, the value dimensions inside heads) unless `groups` says otherwise. See
    `PlanOptions` for the rest.

    Raises:
        InputError: an option is out of range or a pattern matches nothing.
        PlanError: the target cannot be met.
    """
    return plan_and_restore(analysis, keep, calibration=calibration, **options).plan


def plan_and_restore(
    analysis: Analysis,
    keep: float | None = None,
    *,
    calibration: Sequence[Sequence[Tensor]] | None = None,
    **options: Unpack[PlanOptions],
) -> Planned:
    """A plan as `make_plan` makes it, with what was found out on the way.

    The restoration is the one that restoring the finished plan on the same data would give.
    """
    if (metric := options.get("metric")) is not None:
        return _ranks(analysis, keep, calibration, metric, options)
    if options.get("depth"):
        left = _uncounted(analysis, _patterns(options.get("uncounted", ())) or [])
        plan, slim = plan_depth(analysis, keep, calibration, of=options.get("of", "params"), uncounted=left)
        return Planned(plan, slim, None)
    opened = _opened(analysis) if options.get("streams") else None
    if opened is not None:
        work = _Planner(opened, keep, calibration, options, original=analysis)
        counts = work.counts()
        if any(s.stream and counts[s.group.axis] < s.group.size for s in work.subspaces):
            return work.planned(counts)
    work = _Planner(analysis, keep, calibration, options)  # plain norms cost time: not for nothing
    return work.planned(work.counts())


def _ranks(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, metric: Metric,
    options: PlanOptions,
) -> Planned:  # fmt: skip
    plan, opened = plan_ranks(
        analysis, keep, batches, metric, budget=options.get("budget", "uniform"), of=options.get("of", "params"),
        round_to=options.get("round_to", 1), groups=_patterns(options.get("groups")),
        keep_fixed=_patterns(options.get("keep_fixed", ())) or (),
        uncounted=_patterns(options.get("uncounted", ())) or (), progress=options.get("progress"),
    )  # fmt: skip
    return Planned(plan, opened, None)


def _opened(analysis: Analysis) -> Analysis | None:
    """The program with plain norms, where that makes a residual stream a subspace that can be cut."""
    opened = prepare(analysis, [FoldNorms.name])
    return opened if any(s.stream for s in find_subspaces(opened, opened.prunable)[0]) else None


class _Planner:
    """The steps of making one plan: which groups, in which basis, how many positions, which ones."""

    def __init__(
        self, analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, options: PlanOptions,
        original: Analysis | None = None,
    ) -> None:  # fmt: skip
        self.analysis, self.keep, self.batches = analysis, keep, batches
        self.width, self.of = options.get("width"), options.get("of", "params")
        self.importance, self.budget = options.get("importance", "magnitude"), options.get("budget", "uniform")
        self.round_to, self.seed = options.get("round_to", 1), options.get("seed", 0)
        self.inexact, self.progress = options.get("inexact", False), options.get("progress")
        self.groups, self.keep_fixed = _patterns(options.get("groups")), _patterns(options.get("keep_fixed", ())) or []
        self.subspace = options.get("subspace", False)
        self.uncounted = _patterns(options.get("uncounted", ())) or []
        self.costs = self._costs(analysis, self._costs(original) if original is not None else None)
        self._check()
        self.chosen, self.notes = choose_groups(
            analysis, groups=self.groups, keep_fixed=self.keep_fixed, inexact=self.inexact
        )
        self.subspaces: list[Subspace] = []
        if self.subspace:
            self.subspaces, refused = find_subspaces(analysis, [g for g in self.chosen if g.exact])
            self.notes += [f"{text}; it is cut by position" for text in refused]
        self.consumers = {c.node.name: c for c in find_consumers(analysis.axes)[0]}
        based = {s.group.name for s in self.subspaces}
        if self.importance in BY_DATA:
            self._leave_out(based)
        if self.importance == "obs" or self.budget == "global":
            self._leave_products_out(based)
        self.subspaces = [s for s in self.subspaces if s.group in self.chosen]
        self.found: Survey | None = None

    def _costs(self, analysis: Analysis, original: CostModel | None = None) -> CostModel:
        return CostModel(analysis.axes, _uncounted(analysis, self.uncounted), original)

    def _check(self) -> None:
        if (self.keep is None) == (self.width is None):
            raise InputError("give either keep or width")
        if self.of not in ("params", "macs"):
            raise InputError(f"unknown target {self.of!r}", remedy="choose params or macs")
        if not isinstance(self.round_to, int) or self.round_to < 1:
            raise InputError(f"round_to must be a whole number of at least 1, got {self.round_to}")
        if self.importance not in IMPORTANCES:
            raise InputError(
                f"unknown importance {self.importance!r}", remedy=f"choose one of {', '.join(IMPORTANCES)}"
            )
        if self.budget not in BUDGETS:
            raise InputError(f"unknown budget {self.budget!r}", remedy=f"choose one of {', '.join(BUDGETS)}")
        if self.budget != "uniform" and self.keep is None:
            raise InputError(f"a {self.budget} budget divides a share of the whole", remedy="give keep, not width")
        needs = {
            f"the importance {self.importance!r}": self.importance in (*BY_DATA, "taylor"), "subspace": self.subspace,
            f"the budget {self.budget!r}": self.budget != "uniform",
        }  # fmt: skip
        if not self.batches and any(needs.values()):
            what = next(name for name, needed in needs.items() if needed)
            raise InputError(f"{what} needs calibration data", remedy="give `calibration=` (--calibration FILE)")

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
        if self.budget == "global":
            return self._allocated(self.costs)
        if self.keep is not None:
            return counts_for_keep(self.chosen, self.keep, self.of, self.costs, self.round_to, self._offsets())
        assert self.width is not None
        return counts_for_width(self.chosen, self.width, self.round_to)

    def _offsets(self) -> dict[Axis, float] | None:
        if self.budget != "outliers":
            return None
        assert self.batches is not None
        return width_offsets(self.chosen, outlier_shares(self.analysis, self.chosen, self.batches))

    def _allocated(self, costs: CostModel) -> dict[Axis, int]:
        assert self.keep is not None and self.batches is not None
        self.found = survey(self.analysis, self.chosen, self.subspaces, fitted(self.batches), self.progress)
        self.notes += self.found.notes
        self.chosen = [g for g in self.chosen if g.name in self.found.curves]
        if not self.chosen and self.keep < 1:
            why = self.notes[0] if self.notes else "it has no group that may be cut"
            raise PlanError(f"nothing of the model can be cut by data: {why}", remedy="try --method magnitude")
        changed = change_bases(self.analysis, self.found, tuple(self.found.bases))
        for analysis, based in ((changed, True), (self.analysis, False)):
            own = {n: c for n, c in self.found.curves.items() if (n in self.found.bases) == based}
            probe(analysis, own, self.batches[-1], self.progress)
        idle = [name for name, curve in self.found.curves.items() if not curve.effect]
        if self.found.curves and len(idle) == len(self.found.curves) and self.keep < 1:
            raise PlanError(
                "a global budget has nothing to go by: no cut that was tried changed a floating point output",
                remedy="give --budget uniform, or other calibration data",
            )
        self.notes += [f"{name}: what was tried changed no floating point output; it counts as free" for name in idle]
        curves = {name: curve.scaled() for name, curve in self.found.curves.items()}
        counts = allocate(self.chosen, curves, self.keep, self.of, costs, self.round_to)
        share = costs.of(self.of, counts) / costs.whole(self.of)
        if share < self.keep - TOLERANCE:
            self.notes.append(
                f"{share:.1%} of the {self.of} remain: one unit more of any group would exceed the budget"
            )
        return counts

    def planned(self, counts: Mapping[Axis, int]) -> Planned:
        """The plan with these counts."""
        cut = [g for g in self.chosen if counts[g.axis] < g.size]
        number = {g.name: counts[g.axis] for g in cut}
        analysis = self._in_bases([s for s in self.subspaces if s.group.name in number])
        groups = {name: analysis.group(name) for name in number}
        first = {s.group.name: leading(s.group, number[s.group.name]) for s in self.subspaces if s.group.name in number}
        masks, restoration = self._choose(analysis, groups, number, first)
        cuts = tuple(Cut.from_mask(g, masks[n], subspace=n in first) for n, g in groups.items())
        plan = Plan(
            self.analysis.program.fingerprint(), cuts, self._options(), _predicted(self.costs, counts),
            tuple(self.notes), preparations_of(self.analysis.program),
        )  # fmt: skip
        if any(not g.exact for g in cut) or self._summed_unseen(g for g in cut if g.name not in first):
            restoration = None  # decided behind calls that ran uncut: the finished plan has to be restored by itself
        return Planned(plan, analysis, restoration)

    def _choose(
        self, analysis: Analysis, groups: Mapping[str, Group], number: Mapping[str, int], first: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], Restoration | None]:
        """What each group keeps, by name, where subspaces keep what comes `first`; and the restoration on the way."""
        rest = [g for n, g in groups.items() if n not in first]
        if self.importance not in BY_DATA:
            scores = scores_for(self.importance, analysis, rest, self.seed, self.batches)
            return {**first, **{name: top(score, number[name]) for name, score in scores.items()}}, None
        assert self.batches is not None
        selection = Selection({groups[n].axis: Kept(groups[n].batch, mask) for n, mask in first.items()})
        counts = {group.axis: number[n] for n, group in groups.items()}
        chooser = Chooser(analysis, rest, counts, self.batches, self.importance)
        restoration = restore_weights(analysis, selection, self.batches, chooser=chooser, progress=self.progress)
        return {n: restoration.selection.kept[g.axis].mask for n, g in groups.items()}, restoration

    def _summed_unseen(self, groups: Iterable[Group]) -> bool:
        """Whether a group is also summed over by calls that decide nothing (queries against keys): they may come before
        the one that does."""
        return any(not self.consumers.keys() >= set(g.consumers) for g in groups)

    def _in_bases(self, based: Sequence[Subspace]) -> Analysis:
        if not based:
            return self.analysis
        if self.found is None:
            assert self.batches is not None
            self.found = survey(self.analysis, [], based, fitted(self.batches), self.progress)
        return change_bases(self.analysis, self.found, [s.group.name for s in based])

    def _options(self) -> dict[str, Any]:
        return {
            "keep": self.keep, "width": self.width, "of": self.of, "importance": self.importance,
            "subspace": self.subspace, "budget": self.budget, "round_to": self.round_to, "inexact": self.inexact,
            "seed": self.seed, "groups": self.groups, "keep_fixed": self.keep_fixed, "uncounted": self.uncounted,
            "data": digest(v for batch in self.batches for v in batch) if self.subspaces and self.batches else None,
        }  # fmt: skip


def _uncounted(analysis: Analysis, patterns: Sequence[str]) -> frozenset[str]:
    names = analysis.program.info
    return frozenset(n for pattern in patterns for n in fnmatch.filter(names, pattern.replace("[", "[[]")))


def _patterns(given: Sequence[str] | str | None) -> list[str] | None:
    return None if given is None else [given] if isinstance(given, str) else list(given)


def _predicted(costs: CostModel, counts: Mapping[Axis, int]) -> dict[str, Any]:
    return {
        "params": [costs.original.params(), costs.params(counts)],
        "macs": [costs.original.macs(), costs.macs(counts)],
        "bytes": [costs.original.bytes(), costs.bytes(counts)],
    }
