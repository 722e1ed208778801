"""Plans before positions are chosen: how much of each group remains, and in which basis; with weights as pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group, Site
from fxslim.graph.errors import PlanError
from fxslim.passes.basis import Basis
from fxslim.passes.factorise import Factorise
from fxslim.passes.low_rank import find_matrices
from fxslim.passes.pairs import find_pairs
from fxslim.passes.prepare import prepare
from fxslim.passes.subspaces import Subspace, find_subspaces

__all__ = ["Sized", "with_pairs"]


@dataclass(frozen=True)
class Sized:
    """How much remains of a program, before positions are chosen: positions by name of the group; the groups that are
    cut in another basis, with these bases (by name, where they are known); and choices that are made already."""

    analysis: Analysis
    number: Mapping[str, int]
    subspaces: tuple[Subspace, ...]
    bases: Mapping[str, Basis]
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # [*batch, size] by name of the group


def with_pairs(sized: Sized, ranks: Mapping[str, int]) -> Sized:
    """The same with weights as pairs of these ranks: the analysis is of the factorised program, and the axis between
    two factors one more group that is cut in another basis. No basis is known any more: those that are estimated on
    this program are, to the last bit, those that applying the plan will find.

    Raises:
        PlanError: a group cannot be found again in the factorised program.
    """
    if not ranks:
        return sized
    opened = prepare(sized.analysis, [Factorise(tuple(ranks)).spec()])
    pairs = {name: pair for name, pair in find_pairs(opened).items() if name in ranks}
    renamed = _renamed(sized, opened, {name: (p.first.weight, p.second.weight) for name, p in pairs.items()})
    number = {renamed[name]: count for name, count in sized.number.items()}
    own = find_subspaces(opened, [opened.group(renamed[s.group.name]) for s in sized.subspaces])[0]
    if len(own) < len(sized.subspaces) or len(pairs) < len(ranks):
        raise PlanError("low ranks change which axes may be given another basis", remedy="give --method modegpt")
    number |= {pair.group.name: ranks[name] for name, pair in pairs.items()}
    masks = {renamed[name]: mask for name, mask in sized.masks.items()}
    return Sized(opened, number, (*own, *(pair.subspace for pair in pairs.values())), {}, masks)


def _renamed(sized: Sized, opened: Analysis, pairs: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Names of the groups in the factorised program, by the names that they had."""
    outputs = {m.consumer.weight: m.outputs for m in find_matrices(sized.analysis)}
    places = {_place(site, group, site.weight): group.name for group in opened.groups for site in group.sites}

    def moved(site: Site) -> str:
        if site.weight not in pairs:
            return site.weight
        first, second = pairs[site.weight]
        return second if site.dim == outputs[site.weight] else first

    found = {}
    for name in sized.number:
        group = sized.analysis.group(name)
        site = group.sites[0]
        if (new := places.get(_place(site, group, moved(site)))) is None:
            raise PlanError(f"the group {name!r} is not found where weights are pairs", remedy="give --method modegpt")
        found[name] = new
    return found


def _place(site: Site, group: Group, weight: str) -> tuple[str, int, int, int, str, int]:
    return weight, site.dim, site.offset, site.stride, site.layout, group.size
