"""What a plan may be asked for, and what of it makes sense together."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, get_args

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.costs import Target
from fxslim.graph.errors import InputError
from fxslim.graph.latency import Clock
from fxslim.passes.budget import BUDGETS, Budget
from fxslim.passes.importance import Importance, importance_names
from fxslim.passes.journal import Journal
from fxslim.passes.pairs import METRICS, Metric
from fxslim.passes.rank_schedule import SLOPE
from fxslim.passes.restore import By, Progress
from fxslim.passes.rounds import SCHEDULES, Schedule
from fxslim.passes.survey import Survey

__all__ = ["Choices", "PlanOptions", "check_options", "matches_weight", "patterns", "uncounted_names"]


class Choices(TypedDict, total=False):
    """What is cut, and by what it is chosen: what makes a method."""

    importance: Importance  # how positions are chosen: "magnitude" by default
    subspace: bool  # axes on which any basis will do are cut in the one that costs least: False by default
    budget: Budget  # "uniform", one ratio (default), "global", by what each costs the output, "outliers" (OWL),
    # "standardised", one ranking of all positions (FLAP), "influence" (MoDeGPT), or, of ranks, "linear" (LR-SMS)
    ranks: bool  # weights may become pairs of a low rank where a global budget says so: False by default
    streams: bool  # residual streams are opened (`fold-norms`), so that they can be cut in another basis: False
    groups: Sequence[str] | None  # kinds or patterns of names: only these are cut
    metric: Metric | None  # linear maps become pairs of a low rank instead of losing positions; how inputs are weighed
    depth: bool  # residual branches are left out whole instead: False
    rounds: int  # positions are chosen in so many rounds of cutting and restoring: 1 by default
    share: bool  # neighbouring residual branches use one set of weights instead: False


class PlanOptions(Choices, total=False):
    """What a plan may be asked for, besides the share that remains and the data."""

    width: float | None  # instead of `keep`: the share of positions that every chosen group keeps
    of: Target  # what `keep` is a share of: "params" (default), "macs", or "latency", which needs a clock
    clock: Clock | None  # knows how long operators take where the model is to run (`fxslim.export.clock`)
    round_to: int  # counts are multiples of this: 1 by default
    keep_fixed: Sequence[str]  # patterns of groups or weights that stay whole
    keep_caches: bool  # key-value caches keep their shapes: False by default
    uncounted: Sequence[str]  # patterns of weights that `keep` does not count: embeddings, where blocks are meant
    inexact: bool  # also groups that a normalisation or softmax runs over: False by default
    schedule: Schedule  # of the rounds: the same share ("geometric", by default) or number ("linear") goes in each
    slope: float  # of ranks by depth: they fall from the first to the last where it is positive, else they rise
    restore: By | None  # how weights are to be restored, by least squares by default: what a choice on the way sees
    seed: int
    progress: Progress | None
    surveys: dict[str, Survey] | None  # keeps what a global budget found out, for the next plan with other shares
    journal: Journal | None  # keeps what the restoration on the way has finished
    curves: dict[str, Tensor] | None  # is told what a global budget went by: losses at every size, by group or weight


# What has no effect where a plan is one of ranks, of depth or of sharing.
_IDLE: dict[str, tuple[str, ...]] = {
    "metric": ("depth", "share", "ranks", "streams", "subspace", "inexact", "width"),
    "share": ("depth", "ranks", "streams", "subspace", "inexact", "width", "groups", "keep_fixed"),
    "depth": ("ranks", "streams", "subspace", "inexact", "width", "groups", "keep_fixed"),
}
_DONE = {
    "metric": "ranks are chosen", "share": "residual branches share weights", "depth": "residual branches are left out",
}  # fmt: skip


def check_options(options: PlanOptions) -> None:
    """Returns if every option has a value that it may have, and none is idle.

    Raises:
        InputError: else.
    """
    _known("target", options.get("of", "params"), ("params", "macs", "latency"))
    _known("importance", options.get("importance", "magnitude"), importance_names())
    _known("budget", options.get("budget", "uniform"), BUDGETS)
    _known("metric", options.get("metric"), (None, *METRICS))
    _known("restoration", options.get("restore"), (None, *get_args(By)))
    round_to = options.get("round_to", 1)
    if not isinstance(round_to, int) or round_to < 1:
        raise InputError(f"round_to must be a whole number of at least 1, got {round_to}")
    if options.get("ranks") and options.get("budget") != "global":
        raise InputError(
            "ranks are weighed against other cuts by a global budget",
            remedy="give budget='global', or metric= for ranks alone",
        )
    _check_clock(dict(options))
    _check_rounds(dict(options))
    _check_slope(dict(options))
    kind = next((kind for kind in _IDLE if options.get(kind)), None)
    if kind is not None:
        _refuse_idle(kind, dict(options))


def _check_clock(options: Mapping[str, Any]) -> None:
    """Returns if what is asked for by latency has a clock, and can be told by one.

    Raises:
        InputError: else.
    """
    if options.get("of", "params") != "latency":
        return
    if options.get("clock") is None:
        raise InputError(
            "latency is a matter of the machine that the model runs on, and there is no clock of one",
            remedy="use `fxslim slim --of latency`, or give clock=fxslim.export.measure_clock(...)",
        )
    if options.get("uncounted"):
        raise InputError("uncounted: no effect on latency, which all weights take part in", remedy="leave it out")
    if kind := next((kind for kind in ("metric", "share") if options.get(kind)), None):
        raise InputError(f"of latency: no effect where {_DONE[kind]}", remedy="give --of params, or --method best")


def _check_rounds(options: Mapping[str, Any]) -> None:
    """Returns if the rounds are a number, and what they choose is positions.

    Raises:
        InputError: else.
    """
    rounds, schedule = options.get("rounds", 1), options.get("schedule", "geometric")
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise InputError(f"rounds must be a whole number of at least 1, got {rounds}")
    _known("schedule", schedule, SCHEDULES)
    if rounds == 1 and schedule != "geometric":
        raise InputError("schedule: no effect with one round", remedy="leave it out, or give more rounds")
    based = [name for name in ("subspace", "ranks", "streams", "metric", "share", "depth") if options.get(name)]
    if rounds > 1 and based:
        raise InputError(
            f"{rounds} rounds choose positions alone, and the method asks for more: {', '.join(based)}",
            rule="the positions of rounds can be composed; bases, ranks and depth cannot",
            remedy="leave the rounds out, or choose by position: fasp, osscar, flap, wanda-sp, owl or magnitude",
        )


def _check_slope(options: Mapping[str, Any]) -> None:
    budget, slope = options.get("budget", "uniform"), options.get("slope", SLOPE)
    if not isinstance(slope, int | float) or isinstance(slope, bool) or not -1 < slope < 1:
        raise InputError(f"slope must lie between -1 and 1, got {slope}", remedy="0.25 has the first weights keep more")
    if slope != SLOPE and budget != "linear":
        raise InputError("slope: no effect where ranks do not go by depth", remedy="give --budget linear")
    if budget == "linear" and options.get("metric") is None:
        raise InputError("the budget 'linear' divides ranks, and none are chosen", remedy="choose --method lr-sms")


def _known(what: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        listed = ", ".join(str(c) for c in choices if c is not None)
        raise InputError(f"unknown {what} {value!r}", remedy=f"choose one of {listed}")


def _refuse_idle(kind: str, options: dict[str, Any]) -> None:
    idle = [name for name in _IDLE[kind] if options.get(name)]
    idle += ["importance"] * (options.get("importance", "magnitude") != "magnitude")
    budgets = ("uniform", "global", "linear") if kind == "metric" else ("uniform",)
    idle += ["budget"] * (options.get("budget", "uniform") not in budgets)
    idle += ["round_to"] * (kind != "metric" and options.get("round_to", 1) != 1)
    if idle:
        raise InputError(
            f"{', '.join(idle)}: no effect where {_DONE[kind]}", remedy="leave it out, or choose another method"
        )


def patterns(given: Sequence[str] | str | None) -> list[str] | None:
    """A pattern or several as a list."""
    return None if given is None else [given] if isinstance(given, str) else list(given)


def matches_weight(name: str, rank: int, pattern: str) -> bool:
    """Whether a pattern means a weight: by its name, or by one of its dimensions as `name[0]`."""
    escaped = pattern.replace("[", "[[]")
    return any(fnmatch.fnmatchcase(n, escaped) for n in (name, *(f"{name}[{d}]" for d in range(rank))))


def uncounted_names(analysis: Analysis, given: Sequence[str], original: Analysis | None = None) -> frozenset[str]:
    """The weights that a share does not count: those that the patterns match in the program, or in the `original` that
    it was prepared from.

    Raises:
        InputError: a pattern matches no weight, or nothing would be counted.
    """
    info = analysis.program.info
    found: set[str] = set()
    for pattern in given:
        own = {n for n, w in info.items() if matches_weight(n, len(w.shape), pattern)}
        before = {} if original is None else original.program.info
        if not own and not any(matches_weight(n, len(w.shape), pattern) for n, w in before.items()):
            raise InputError(
                f"uncounted: {pattern!r} matches no weight", remedy="`fxslim groups MODEL` shows the weights' names"
            )
        found |= own
    if found and not any(w.trainable and n not in found for n, w in info.items()):
        raise InputError("uncounted: no weight is left to count", remedy="give fewer patterns")
    return frozenset(found)
