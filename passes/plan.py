"""Plans: what remains of each group. Immutable, printable, and the same after a round trip through JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.errors import InputError, PlanError

__all__ = ["FORMAT", "Cut", "Plan"]

FORMAT = 2  # 2: cuts may be subspaces
_READABLE = (1, 2)

Positions = tuple[Any, ...]
"""Kept positions in ascending order; for a group with batch axes one tuple for each position of those, nested."""


@dataclass(frozen=True)
class Cut:
    """What remains of one group."""

    group: str
    kind: str
    size: int  # positions before
    count: int  # positions after (for each position of the batch axes)
    batch: tuple[int, ...]  # sizes of the batch axes
    kept: Positions
    subspace: bool = False  # positions count coordinates of the basis in which cutting costs least: 0 matters most

    def mask(self) -> torch.Tensor:
        """True where a position remains: [*batch, size] bool."""
        index = torch.tensor(self.kept, dtype=torch.long).reshape(*self.batch, self.count)
        return torch.zeros(*self.batch, self.size, dtype=torch.bool).scatter_(-1, index, True)

    @staticmethod
    def from_mask(group: Group, mask: torch.Tensor, *, subspace: bool = False) -> Cut:
        """The cut that keeps the True positions of `mask: [*batch, size]`."""
        counts = mask.sum(-1).reshape(-1)
        count = int(counts[0])
        if not bool((counts == count).all()):
            raise PlanError(f"{group.name}: every position of its batch axes must keep the same number of positions")
        kept = mask.nonzero()[:, -1].reshape(*mask.shape[:-1], count).tolist()
        return Cut(group.name, group.kind, mask.shape[-1], count, tuple(mask.shape[:-1]), _tuples(kept), subspace)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Plan:
    """What remains of each group of one program. Groups that are not named stay whole."""

    fingerprint: str  # of the program that it was made for
    cuts: tuple[Cut, ...]
    options: Mapping[str, Any] = field(default_factory=dict)  # how it was made
    predicted: Mapping[str, Any] = field(default_factory=dict)  # parameters and MACs before and after
    notes: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()  # passes that the model went through before: applying the plan repeats them

    def selection(self, analysis: Analysis) -> Selection:
        """The plan in terms of the axes of a program.

        Raises:
            PlanError: the plan was made for another program, or names a group or positions that this one does not have.
        """
        if self.fingerprint != analysis.program.fingerprint():
            raise PlanError(
                "the plan was made for another model: operators, weight names or shapes differ",
                remedy="make a plan for this model with `fxslim plan`",
            )
        kept: dict[Any, Kept] = {}
        for cut in self.cuts:
            group = _find(analysis, cut)
            if [c.group for c in self.cuts].count(cut.group) > 1:
                raise PlanError(f"the plan cuts {cut.group!r} twice", remedy="keep one of the entries")
            if cut.count < cut.size:
                kept[group.axis] = Kept(group.batch if cut.batch else (), cut.mask())
        _refuse_cycles(kept)
        return Selection(kept)

    @property
    def subspaces(self) -> tuple[str, ...]:
        """The groups of which a subspace remains: their bases come from calibration data, not from the plan."""
        return tuple(c.group for c in self.cuts if c.subspace and c.count < c.size)

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote, or a person edited.

        Raises:
            InputError: the text is not a plan.
        """
        try:
            data = json.loads(text)
            if data.get("format") not in _READABLE:
                raise InputError(
                    f"this is a plan of format {data.get('format')!r}; this version reads formats up to {FORMAT}"
                )
            cuts = tuple(
                Cut(
                    c["group"],
                    c["kind"],
                    int(c["size"]),
                    int(c["count"]),
                    tuple(c["batch"]),
                    _tuples(c["kept"]),
                    _truth(c.get("subspace", False)),
                )
                for c in data["cuts"]
            )
            return Plan(
                data["fingerprint"],
                cuts,
                data.get("options", {}),
                data.get("predicted", {}),
                tuple(data.get("notes", ())),
                tuple(map(str, data.get("prepare", ()))),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"not a plan: {type(error).__name__}: {error}", remedy="write one with `fxslim plan`"
            ) from error

    @staticmethod
    def load(path: str | Path) -> Plan:
        """The plan in a file.

        Raises:
            InputError: there is no such file or it is not a plan.
        """
        try:
            return Plan.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"the plan {str(path)!r} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"the plan {str(path)!r} is not text") from error

    def __str__(self) -> str:
        rows = [
            f"{c.group}: {c.count} of {c.size} {c.kind}"
            + (f" for each of {c.batch}" if c.batch else "")
            + (" (a subspace)" if c.subspace else "")
            for c in self.cuts
        ]
        return "\n".join([f"plan for {self.fingerprint[:12]}", *rows])


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"subspace is true or false, not {value!r}")
    return value


def _refuse_cycles(kept: Mapping[Any, Kept]) -> None:
    """Raises PlanError if positions of one axis are chosen by those of another and the other way round."""
    for axis, own in kept.items():
        for other in own.batch:
            if other in kept and axis in kept[other].batch:
                raise PlanError("two groups are each cut differently for every position of the other")


def _find(analysis: Analysis, cut: Cut) -> Group:
    groups = {g.name: g for g in analysis.groups}
    group = groups.get(cut.group)
    if group is None:
        raise PlanError(f"the program has no group {cut.group!r}", remedy="`fxslim groups MODEL` lists its groups")
    if group.fixed is not None:
        raise PlanError(f"the group {cut.group!r} is fixed: {group.fixed}")
    sizes = tuple(a.size for a in group.batch)
    if cut.size != group.size or (cut.batch and cut.batch != sizes):
        raise PlanError(f"{cut.group}: the plan has sizes {(*cut.batch, cut.size)}, the program {(*sizes, group.size)}")
    if not 1 <= cut.count <= cut.size:
        raise PlanError(f"{cut.group}: {cut.count} of {cut.size} positions cannot remain")
    _check_positions(cut)
    return group


def _holds_truth(positions: Any) -> bool:
    """Whether true or false stands among the positions: for Python, and so for torch, they are 1 and 0."""
    return isinstance(positions, bool) or (isinstance(positions, tuple) and any(_holds_truth(p) for p in positions))


def _check_positions(cut: Cut) -> None:
    try:
        index = torch.tensor(cut.kept)  # not of a given type: 1.5 would silently become 1
        if (index.numel() and index.dtype is not torch.long) or _holds_truth(cut.kept):
            raise TypeError("positions are whole numbers")
        index = index.long().reshape(*cut.batch, cut.count)
    except (RuntimeError, TypeError, ValueError) as error:
        raise PlanError(
            f"{cut.group}: `kept` must hold {cut.count} positions (whole numbers) for each of {cut.batch or 'one'}"
        ) from error
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= cut.size):
        raise PlanError(f"{cut.group}: kept positions must lie in 0..{cut.size - 1}")
    if bool((index[..., 1:] <= index[..., :-1]).any()):
        raise PlanError(f"{cut.group}: kept positions must ascend, without repetition")
