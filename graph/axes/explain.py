"""Why two dimensions are tied, as the chain of nodes and rules; and what is known of one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxslim.graph.axes.terms import Axis, Cat, Expr, Link, Reason, factor_size
from fxslim.graph.errors import AnalysisError

if TYPE_CHECKING:
    from fxslim.graph.axes.groups import Analysis, Group, Site

__all__ = ["Step", "Tie", "explain", "groups_on", "ties"]

_DIMENSION = re.compile(r"(?P<weight>.+)\[(?P<dim>-?\d+)\]")


def explain(analysis: Analysis, a: str, b: str | None = None) -> str:
    """A text for people. With `b`: the calls and rules that made `a` and `b` one axis, or what each belongs to if they
    are not tied. Without: the groups on `a`, with sites, exactness, symmetry, batch axes, and why they are fixed.

    `a` and `b` are dimensions of weights, `decoder.fc1.weight[0]`, or names of groups.

    Raises:
        AnalysisError: a name is unknown; the message lists close ones.
    """
    first = _origin(analysis, a)
    if b is None:
        return "\n".join(_about(analysis, a, first))
    found, second = ties(analysis, a, b), _origin(analysis, b)
    if not found:
        return "\n".join([f"{a} and {b} are not tied.", *_about(analysis, a, first), *_about(analysis, b, second)])
    return "\n".join(line for tie in found for line in _chain(a, b, tie))


def _origin(analysis: Analysis, name: str) -> Expr:
    """The expression that the analysis began with for a dimension, or the axis of a group."""
    nodes, names = analysis.program.weight_nodes(), _canonical(analysis)
    found = _DIMENSION.fullmatch(name)
    if found and found["weight"] in names:
        node = nodes[names[found["weight"]]]
        dims, dim = analysis.axes.values[node][0], int(found["dim"])
        if not -len(dims) <= dim < len(dims):
            raise AnalysisError(f"{found['weight']!r} has no dimension {dim}: it has {len(dims)}")
        return dims[dim]
    for group in analysis.groups:
        if group.name == name:
            return (group.axis,)
    known = [f"{w}[{d}]" for w, n in names.items() for d in range(len(analysis.axes.values[nodes[n]][0]))]
    close = difflib.get_close_matches(
        name, dict.fromkeys([*known, *(g.name for g in analysis.groups), *names]), n=5, cutoff=0.5
    )
    remedy = f"did you mean {', '.join(close)}?" if close else "`fxslim groups MODEL` lists them"
    raise AnalysisError(f"there is no weight dimension and no group {name!r}", remedy=remedy)


def _canonical(analysis: Analysis) -> dict[str, str]:
    """Every name of every weight that the graph uses -> the name that its tensor goes by."""
    names = {name: name for name in analysis.program.weight_nodes()}
    for name in list(names):
        names.update(dict.fromkeys(analysis.program.info[name].aliases, name))
    return names


def _atoms(analysis: Analysis, expr: Expr) -> list[Axis]:
    return list(dict.fromkeys(analysis.axes.terms.atoms(expr)))


@dataclass(frozen=True)
class Step:
    """One call that made two dimensions one, and what sizes became there, as `32 became 4·8`."""

    reason: Reason
    became: tuple[str, ...]


@dataclass(frozen=True)
class Tie:
    """An axis that two dimensions share, with its group (None where it is on no weight) and the steps between them."""

    axis: Axis
    group: Group | None
    steps: tuple[Step, ...]


def ties(analysis: Analysis, a: str, b: str) -> list[Tie]:
    """What ties two dimensions of weights, or groups, by name; empty if nothing does.

    Raises:
        AnalysisError: a name is unknown; the message lists close ones.
    """
    first, second = _origin(analysis, a), _origin(analysis, b)
    shared = [x for x in _atoms(analysis, first) if x in set(_atoms(analysis, second))]
    return [_tie(analysis, first, second, axis) for axis in shared]


def groups_on(analysis: Analysis, name: str) -> list[Group]:
    """The groups whose axes lie on a dimension of a weight, or the group of that name.

    Raises:
        AnalysisError: the name is unknown; the message lists close ones.
    """
    axes = _atoms(analysis, _origin(analysis, name))
    return [group for axis in axes if (group := _group_of(analysis, axis)) is not None]


def _group_of(analysis: Analysis, axis: Axis) -> Group | None:
    return next((g for g in analysis.groups if g.axis is axis), None)


def _tie(analysis: Analysis, a: Expr, b: Expr, axis: Axis) -> Tie:
    """The bindings that lead from `a` down to the shared axis and from there up to `b`, one step for each call."""
    down, up = _descent(analysis, a, axis), _descent(analysis, b, axis)
    while down and up and down[-1] is up[-1]:  # what both went through later did not tie them
        down, up = down[:-1], up[:-1]
    steps: list[Step] = []
    for link in [*down, *reversed(up)]:
        plain = len(link.expr) == 1 and not isinstance(link.expr[0], Cat)
        became = () if plain else (f"{link.axis.size} became {_sizes(link.expr)}",)
        if steps and steps[-1].reason == link.reason:
            steps[-1] = Step(link.reason, (*steps[-1].became, *became))
        else:
            steps.append(Step(link.reason, became))
    return Tie(axis, _group_of(analysis, axis), tuple(steps))


def _chain(a: str, b: str, tie: Tie) -> Iterator[str]:
    group, size = tie.group, tie.axis.size
    what = f"{group.kind} ({size} positions, group {group.name})" if group else f"an axis of {size} positions"
    yield f"{a} and {b} are tied: {what}"
    if not tie.steps:
        yield "  they are one dimension"
    for step in tie.steps:
        yield from _reason_lines(step.reason)
        yield from (f"      there {text}" for text in step.became)
    if group is not None and group.nodes:
        yield f"  on its way it passes {', '.join(group.nodes)}"


def _descent(analysis: Analysis, expr: Expr, axis: Axis) -> list[Link]:
    """The links from the axes of `expr` to the finer `axis`: every axis is bound once, so the way down is unique."""
    bound = {link.axis: link for link in analysis.axes.terms.links}
    links: list[Link] = []
    current: Expr = expr
    while axis not in (flat := list(_flat(current))):
        step = next(x for x in flat if axis in _atoms(analysis, (x,)))
        links.append(bound[step])
        current = bound[step].expr
    return links


def _flat(expr: Expr) -> Iterator[Axis]:
    for factor in expr:
        if isinstance(factor, Axis):
            yield factor
        else:
            for part in factor.parts:
                yield from _flat(part)


def _sizes(expr: Expr) -> str:
    texts = (f"[{'|'.join(map(_sizes, f.parts))}]" if isinstance(f, Cat) else str(factor_size(f)) for f in expr)
    return "·".join(texts) or "1"


def _reason_lines(reason: Reason) -> Iterator[str]:
    yield f"  at {reason.node or reason.text}"
    if reason.rule:
        yield f"      rule {reason.rule}"
    if reason.line:
        yield f"      line {reason.line}"


def _about(analysis: Analysis, name: str, expr: Expr) -> Iterator[str]:
    atoms = _atoms(analysis, expr)
    if not atoms:
        yield f"{name} has one position: nothing can be removed from it."
    for axis in atoms:
        group = _group_of(analysis, axis)
        if group is None:
            yield f"{name} holds an axis of {axis.size} positions that is on no weight."
        else:
            yield from _group_lines(analysis, name, group)


def _group_lines(analysis: Analysis, name: str, group: Group) -> Iterator[str]:
    yield f"{name} belongs to {group.name}: {group.kind}, {group.size} positions"
    yield from _site_lines(group.sites)
    if group.nodes:
        yield f"  passes     {', '.join(group.nodes)}"
    if group.consumers:
        yield f"  summed by  {', '.join(group.consumers)}"
    if group.caches:
        yield f"  caches     {', '.join(group.caches)} change their shape with it"
    if group.fixed is not None:
        yield f"  fixed      {group.fixed}"
        return
    yield f"  symmetry   {group.symmetry}"
    if group.batch:
        named = {g.axis: f"{g.name} ({g.size})" for g in analysis.groups}
        batch = ", ".join(named.get(x, f"{x.size}") for x in group.batch)
        yield f"  batch      may be selected differently for each of {batch}"
    if group.exact:
        yield "  exact      removing positions equals masking them"
    for reason in group.inexact:
        yield f"  inexact    {reason}"


def _site_lines(sites: Iterable[Site]) -> Iterator[str]:
    for site in sites:
        yield f"  {site.role:<10} {site}"
