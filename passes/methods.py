"""Methods by name: what the papers chose, as settings of the parts that all methods share.

Each is a combination of how positions are chosen (`importance`), whether axes on which any basis will do are cut in the
best one (`subspace`), how the budget is divided (`budget`) and whether what stays is refitted (`restore`). What a
paper's method has in common with the others (capture, groups, rewriting, the proof) is not repeated here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

from fxslim.graph.axes.roles import STREAM
from fxslim.graph.errors import InputError
from fxslim.passes.budget import Budget
from fxslim.passes.importance import Importance, needs_data
from fxslim.passes.options import Choices, PlanOptions, check_options
from fxslim.passes.pairs import Metric
from fxslim.passes.restore import By

__all__ = ["METHODS", "Settings", "add_method", "registered_methods", "settings"]

Restore = By


@dataclass(frozen=True)
class Settings:
    """What a method, and what was asked for besides it, come to."""

    importance: Importance
    subspace: bool
    budget: Budget
    restore: Restore | None  # None: by least squares where there is data
    ranks: bool = False  # weights may become pairs of a low rank besides
    streams: bool = False  # residual streams are opened and cut in another basis
    groups: tuple[str, ...] | None = None  # only these kinds are cut
    depth: bool = False  # residual branches are left out whole instead
    share: bool = False  # neighbouring residual branches use one set of weights instead
    metric: Metric | None = None  # linear maps become pairs of a low rank instead; how their inputs are weighed
    rounds: int = 1  # of choosing positions

    @property
    def refits(self) -> bool:
        """Whether consumers are refitted by least squares, where there is data."""
        return self.restore in (None, "least-squares") and self.metric is None

    def options(self) -> Choices:
        """What they say to a plan."""
        return {
            "importance": self.importance, "subspace": self.subspace, "budget": self.budget, "ranks": self.ranks,
            "streams": self.streams, "groups": self.groups, "depth": self.depth, "share": self.share,
            "metric": self.metric, "rounds": self.rounds,
        }  # fmt: skip


DEFAULT = "best"
_METHODS: dict[str, Settings] = {
    # This project's strongest measured combination.
    "best": Settings("obs", True, "global", "least-squares", ranks=True, streams=True),
    # FASP (Huawei 2025, arXiv 2501.09412).
    "fasp": Settings("fasp", False, "uniform", "least-squares"),
    # Wanda (Sun 2023, arXiv 2306.11695) in the structured form of FLAP's authors: FASP's score, nothing restored.
    "wanda-sp": Settings("fasp", False, "uniform", "none"),
    # FLAP (An 2024, arXiv 2312.11983), value dimensions in the place of whole heads.
    "flap": Settings("flap", False, "standardised", "bias"),
    # OSSCAR (Meng 2024, arXiv 2403.12983), ZipLM (Kurtic 2023, arXiv 2302.04089).
    "osscar": Settings("obs", False, "uniform", "least-squares"),
    # TransAct (Shen 2024, arXiv 2407.05690), iterative; the number of rounds is this project's.
    "transact": Settings("activation", False, "uniform", "none", rounds=4),
    # OWL (Yin 2024, arXiv 2310.05175): FASP with widths by the share of outliers.
    "owl": Settings("fasp", False, "outliers", "least-squares"),
    # MoDeGPT (Lin 2024, arXiv 2408.09632), with second-order selection in the place of Nyström's scores.
    "modegpt": Settings("obs", True, "uniform", "least-squares"),
    # SliceGPT (Ashkboos 2024, arXiv 2401.15024) with one rotation for each stream, not for each block.
    "pca": Settings("magnitude", True, "uniform", "none", streams=True, groups=(STREAM,)),
    # The truncated singular value decomposition of the weights alone; needs no data.
    "svd": Settings("magnitude", False, "uniform", "none", metric="plain"),
    # ASVD (Yuan 2023, arXiv 2312.05821), one share for all weights in the place of its search.
    "asvd": Settings("magnitude", False, "uniform", "none", metric="scaled"),
    # SVD-LLM (Wang 2024, arXiv 2403.07378), computed as in Swift-SVD (2026, arXiv 2604.01609).
    "svd-llm": Settings("magnitude", False, "uniform", "none", metric="whitened"),
    # WeLore (Jaiswal 2024, arXiv 2407.11239), before its fine-tuning.
    "welore": Settings("magnitude", False, "global", "none", metric="plain"),
    # LR-SMS (Fernandez-Lopez 2024, arXiv 2410.07771): its ranks by depth and its start, for a trained model.
    "lr-sms": Settings("magnitude", False, "linear", "none", metric="plain"),
    # ShortGPT (Men 2024, arXiv 2403.03853), attention and feed-forward branches each by themselves.
    "shortgpt": Settings("magnitude", False, "uniform", "none", depth=True),
    # FoldGPT's sharing (Liu 2024, arXiv 2407.00928), in closed form in the place of its fine-tuning.
    "foldgpt": Settings("magnitude", False, "uniform", "least-squares", share=True),
    # Li 2017 (arXiv 1608.08710); needs no data.
    "magnitude": Settings("magnitude", False, "uniform", "none"),
}
METHODS: Mapping[str, Settings] = MappingProxyType(_METHODS)
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def add_method(name: str, chosen: Settings, *, replace: bool = False) -> None:
    """Makes a combination from elsewhere known by a name.

    Raises:
        InputError: the name is not in kebab case or is taken (unless `replace`), or the settings contradict each other.
    """
    if not isinstance(chosen, Settings):
        raise InputError(f"the method {name!r} is {type(chosen).__name__}, not Settings")
    if not _NAME.fullmatch(name):
        raise InputError(f"a method is called {name!r}", remedy="lower case, words joined by hyphens")
    if name in METHODS and not replace:
        raise InputError(
            f"there is a method {name!r} already",
            remedy="choose another name, or say replace=True if yours is to be used instead",
        )
    check_options(cast(PlanOptions, chosen.options()))
    _METHODS[name] = chosen


def _needs_data(chosen: Settings) -> bool:
    by_inputs = chosen.metric in ("scaled", "whitened")
    return needs_data(chosen.importance) or chosen.subspace or by_inputs or chosen.depth or chosen.share


def registered_methods() -> dict[str, Settings]:
    """The table behind `METHODS`, for `fxslim.plugins` to undo what a plug-in that fails has added."""
    return _METHODS


def settings(
    name: str | None = None,
    *,
    importance: Importance | None = None,
    budget: Budget | None = None,
    restore: Restore | None = None,
    rounds: int | None = None,
    data: bool,
    width: bool = False,
) -> Settings:
    """The settings of the method `name`, with single ones replaced.

    Without a name: `best` where there is calibration `data` and no importance is given, else that importance alone. A
    global budget divides a share of the whole: with a `width` for every group there is nothing to divide.

    Raises:
        InputError: there is no such method, or it needs data that there is not.
    """
    if name is not None and name not in METHODS:
        raise InputError(f"there is no method {name!r}", remedy=f"choose one of {', '.join(METHODS)}")
    if name is None and (importance is not None or not data):
        return Settings(
            importance or "magnitude", False, budget or "uniform", restore, rounds=1 if rounds is None else rounds
        )
    chosen = METHODS[name or DEFAULT]
    if not data and _needs_data(chosen):
        raise InputError(f"the method {name or DEFAULT!r} needs calibration data", remedy="give --calibration FILE")
    divided = budget or ("uniform" if width else chosen.budget)
    # At one ratio for all, a stream would lose what everything that reads it loses besides.
    streams = chosen.streams and (divided == "global" or chosen.groups is not None)
    return replace(
        chosen, importance=importance or chosen.importance, budget=divided, restore=restore or chosen.restore,
        ranks=chosen.ranks and divided == "global", streams=streams,
        rounds=chosen.rounds if rounds is None else rounds,
    )  # fmt: skip
