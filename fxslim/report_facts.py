"""What the report says of the model itself: its weights before and after, the groups on them, and the curves behind
its budget. All in a bounded size: what is left out is counted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.program import Program
from fxslim.passes.plan import Plan
from fxslim.passes.statistics import digest

__all__ = ["curve_facts", "group_facts", "identity", "uncut_facts", "weight_facts"]

# A report of the largest models that fit into memory stays below about 1 MB.
WEIGHTS = 2000  # rows
GROUPS = 600  # that stay whole
SITES = 4000  # of all groups of a list together
CURVES = 200
POINTS = 16  # of a curve


def identity(program: Program) -> dict[str, str]:
    """What tells one original from another: the fingerprint of its structure, and a hash of its weights' values."""
    return {
        "fingerprint": program.fingerprint(),
        "weights_sha256": digest([(program.weights[name] for name in program.info)]),
    }


def weight_facts(original: Program, slim: Program) -> dict[str, Any]:
    """Every trainable weight of either program with its shape and scalars before and after, in the order of the model;
    None and 0 where a program does not have it. The smallest beyond `WEIGHTS` are summed up in `rest`."""
    before, after = _trainable(original), _trainable(slim)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": [None if shapes is None else list(shapes) for shapes in (before.get(name), after.get(name))],
            "params": [_numel(before.get(name)), _numel(after.get(name))],
        }
        for name in _merged(before, after)
    ]
    largest = sorted(rows, key=lambda row: -max(row["params"]))[:WEIGHTS]
    listed = {row["name"] for row in largest}
    rest = [row["params"] for row in rows if row["name"] not in listed]
    return {
        "rows": [row for row in rows if row["name"] in listed],
        "rest": {"weights": len(rest), "params": [sum(p[0] for p in rest), sum(p[1] for p in rest)]},
    }


def _trainable(program: Program) -> dict[str, tuple[int, ...]]:
    """The shapes of the trainable weights, in the order in which the program first reads them."""
    place = {node: number for number, node in enumerate(program.graph.nodes)}
    first = {n: min((place[u] for u in node.users), default=len(place)) for n, node in program.weight_nodes().items()}
    names = sorted((n for n, w in program.info.items() if w.trainable), key=lambda n: first.get(n, len(place)))
    return {name: program.info[name].shape for name in names}


def _merged(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """The names of both, in order: what is new stands behind what comes before it where it is."""
    known = dict.fromkeys(before)
    behind: dict[str | None, list[str]] = {}
    last: str | None = None
    for name in after:
        if name in known:
            last = name
        else:
            behind.setdefault(last, []).append(name)
    return [*behind.get(None, ()), *(n for name in known for n in (name, *behind.get(name, ())))]


def _numel(shape: Sequence[int] | None) -> int:
    return 0 if shape is None else math.prod(shape)


def group_facts(analysis: Analysis, plan: Plan) -> list[dict[str, Any]]:
    """The groups that were cut, in the order of the model, each with the dimensions of weights that it ties."""
    cuts = {c.group: c for c in plan.cuts}
    cut = [(group, cuts[group.name]) for group in analysis.prunable if group.name in cuts]
    return [
        {"group": group.name, "kind": group.kind, "size": c.size, "kept": c.count, "batch": list(c.batch),
         "exact": group.exact, "symmetry": str(group.symmetry), "subspace": c.subspace, "sites": sites}
        for (group, c), sites in zip(cut, _sites(group for group, _ in cut), strict=True)
    ]  # fmt: skip


def uncut_facts(analysis: Analysis, plan: Plan) -> dict[str, Any]:
    """The groups that stayed whole, in the order of the model: those that had to, with what fixes them, and those that
    might have been cut, with what the plan notes of them. Beyond `GROUPS` those on the fewest weights are left out."""
    cut = {c.group for c in plan.cuts}
    whole = [group for group in analysis.groups if group.name not in cut]
    widest = {group.name for group in sorted(whole, key=lambda g: -len(g.sites))[:GROUPS]}
    listed = [group for group in whole if group.name in widest]
    rows = [
        {
            "group": group.name, "kind": group.kind, "size": group.size,
            "fixed": None if group.fixed is None else str(group.fixed),
            "notes": [note for note in plan.notes if note.startswith((f"{group.name} ", f"{group.name}:"))],
            "sites": sites,
        }
        for group, sites in zip(listed, _sites(listed), strict=True)
    ]  # fmt: skip
    return {"rows": rows, "left_out": len(whole) - len(listed)}


def _sites(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """For each group its dimensions of weights, `weight[dim]`, by role; together at most `SITES`."""
    left, found = SITES, []
    for group in groups:
        taken = group.sites[:left]
        left -= len(taken)
        by_role = {
            role: [f"{s.weight}[{s.dim}]" for s in taken if s.role == role]
            for role in ("produces", "consumes", "carries")
        }
        found.append({**by_role, "left_out": len(group.sites) - len(taken)})
    return found


def curve_facts(
    curves: Mapping[str, Tensor], analysis: Analysis, plan: Plan, original: Program, slim: Program
) -> dict[str, Any] | None:
    """What each group, and the rank of each weight, loses at each size, and what it kept; None where no curve divided
    the budget. Losses are divergences of the outputs: KL in nats a row for logits, else relative squared errors."""
    groups = {group.name: group for group in analysis.groups}
    kept = {c.group: c.count for c in plan.cuts}
    rows, unknown = [], 0
    for name, losses in curves.items():
        size = len(losses) - 1
        if name in groups:
            rows.append(_curve(name, groups[name].kind, size, kept.get(name, size), losses))
        elif name in original.info or f"{name}_in" in slim.info:
            pair = slim.info.get(f"{name}_in")
            rows.append(_curve(name, "rank", size, size if pair is None else pair.shape[0], losses))
        else:  # a group that stays whole, in a program whose weights have other names than the one that was surveyed
            unknown += 1
    if not rows:
        return None
    rows.sort(key=lambda row: row["kept"] == row["size"])  # what was cut comes first; else in order
    return {"rows": rows[:CURVES], "left_out": len(rows[CURVES:]) + unknown}


def _curve(name: str, kind: str, size: int, kept: int, losses: Tensor) -> dict[str, Any]:
    values = losses.double().tolist()
    known = [n for n in range(size + 1) if math.isfinite(values[n])]
    step = max(1, math.ceil(len(known) / POINTS))
    chosen = sorted({*known[::-step], *(n for n in (kept, size) if n in known)})
    return {
        "name": name, "kind": kind, "size": size, "kept": kept, "sizes": chosen,
        "losses": [float(f"{values[n]:.4g}") for n in chosen],
    }  # fmt: skip
