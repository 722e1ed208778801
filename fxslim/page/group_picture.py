"""One group as a picture: its weights on the tree of modules, the chain of calls and rules that ties two dimensions,
or what fixes one. An SVG file that stands alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fxslim.graph.axes.explain import Tie, explain, groups_on, ties
from fxslim.graph.axes.groups import Analysis, Group, Site
from fxslim.graph.axes.terms import Reason
from fxslim.page.environment import rendered
from fxslim.page.modules import colour_of, tree_rows
from fxslim.page.sizes import module_of

__all__ = ["picture"]

WIDTH, MARGIN, LINE, INDENT = 760, 24, 22, 16  # px
_CHARACTERS = 98  # that fit into a line
_SITES = 60  # of a group
_LANE = MARGIN + 8  # where the line of a group stands


@dataclass(frozen=True)
class Text:
    """A line of text at its baseline."""

    x: float
    y: float
    text: str
    style: str


@dataclass(frozen=True)
class Dot:
    """A sign on the line of a group: produces, consumes, carries, fixed, or a step."""

    y: float
    shape: str
    colour: int | None
    said: str


@dataclass(frozen=True)
class Stroke:
    """The line of a group, from top to bottom."""

    top: float
    bottom: float
    colour: int | None


@dataclass
class Sheet:
    """What is drawn so far, and where the next line goes."""

    place: Mapping[str, int]  # of each weight, in the order in which the model reads them
    y: float = MARGIN
    texts: list[Text] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    strokes: list[Stroke] = field(default_factory=list)

    def write(self, text: str, style: str = "plain", x: float = MARGIN, gap: float = 0) -> None:
        """Adds text, in as many lines as it needs."""
        self.y += gap
        room = max(20, _CHARACTERS - int((x - MARGIN) / 7.5) - (18 if style == "title" else 0))
        for line in textwrap.wrap(text, room, break_long_words=True) or [""]:
            self.y += LINE
            self.texts.append(Text(x, self.y - 6, line, style))

    def mark(self, shape: str, colour: int | None, said: str) -> float:
        """Adds a sign on the line of the group, beside the text that comes next. Returns its place."""
        y = self.y + LINE / 2
        self.dots.append(Dot(y, shape, colour, said))
        return y


def picture(analysis: Analysis, a: str, b: str | None = None) -> str:
    """An SVG document: with `b`, what ties both dimensions (or that nothing does), else the groups on `a`.

    Raises:
        AnalysisError: a name is unknown.
    """
    sheet, said = Sheet(_places(analysis)), explain(analysis, a, b)
    found = ties(analysis, a, b) if b is not None else []
    if b is None:
        sheet.write(a, "title")
        _groups(sheet, groups_on(analysis, a), (a,))
    elif found:
        sheet.write(f"{a} and {b} are tied", "title")
        for same in _by_calls(found):
            _chain(sheet, same, a, b)
            for tie in same:
                if tie.group is not None:
                    _group(sheet, tie.group, (a, b))
                else:
                    sheet.write(f"an axis of {tie.axis.size} positions that is on no weight", "muted", gap=6)
    else:
        sheet.write(f"{a} and {b} are not tied", "title")
        for name in (a, b):
            sheet.write(f"What {name} belongs to", "head", gap=10)
            _groups(sheet, groups_on(analysis, name), (name,))
    title = a if b is None else f"{a} and {b}"
    height = sheet.y + MARGIN
    return rendered("group.svg", sheet=sheet, width=WIDTH, height=height, lane=_LANE, title=title, said=said)


def _groups(sheet: Sheet, groups: Sequence[Group], marked: Iterable[str]) -> None:
    if not groups:
        sheet.write("It lies on no axis of a weight: nothing can be removed from it.")
    for group in groups:
        _group(sheet, group, marked)


def _group(sheet: Sheet, group: Group, marked: Iterable[str]) -> None:
    """The weights of a group on the tree of their modules, and what is known of it."""
    sheet.write(f"{group.kind}: {group.size} positions", "head", gap=10)
    sheet.write(f"group {group.name}", "muted")
    colour = None if group.fixed is not None else colour_of(group.kind)
    _sites(sheet, group, sheet.place, colour, set(marked))
    if group.nodes:
        sheet.write(f"passes {_some(group.nodes)}", "muted", gap=6)
    if group.consumers:
        sheet.write(f"summed by {_some(group.consumers)}", "muted")
    if group.caches:
        sheet.write(f"caches {_some(group.caches)} change their shape with it", "muted")
    if group.fixed is not None:
        sheet.write(f"fixed: {group.fixed}", "bad")
    elif group.exact:
        sheet.write("exact: removing positions equals masking them", "good")
    else:
        for reason in group.inexact[:8]:
            sheet.write(f"inexact: {reason}", "bad")


def _sites(sheet: Sheet, group: Group, place: Mapping[str, int], colour: int | None, marked: set[str]) -> None:
    by_module: dict[tuple[str, ...], list[Site]] = {}
    for site in sorted(group.sites, key=lambda s: place.get(s.weight, len(place)))[:_SITES]:
        by_module.setdefault(module_of(site.weight), []).append(site)
    places = []
    for path, depth, name in tree_rows(by_module):
        left = _LANE + 22 + INDENT * depth
        sheet.write(name, "muted", x=left)
        for site in by_module.get(path, ()):
            shape = "fixed" if group.fixed is not None else site.role
            places.append(sheet.mark(shape, colour, f"{site.weight}[{site.dim}] {site.role}"))
            leaf = site.weight.rpartition(".")[2]
            layout = f" as {site.layout}" if site.layout != "*" else ""
            strong = "strong" if f"{site.weight}[{site.dim}]" in marked or str(site) in marked else "plain"
            sheet.write(f"{leaf}[{site.dim}]{layout}  {site.role} it", strong, x=left + INDENT)
    sheet.strokes.append(Stroke(places[0], places[-1], colour))
    if len(group.sites) > _SITES:
        sheet.write(f"and {len(group.sites) - _SITES} more dimensions of weights", "muted", x=_LANE + 22)


def _by_calls(found: Sequence[Tie]) -> list[list[Tie]]:
    """The ties, those together that the same calls made."""
    calls: dict[tuple[Reason, ...], list[Tie]] = {}
    for tie in found:
        calls.setdefault(tuple(step.reason for step in tie.steps), []).append(tie)
    return list(calls.values())


def _chain(sheet: Sheet, same: Sequence[Tie], a: str, b: str) -> None:
    """The calls and rules between two dimensions, from one to the other."""
    tie = same[0]
    colour = None if tie.group is None or tie.group.fixed is not None else colour_of(tie.group.kind)
    left = _LANE + 22
    sheet.y += 8
    top = sheet.mark("produces", colour, a)
    sheet.write(a, "strong", x=left)
    if not tie.steps:
        sheet.write("they are one dimension", "muted", x=left)
    for number, step in enumerate(tie.steps):
        sheet.y += 4
        sheet.mark("step", colour, step.reason.node or step.reason.text)
        sheet.write(f"at {step.reason.node or step.reason.text}", x=left)
        if step.reason.rule:
            sheet.write(f"rule {step.reason.rule}", "muted", x=left)
        if step.reason.line:
            sheet.write(f"line {step.reason.line}", "muted", x=left)
        for text in dict.fromkeys(text for each in same for text in each.steps[number].became):
            sheet.write(f"there {text}", "muted", x=left)
    sheet.y += 4
    bottom = sheet.mark("produces", colour, b)
    sheet.write(b, "strong", x=left)
    sheet.strokes.append(Stroke(top, bottom, colour))


def _places(analysis: Analysis) -> dict[str, int]:
    """The number of the first call that reads each weight."""
    number = {node: i for i, node in enumerate(analysis.program.graph.nodes)}
    last = len(number)
    return {
        n: min((number[u] for u in node.users), default=last) for n, node in analysis.program.weight_nodes().items()
    }


def _some(names: Sequence[str]) -> str:
    left = len(names) - 12
    return ", ".join(names[:12]) + (f" and {left} more" if left > 0 else "")
