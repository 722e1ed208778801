"""Making plans: which groups, how many positions of each, and which ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.roles import STREAM
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.axes.terms import Axis
from fxslim.graph.costs import CostModel
from fxslim.graph.errors import InputError, PlanError, VerifyError
from fxslim.passes.allocation import allocate
from fxslim.passes.bases import Rebased, rebase
from fxslim.passes.budget import TOLERANCE, choose_groups, counts_for_keep, counts_for_width
from fxslim.passes.caches import cache_notes
from fxslim.passes.consumers import find_consumers
from fxslim.passes.depth import plan_depth
from fxslim.passes.fold_norms import FoldNorms
from fxslim.passes.importance import BY_DATA, Chooser, scores_for, sums_once, top
from fxslim.passes.options import PlanOptions, check_options, patterns, uncounted_names
from fxslim.passes.outliers import outlier_shares, width_offsets
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prepare import preparations_of, prepare
from fxslim.passes.ranks import plan_ranks
from fxslim.passes.restore import Restoration, restore_weights
from fxslim.passes.statistics import digest
from fxslim.passes.subspaces import Subspace, find_subspaces, leading
from fxslim.passes.survey import Survey, fitted, probe, survey

__all__ = ["PlanOptions", "Planned", "make_plan", "plan_and_restore"]


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
    check_options(options)
    if options.get("metric") is not None:
        return _ranks(analysis, keep, calibration, options)
    if options.get("depth"):
        left = uncounted_names(analysis, patterns(options.get("uncounted", ())) or [])
        plan, slim = plan_depth(analysis, keep, calibration, of=options.get("of", "params"), uncounted=left)
        return Planned(plan, slim, None)
    if options.get("streams"):
        return _with_streams(analysis, keep, calibration, options)
    work = _Planner(analysis, keep, calibration, options)
    return work.planned(work.counts())


def _ranks(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, options: PlanOptions
) -> Planned:
    metric = options.get("metric")
    assert metric is not None
    plan, opened = plan_ranks(
        analysis, keep, batches, metric, budget=options.get("budget", "uniform"), of=options.get("of", "params"),
        round_to=options.get("round_to", 1), groups=patterns(options.get("groups")),
        keep_fixed=patterns(options.get("keep_fixed", ())) or (),
        uncounted=uncounted_names(analysis, patterns(options.get("uncounted", ())) or []),
        progress=options.get("progress"),
    )  # fmt: skip
    return Planned(plan, opened, None)


def _with_streams(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, options: PlanOptions
) -> Planned:
    """The plan with open residual streams, or the one without where it is expected to lose less: plain norms cost time,
    and matrices between streams parameters."""
    wide, why = _wide(analysis, keep, batches, options)
    if wide is not None and wide.budget != "global":
        return wide.planned(wide.kept)
    if wide is None and patterns(options.get("groups")) == [STREAM]:
        said = why[0] if why else "something else than norms and linear maps touches each, or there is none"
        raise PlanError(f"no residual stream of the model can be cut: {said}", remedy="try --method best")
    narrow = _Planner(analysis, keep, batches, options, known=None if wide is None else wide.found)
    narrow.notes += why
    if wide is None or not wide.cuts_streams():
        return narrow.planned(narrow.counts())
    try:
        counts = narrow.counts()
    except PlanError:
        return wide.planned(wide.kept)  # only streams bring the budget within reach
    return narrow.planned(counts) if narrow.expected <= wide.expected else wide.planned(wide.kept)


def _wide(
    analysis: Analysis, keep: float | None, batches: Sequence[Sequence[Tensor]] | None, options: PlanOptions
) -> tuple[_Planner | None, list[str]]:
    """The planner of the program with plain norms, with its counts made; or why there is none."""
    try:
        opened = prepare(analysis, [FoldNorms.name])
    except VerifyError as error:
        return None, [f"residual streams stay closed: with plain norms {error.what}"]
    if not any(s.stream for s in find_subspaces(opened, opened.prunable)[0]):
        return None, []
    try:
        work = _Planner(opened, keep, batches, options, original=analysis)
        work.counts()
    except (PlanError, InputError) as error:  # of a weight that is folded away; the closed program raises the others
        return None, [f"residual streams stay closed: {error.what}"]
    return work, []


class _Planner:
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
        self.subspace = options.get("subspace", False)
        self.uncounted = patterns(options.get("uncounted", ())) or []
        before = None if original is None else CostModel(original.axes, uncounted_names(original, self.uncounted))
        self.costs = CostModel(analysis.axes, uncounted_names(analysis, self.uncounted, original), before)
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
        self.known = known  # a survey of the same program in another form: what it says of a group by name holds here
        self.found: Survey | None = None
        self.kept: dict[Axis, int] = {}
        self.expected = 0.0  # the sum of all losses, in units of the output's divergence

    def _check(self) -> None:
        if (self.keep is None) == (self.width is None):
            raise InputError("give either keep or width")
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
        self.kept = self._counts()
        return self.kept

    def cuts_streams(self) -> bool:
        """Whether a residual stream loses anything."""
        return any(s.stream and self.kept[s.group.axis] < s.group.size for s in self.subspaces)

    def _counts(self) -> dict[Axis, int]:
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
        self.found = self._surveyed()
        self.notes += self.found.notes
        self.chosen = [g for g in self.chosen if g.name in self.found.curves]
        if not self.chosen and self.keep < 1:
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
        counts = allocate(self.chosen, curves, self.keep, self.of, costs, self.round_to)
        self.expected = sum(float(curves[g.name][counts[g.axis]]) for g in self.chosen)
        share = costs.of(self.of, counts) / costs.whole(self.of)
        if share < self.keep - TOLERANCE:
            self.notes.append(
                f"{share:.1%} of the {self.of} remain: one unit more of any group would exceed the budget"
            )
        return counts

    def _surveyed(self) -> Survey:
        """What every chosen group costs at every size, probed; what is known already is not asked again."""
        based = {s.group.name for s in self.subspaces}
        if self.known is not None:
            curves = {g.name: self.known.curves[g.name] for g in self.chosen if g.name in self.known.curves}
            bases = {name: basis for name, basis in self.known.bases.items() if name in curves}
            if len(curves) == len(self.chosen) and bases.keys() == based & curves.keys():
                return Survey(curves, bases, tuple(self.subspaces), ())
        assert self.batches is not None
        found = survey(self.analysis, self.chosen, self.subspaces, fitted(self.batches), self.progress)
        changed = rebase(self.analysis, found, tuple(found.bases))
        for program, in_basis in ((changed, True), (Rebased(self.analysis), False)):
            own = {n: c for n, c in found.curves.items() if (n in found.bases) == in_basis}
            probe(program.analysis, own, program.inputs(self.batches[-1:])[0], self.progress)
        return found

    def planned(self, counts: Mapping[Axis, int]) -> Planned:
        """The plan with these counts."""
        cut = [g for g in self.chosen if counts[g.axis] < g.size]
        number = {g.name: counts[g.axis] for g in cut}
        based = [s for s in self.subspaces if s.group.name in number]
        changed = self._in_bases(based)
        analysis, batches = changed.analysis, None if self.batches is None else changed.inputs(self.batches)
        groups = {name: analysis.group(name) for name in number}
        first = {s.group.name: leading(s.group, number[s.group.name]) for s in based}
        masks, restoration = self._choose(analysis, batches, groups, number, first)
        cuts = tuple(Cut.from_mask(g, masks[n], subspace=n in first) for n, g in groups.items())
        plan = Plan(
            self.analysis.program.fingerprint(), cuts, self._options(), self.costs.change(counts=counts),
            (*self.notes, *cache_notes(based)), preparations_of(self.analysis.program),
        )  # fmt: skip
        if any(not g.exact for g in cut) or self._summed_unseen(g for g in cut if g.name not in first):
            restoration = None  # decided behind calls that ran uncut: the finished plan has to be restored by itself
        return Planned(plan, analysis, restoration, batches)

    def _choose(
        self, analysis: Analysis, batches: Sequence[Sequence[Tensor]] | None, groups: Mapping[str, Group],
        number: Mapping[str, int], first: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], Restoration | None]:  # fmt: skip
        """What each group keeps, by name, where subspaces keep what comes `first`; and the restoration on the way."""
        rest = [g for n, g in groups.items() if n not in first]
        if self.importance not in BY_DATA:
            scores = scores_for(self.importance, analysis, rest, self.seed, batches)
            return {**first, **{name: top(score, number[name]) for name, score in scores.items()}}, None
        assert batches is not None
        selection = Selection({groups[n].axis: Kept(groups[n].batch, mask) for n, mask in first.items()})
        counts = {group.axis: number[n] for n, group in groups.items()}
        chooser = Chooser(analysis, rest, counts, batches, self.importance)
        restoration = restore_weights(analysis, selection, batches, chooser=chooser, progress=self.progress)
        return {n: restoration.selection.kept[g.axis].mask for n, g in groups.items()}, restoration

    def _summed_unseen(self, groups: Iterable[Group]) -> bool:
        """Whether a group is also summed over by calls that decide nothing (queries against keys): they may come before
        the one that does."""
        return any(not self.consumers.keys() >= set(g.consumers) for g in groups)

    def _in_bases(self, based: Sequence[Subspace]) -> Rebased:
        if not based:
            return Rebased(self.analysis)
        if self.found is None:
            assert self.batches is not None
            self.found = survey(self.analysis, [], based, fitted(self.batches), self.progress)
        return rebase(self.analysis, self.found, [s.group.name for s in based])

    def _options(self) -> dict[str, Any]:
        return {
            "keep": self.keep, "width": self.width, "of": self.of, "importance": self.importance,
            "subspace": self.subspace, "budget": self.budget, "round_to": self.round_to, "inexact": self.inexact,
            "seed": self.seed, "groups": self.groups, "keep_fixed": self.keep_fixed, "uncounted": self.uncounted,
            "data": digest(self.batches) if self.subspaces and self.batches else None,
        }  # fmt: skip
