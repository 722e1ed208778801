"""The map of a model: its modules as a tree, and beside each the groups that lie on it, drawn as lanes from the first
module that a group ties to the last."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fxslim.page.sizes import module_of

__all__ = ["COLOURS", "Lane", "Map", "Mark", "Row", "Segment", "colour_of", "module_map", "tree_rows"]

ROWS, SEGMENT, CHUNK = 400, 110, 50  # rows of the whole map, of one that is not folded, and of its parts else
CUT_LANES, WHOLE_LANES = 9, 3  # next to each other
STEP = 13  # px between lanes

_SITE = re.compile(r"(?P<weight>.+)\[(?P<dim>-?\d+)\]")
ROLES = ("produces", "consumes", "carries")

COLOURS = {
    "neurons": 0, "channels": 0, "heads": 1, "key-value heads": 1, "recurrent units": 1, "value dims": 2,
    "query-key dims": 3, "rotary pairs": 3, "residual stream": 4, "rank": 5,
}  # fmt: skip
"""Which colour of the page a kind of group has; all others share the last one."""


def colour_of(kind: str) -> int:
    """The number of a kind's colour."""
    return COLOURS.get(kind, 5)


@dataclass(frozen=True)
class Group:
    """A group as the map sees it."""

    name: str
    kind: str
    said: str  # what happened to it
    state: str  # cut, whole, fixed
    modules: dict[tuple[str, ...], frozenset[str]]  # with the roles of its weights there
    colour: int


@dataclass(frozen=True)
class Mark:
    """What a lane shows at one row. `shape` is produces, consumes, both or carries; None where it only passes."""

    x: float  # px
    up: bool  # whether the lane comes from above
    down: bool
    shape: str | None
    state: str
    colour: int
    said: str


@dataclass(frozen=True)
class Lane:
    """A group with its place among the lanes, and its first and last row."""

    group: Group
    place: int
    first: int
    last: int


@dataclass(frozen=True)
class Row:
    """A module of the tree: `depth` levels below the model, with the marks beside it. Modules without weights of their
    own are there for those below them."""

    name: str
    path: str
    depth: int
    marks: tuple[Mark, ...] = ()
    said: str = ""  # the marks in words
    makes: str = ""  # of which groups the module holds the first weights
    params: tuple[int, int] | None = None


@dataclass(frozen=True)
class Segment:
    """Rows that are folded together."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Map:
    """The map in segments (one where the model is small), its width in px, and what it does not show."""

    segments: tuple[Segment, ...]
    width: float
    undrawn: int  # groups without a lane
    left_out: int  # modules

    @property
    def folded(self) -> bool:
        """Whether there is more than one segment."""
        return len(self.segments) > 1


def module_map(report: dict[str, Any]) -> Map:
    """The map of a report's groups on its model's modules."""
    groups = list(_groups(report))
    params: dict[tuple[str, ...], tuple[int, int]] = {}
    for row in report["weights"]["rows"]:
        old = params.get(module_of(row["name"]), (0, 0))
        params[module_of(row["name"])] = (old[0] + row["params"][0], old[1] + row["params"][1])
    paths = list(dict.fromkeys([*params, *(m for g in groups for m in g.modules)]))
    tree = tree_rows(paths)
    shown = tree[:ROWS]
    lanes, undrawn = _lanes(groups, {path: i for i, (path, _, _) in enumerate(shown)})
    rows = []
    for number, (path, depth, name) in enumerate(shown):
        marks = tuple(_mark(lane, path, number) for lane in lanes if lane.first <= number <= lane.last)
        said = "; ".join(f"{m.shape} {m.said}" for m in marks if m.shape)
        makes = ", ".join(lane.group.said for lane in lanes if lane.first == number)
        rows.append(Row(name, ".".join(path), depth, marks, said, makes, params.get(path)))
    width = STEP * (1 + max((lane.place for lane in lanes), default=0))
    return Map(tuple(_segments(rows)), width, undrawn, len(tree) - len(shown))


def tree_rows(paths: Iterable[tuple[str, ...]]) -> list[tuple[tuple[str, ...], int, str]]:
    """The modules with those that hold them, in the order in which each is met first: with its depth, and its name
    below the one that holds it. A module that holds one other and nothing else is joined with it: `model.decoder`."""
    paths = _in_order(list(paths))
    children: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for path in paths:
        for n in range(len(path)):
            children.setdefault(path[:n], set()).add(path[: n + 1])
    listed, found = set(paths), list[tuple[tuple[str, ...], int, str]]()
    shown: dict[tuple[str, ...], int] = {}
    if () in listed:
        found.append(((), 0, "(the model itself)"))
    for path in paths:
        for n in range(1, len(path) + 1):
            part = path[:n]
            if part in shown or (part not in listed and len(children.get(part, ())) == 1):
                continue
            above = next((part[:k] for k in range(n - 1, 0, -1) if part[:k] in shown), ())
            shown[part] = shown[above] + 1 if above else 0
            found.append((part, shown[part], ".".join(part[len(above) :])))
    return found


def _in_order(paths: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The same with all modules of one parent next to each other, parents in the order of their first module."""
    place: dict[tuple[str, ...], int] = {}
    for number, path in enumerate(paths):
        for n in range(len(path) + 1):
            place.setdefault(path[:n], number)
    return sorted(paths, key=lambda path: [place[path[:n]] for n in range(1, len(path) + 1)])


