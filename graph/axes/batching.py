"""Batch axes: an axis d may be selected differently for each position of h exactly if h accompanies d at every
occurrence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fxslim.graph.axes.analysis import Axes, CallAxes
from fxslim.graph.axes.notation import Kind, letters_of
from fxslim.graph.axes.terms import Axis, Expr

__all__ = ["batch_axes"]


def batch_axes(axes: Axes, wanted: Iterable[Axis]) -> dict[Axis, tuple[Axis, ...]]:
    """For each wanted axis, the axes of known size that accompany it at every occurrence, in order."""
    wanted = set(wanted)
    common: dict[Axis, set[Axis] | None] = dict.fromkeys(wanted)
    order: dict[Axis, int] = {}
    for tensors in axes.values.values():
        for raw in tensors:
            dims = tuple(axes.terms.resolve(e) for e in raw)
            for axis, company in _occurrences(dims):
                if axis in wanted:
                    known = common[axis]
                    common[axis] = company if known is None else known & company
                    for other in company:
                        order.setdefault(other, len(order))
    candidates = {
        axis: {o for o in (company or ()) if isinstance(o.size, int) and o is not axis}
        for axis, company in common.items()
    }
    candidates = {axis: company for axis, company in candidates.items() if company}
    for call in axes.calls.values():
        _drop_unaligned(axes, call, candidates)
    accepted = _without_cycles(candidates)
    return {axis: tuple(sorted(accepted.get(axis, ()), key=lambda a: order[a])) for axis in wanted}


def _without_cycles(candidates: dict[Axis, set[Axis]]) -> dict[Axis, set[Axis]]:
    """Of axes that accompany each other everywhere only one may follow the other: both ways, counts would not be equal.

    One-sided pairs come first; among the rest the older axis leads.
    """
    pairs = [(axis, other) for axis, company in candidates.items() for other in company]
    pairs.sort(key=lambda p: (p[0] in candidates.get(p[1], ()), p[0].index < p[1].index, p[0].index, p[1].index))
    accepted: dict[Axis, set[Axis]] = {}
    for axis, other in pairs:
        if not _follows(accepted, other, axis):
            accepted.setdefault(axis, set()).add(other)
    return accepted


def _follows(accepted: dict[Axis, set[Axis]], axis: Axis, leader: Axis) -> bool:
    """Whether the selection of `axis` depends on that of `leader` already."""
    return axis is leader or any(_follows(accepted, other, leader) for other in accepted.get(axis, ()))


def _occurrences(dims: tuple[Expr, ...]) -> Iterator[tuple[Axis, set[Axis]]]:
    """Every occurrence of an axis in a tensor with the axes whose coordinate is known wherever it occurs."""
    outer = [{f for f in expr if isinstance(f, Axis)} for expr in dims]
    for dim, expr in enumerate(dims):
        others = set().union(*(o for d, o in enumerate(outer) if d != dim)) if len(dims) > 1 else set()
        yield from _in_product(expr, others)


def _in_product(expr: Expr, company: set[Axis]) -> Iterator[tuple[Axis, set[Axis]]]:
    own = [f for f in expr if isinstance(f, Axis)]
    for factor in expr:
        if isinstance(factor, Axis):
            rest = list(own)
            rest.remove(factor)
            yield factor, company | set(rest)
        else:
            for part in factor.parts:
                yield from _in_product(part, company | set(own))


def _drop_unaligned(axes: Axes, call: CallAxes, candidates: dict[Axis, set[Axis]]) -> None:
    """Within one call, h must reach all terms that hold d through one and the same letter (not h in one and h' in
    another)."""
    if not candidates:
        return
    atoms = {letter: frozenset(axes.terms.atoms(e)) for letter, e in call.letters.items()}
    for letter, members in atoms.items():
        for axis in members & candidates.keys():
            for other in list(candidates[axis]):
                if not _aligned(call, letter, other, atoms):
                    candidates[axis].discard(other)


def _aligned(call: CallAxes, letter: str, other: Axis, atoms: dict[str, frozenset[Axis]]) -> bool:
    mixing = (Kind.TIED, Kind.RECURRENT, Kind.FIXED)
    if any(other in members and x != letter and call.rule.kind(x) in mixing for x, members in atoms.items()):
        return False
    if other in atoms[letter]:
        return True  # both lie in one letter, so they move together
    carriers: set[frozenset[str]] = set()
    for dims in (*call.rule.operands, *call.rule.results):
        present = list(letters_of(dims))
        if letter in present:
            carriers.add(frozenset(x for x in present if other in atoms.get(x, ())))
    return len(carriers) == 1 and len(next(iter(carriers))) == 1
