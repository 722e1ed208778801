"""Rules as one line of text for each operator, for the many in which some dimensions are mixed and all others pass.

In a line `*` stands for any number of leading dimensions. They are aligned at the right; those of size 1 broadcast.
"""

from __future__ import annotations

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, text
from fxslim.graph.axes.terms import Size
from fxslim.graph.errors import RuleError

__all__ = ["all_fixed", "clause", "filled"]


def filled(call: Call, line: str, default: Symmetry = Symmetry.PERMUTATION, why: str = "") -> DimRule:
    """The rule of `call` that `line` writes for its ranks.

    Raises:
        RuleError: the line has another number of operands or results than the call.
    """
    body, *clauses = (part.strip() for part in line.split("|"))
    left, _, right = body.partition("->")
    sides = [*(left.split(",") if left.strip() else []), *right.split(",")]
    shapes = [*call.shapes, *call.results]
    if len(sides) != len(shapes):
        raise RuleError(f"`{line}` does not fit {call.node.format_node()}: operands or results missing")
    ranks = [_leading(side, shape) if "*" in side.split() else 0 for side, shape in zip(sides, shapes, strict=True)]
    letters = names(max([0, *ranks]), "b")
    done = [_dims(side, shape, letters) for side, shape in zip(sides, shapes, strict=True)]
    count = len(call.shapes)
    written = f"{', '.join(done[:count])} -> {', '.join(done[count:])}"
    present = [x for x in letters if any(x in dims.split() for dims in done)]
    for part in clauses:
        members = part.replace("*", " ".join(present)).split()
        if len(members) > 1:
            written += f" | {' '.join(members)}"
    return DimRule.parse(written, default=default, why=why)


def _leading(side: str, shape: tuple[Size, ...]) -> int:
    return len(shape) - len(side.replace("*", "").replace("()", "").split())


def _dims(side: str, shape: tuple[Size, ...], letters: tuple[str, ...]) -> str:
    own = side.replace("()", "").split()
    if "*" not in own:
        return text(own)
    count, place = max(0, _leading(side, shape)), own.index("*")
    leading = letters[len(letters) - count :]
    starred = ["1" if size == 1 else x for x, size in zip(leading, shape[place : place + count], strict=True)]
    return text([*own[:place], *starred, *own[place + 1 :]])


def clause(name: str, letters: list[str] | tuple[str, ...]) -> str:
    """` | fixed a b` for a rule's end; nothing where there are no letters."""
    members = list(dict.fromkeys(x for x in letters if x != "1"))
    return f" | {name} {text(members)}" if members else ""


def all_fixed(call: Call, why: str) -> DimRule:
    """The rule of an operator that mixes everything: each dimension of each tensor is fixed."""
    sides = [names(len(shape), f"x{i}") for i, shape in enumerate(call.shapes)]
    results = [names(len(shape), f"y{i}") for i, shape in enumerate(call.results)]
    fixed = clause("fixed", [x for dims in (*sides, *results) for x in dims])
    return DimRule.parse(f"{', '.join(map(text, sides))} -> {', '.join(map(text, results))}{fixed}", why=why)