def _groups(report: dict[str, Any]) -> Iterator[Group]:
    for row in report["groups"]:
        each = f" in each of {'×'.join(map(str, row['batch']))}" if row["batch"] else ""
        state = "cut" if row["kept"] < row["size"] else "whole"
        said = f"{row['kind']}: {row['size']} → {row['kept']}{each}"
        yield Group(row["group"], row["kind"], said, state, _modules(row["sites"]), colour_of(row["kind"]))
    for row in report["uncut"]["rows"]:
        state = "whole" if row["fixed"] is None else "fixed"
        reasons = [row["fixed"]] if row["fixed"] is not None else [_reason(note) for note in row["notes"]]
        said = ": ".join([f"{row['kind']}, {row['size']}", state, *reasons[:1]])
        yield Group(row["group"], row["kind"], said, state, _modules(row["sites"]), colour_of(row["kind"]))


def _reason(note: str) -> str:
    """What a note of the plan says of a group, without its name."""
    return note.rpartition(" stays whole: ")[2]


def _modules(sites: dict[str, Any]) -> dict[tuple[str, ...], frozenset[str]]:
    found: dict[tuple[str, ...], set[str]] = {}
    for role in ROLES:
        for site in sites[role]:
            match = _SITE.fullmatch(site)
            found.setdefault(module_of(match["weight"] if match else site), set()).add(role)
    return {path: frozenset(roles) for path, roles in found.items()}


def _lanes(groups: Sequence[Group], index: dict[tuple[str, ...], int]) -> tuple[list[Lane], int]:
    """Places for the groups: those that were cut from the left on, the widest of the others behind them. A place is
    free again below the group that had it. And how many groups that tie several modules have none."""
    spans = []
    for group in groups:
        rows = sorted(index[m] for m in group.modules if m in index)
        if rows and (group.state == "cut" or len(rows) > 1):
            spans.append(Lane(group, 0, rows[0], rows[-1]))
    cut = sorted((s for s in spans if s.group.state == "cut"), key=lambda s: (s.first, -s.last))
    whole = sorted((s for s in spans if s.group.state != "cut"), key=lambda s: s.first - s.last)
    placed = _packed(cut, 0, CUT_LANES)
    used = 1 + max((lane.place for lane in placed), default=-1)
    placed += _packed(whole, used, WHOLE_LANES)
    return placed, len(spans) - len(placed)


def _packed(spans: Sequence[Lane], start: int, most: int) -> list[Lane]:
    taken: list[list[tuple[int, int]]] = []
    placed = []
    for span in spans:
        free = (i for i, rows in enumerate(taken) if all(span.last < a or span.first > b for a, b in rows))
        place = next(free, len(taken))
        if place == most:
            continue
        if place == len(taken):
            taken.append([])
        taken[place].append((span.first, span.last))
        placed.append(Lane(span.group, start + place, span.first, span.last))
    return placed


def _mark(lane: Lane, path: tuple[str, ...], number: int) -> Mark:
    roles, group = lane.group.modules.get(path, frozenset()), lane.group
    shape = None
    if roles:
        both = {"produces", "consumes"} <= roles
        shape = "both" if both else next(role for role in ROLES if role in roles)
    up, down = lane.first < number, number < lane.last
    return Mark(STEP * (lane.place + 0.5), up, down, shape, group.state, group.colour, f"{group.said} ({group.name})")


def _segments(rows: Sequence[Row]) -> Iterator[Segment]:
    """One segment of a small model; else several, each of whole blocks."""
    if len(rows) <= SEGMENT:
        yield Segment("All modules", tuple(rows))
        return
    current: list[Row] = []
    for row in rows:
        if len(current) >= CHUNK and _block(row.path) != _block(current[-1].path):
            yield Segment(_title(current), tuple(current))
            current = []
        current.append(row)
    yield Segment(_title(current), tuple(current))


def _title(rows: Sequence[Row]) -> str:
    blocks = list(dict.fromkeys(block for row in rows if (block := _block(row.path))))
    if not blocks:
        return f"{rows[0].path} to {rows[-1].path}"
    return blocks[0] if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"


def _block(path: str) -> str:
    """The path up to its first number: the block that a module belongs to; empty outside of blocks."""
    parts = path.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""
