"""Methods by name: what the papers chose, as settings of the parts that all methods share.

Each is a combination of how positions are chosen (`importance`), whether axes on which any basis will do are cut in the
best one (`subspace`), how the budget is divided (`budget`) and whether what stays is refitted (`restore`). What a
paper's method has in common with the others (capture, groups, rewriting, the proof) is not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fxslim.graph.errors import InputError
from fxslim.passes.budget import Budget
from fxslim.passes.importance import Importance

__all__ = ["METHODS", "Method", "method"]

Restore = Literal["least-squares", "none"]


@dataclass(frozen=True)
class Method:
    """The settings of one method."""

    name: str
    importance: Importance
    subspace: bool
    budget: Budget
    restore: Restore
    kinds: tuple[str, ...] | None  # what it cuts, where the user does not say; None: whatever its importance can judge
    summary: str
    source: str


_EVERY = [
    Method(
        "best", "obs", True, "global", "least-squares", None,
        "closed-form subspaces where any basis will do, second-order selection elsewhere, one budget over everything "
        "by measured effect on the output, joint refit",
        "this project's strongest measured combination",
    ),
    Method(
        "fasp", "fasp", False, "uniform", "least-squares", None,
        "columns of the second matrix of each pair by |W|·||X||, one ratio, least-squares refit",
        "FASP (Huawei 2025, arXiv 2501.09412)",
    ),
    Method(
        "wanda-sp", "fasp", False, "uniform", "none", None,
        "the same score without any restoration",
        "Wanda (Sun 2023, arXiv 2306.11695) in the structured form of FLAP's authors",
    ),
    Method(
        "flap", "flap", False, "uniform", "least-squares", None,
        "fluctuation var(X_j)·||W_j||², what is lost on average goes into the bias (here: into the refit, of which that "
        "is the first order)",
        "FLAP (An 2024, arXiv 2312.11983)",
    ),
    Method(
        "osscar", "obs", False, "uniform", "least-squares", None,
        "second-order elimination with updates, one ratio, least-squares refit",
        "OSSCAR (Meng 2024, arXiv 2403.12983), ZipLM (Kurtic 2023, arXiv 2302.04089)",
    ),
    Method(
        "transact", "activation", False, "uniform", "none", None,
        "the magnitude of the activations inside modules",
        "TransAct (Shen 2024, arXiv 2407.05690)",
    ),
    Method(
        "modegpt", "obs", True, "uniform", "least-squares", None,
        "closed-form subspaces for values and for queries and keys, selection and refit for the rest, one ratio",
        "MoDeGPT (Lin 2024, arXiv 2408.09632), with second-order selection in the place of Nyström's scores",
    ),
    Method(
        "magnitude", "magnitude", False, "uniform", "none", None,
        "the norm of all weights of a position; needs no data", "Li 2017 (arXiv 1608.08710)",
    ),
]  # fmt: skip

METHODS: Mapping[str, Method] = MappingProxyType({m.name: m for m in _EVERY})


def method(name: str) -> Method:
    """The method called `name`.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}", remedy=f"choose one of {', '.join(METHODS)}")
    return METHODS[name]
