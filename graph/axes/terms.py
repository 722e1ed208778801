"""Terms: a dimension as a product of axes and concatenations, and their unification.

An *axis* is a set of positions that must be indexed together wherever it appears. An *expression* is a product of
factors, major to minor; a factor is an axis or a concatenation of expressions. The empty product has size 1.

    qkv.weight[0] = [h·d | h·d | h·d']        one factor, a concatenation of three products

`Terms.unify` finds the common refinement of two expressions and binds axes to the finer terms everywhere: `64` against
`4·16` becomes `4·16`, `[a|b]` against `h·d` splits `h` where the cut falls on a multiple of `d`. Where no common
refinement exists all axes involved become fixed, with the reason. Every binding remembers the node and the rule that
made it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import sympy
import torch

__all__ = [
    "Axis",
    "Cat",
    "Expr",
    "Factor",
    "Reason",
    "Size",
    "Terms",
    "concatenate",
    "divides",
    "expr_size",
    "factor_size",
    "quotient",
    "same_size",
    "simplified",
    "size_of",
]

Size: TypeAlias = "int | sympy.Expr"


@dataclass(frozen=True, eq=False)
class Axis:
    """A set of `size` positions. Two axes are the same only if they are the same object."""

    index: int
    size: Size

    def __repr__(self) -> str:
        return f"a{self.index}:{self.size}"


@dataclass(frozen=True)
class Cat:
    """A concatenation of expressions along one dimension."""

    parts: tuple[Expr, ...]

    def __repr__(self) -> str:
        return "[" + "|".join("·".join(map(repr, part)) or "1" for part in self.parts) + "]"


Factor = Axis | Cat
Expr = tuple[Factor, ...]


@dataclass(frozen=True)
class Reason:
    """Why a binding or a fixation was made."""

    text: str
    node: str = ""
    rule: str = ""
    line: str = ""

    def __str__(self) -> str:
        place = f" at {self.node}" if self.node else ""
        rule = f" by `{self.rule}`" if self.rule else ""
        return f"{self.text}{place}{rule}" + (f" ({self.line})" if self.line else "")


@dataclass(frozen=True)
class Link:
    """One step of unification: `axis` became `expr`."""

    axis: Axis
    expr: Expr
    reason: Reason


def size_of(value: int | torch.SymInt) -> Size:
    """The size as an int, or as a sympy expression over the exporter's symbols."""
    if isinstance(value, torch.SymInt):
        expression = value.node.expr
        return int(expression) if expression.is_Integer else expression
    return int(value)


def factor_size(factor: Factor) -> Size:
    """Number of positions of a factor."""
    if isinstance(factor, Axis):
        return factor.size
    return simplified(sum((expr_size(part) for part in factor.parts), start=0))


def expr_size(expr: Iterable[Factor]) -> Size:
    """Number of positions of an expression."""
    total: Size = 1
    for factor in expr:
        total = total * factor_size(factor)
    return simplified(total)


def simplified(size: Size) -> Size:
    """A size in expanded form; an int where it is one."""
    if isinstance(size, int):
        return size
    size = sympy.expand(size)
    return int(size) if size.is_Integer else size


def quotient(whole: Size, part: Size) -> Size | None:
    """whole / part where `part` divides `whole` for all values of the symbols, else None."""
    if isinstance(whole, int) and isinstance(part, int):
        return whole // part if part and whole % part == 0 else None
    ratio = sympy.cancel(sympy.sympify(whole) / sympy.sympify(part))
    numerator, denominator = ratio.as_numer_denom()
    if denominator != 1:
        return None
    if numerator.free_symbols and any(not c.is_Integer for c in sympy.Poly(numerator).coeffs()):
        return None
    return simplified(ratio)


_TRIALS = (101, 1009, 10007)  # primes: no size divides another by accident


def same_size(a: Size, b: Size) -> bool:
    """Whether two sizes are equal for all values of the symbols: compared as expressions, and where those are written
    differently (`s0**2 // s0`), by trial."""
    if a == b or isinstance(a, int) or isinstance(b, int):
        return bool(a == b)
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    return all(
        a.subs(values) == b.subs(values)
        for start in _TRIALS
        for values in [{symbol: start + 2 * i for i, symbol in enumerate(symbols)}]
    )


def divides(part: Size, whole: Size) -> bool:
    """Whether `part` divides `whole` for all values of the symbols."""
    return quotient(whole, part) is not None


class Terms:
    """The axes of one program and everything that is known to be equal among them."""

    def __init__(self) -> None:
        self._next = itertools.count()
        self._bindings: dict[Axis, Expr] = {}
        self.links: list[Link] = []
        self.fixations: list[tuple[Expr, Reason]] = []

    def fresh(self, size: Size) -> Expr:
        """A new axis as an expression; the empty product for size 1."""
        return () if size == 1 else (Axis(next(self._next), size),)

    def fix(self, expr: Expr, reason: Reason) -> None:
        """All axes of `expr` (also those it is refined into later) may never be sliced."""
        if expr:
            self.fixations.append((expr, reason))

    def resolve(self, expr: Expr) -> Expr:
        """`expr` in terms of the finest axes known, flattened."""
        if len(expr) == 1 and isinstance(expr[0], Axis) and expr[0] not in self._bindings:
            return expr
        factors: list[Factor] = []
        for factor in expr:
            factors.extend(self._resolve_axis(factor) if isinstance(factor, Axis) else self._resolve_cat(factor))
        return tuple(factors)

    def _resolve_axis(self, axis: Axis) -> Expr:
        bound = self._bindings.get(axis)
        if bound is None:
            return (axis,)
        resolved = self.resolve(bound)
        self._bindings[axis] = resolved
        return resolved

    def _resolve_cat(self, cat: Cat) -> Expr:
        return concatenate(self.resolve(part) for part in cat.parts)

    def atoms(self, expr: Expr) -> Iterator[Axis]:
        """The finest axes of `expr`, in order, with repetitions."""
        for factor in self.resolve(expr):
            yield from _axes(factor)

    def unify(self, left: Expr, right: Expr, reason: Reason) -> None:
        """Makes both expressions one: binds their axes to the common refinement, or fixes them where there is none."""
        ls, rs = list(self.resolve(left)), list(self.resolve(right))
        while ls and rs:
            a, b = ls.pop(), rs.pop()
            if a is b or a == b:
                continue
            if not self._match(a, b, ls, rs, reason):
                self._conflict([a], [b], ls, rs, reason)
            ls, rs = list(self.resolve(tuple(ls))), list(self.resolve(tuple(rs)))
        if ls or rs:
            self.fix(
                (*ls, *rs), Reason(f"the sizes do not match; {reason.text}", reason.node, reason.rule, reason.line)
            )

    def _match(self, a: Factor, b: Factor, ls: list[Factor], rs: list[Factor], reason: Reason) -> bool:
        """Unifies the minor factors `a` and `b`; what remains of the larger one goes back on its stack."""
        size_a, size_b = factor_size(a), factor_size(b)
        if size_a == size_b:
            self._unify_factors(a, b, reason)
            return True
        small, big, stack = (a, b, rs) if divides(size_a, size_b) else (b, a, ls)
        rest = self._factor_out(big, small, reason)
        if rest is None:
            return False
        stack.extend(rest)
        return True

    def _factor_out(self, big: Factor, small: Factor, reason: Reason) -> Expr | None:
        """`rest` with big = rest·small, or None where that is impossible."""
        count = quotient(factor_size(big), factor_size(small))
        if count is None:
            return None
        if isinstance(big, Axis):
            rest = self.fresh(count)
            self._bind(big, (*rest, small), reason)
            return rest
        counts = [quotient(expr_size(part), factor_size(small)) for part in big.parts]
        if any(c is None for c in counts):
            return None
        rests = [self.fresh(c) for c in counts if c is not None]
        for part, rest in zip(big.parts, rests, strict=True):
            self.unify(part, (*rest, small), reason)
        return concatenate(rests)

    def _unify_factors(self, a: Factor, b: Factor, reason: Reason) -> None:
        if isinstance(a, Axis):
            self._bind(a, (b,), reason)
        elif isinstance(b, Axis):
            self._bind(b, (a,), reason)
        else:
            self._unify_parts(list(a.parts), list(b.parts), reason)

    def _unify_parts(self, left: list[Expr], right: list[Expr], reason: Reason) -> None:
        """Walks two concatenations of equal total size and cuts the longer part at every boundary of the other."""
        while left and right:
            a, b = left.pop(0), right.pop(0)
            size_a, size_b = expr_size(a), expr_size(b)
            if size_a == size_b:
                self.unify(a, b, reason)
            elif not (isinstance(size_a, int) and isinstance(size_b, int)):
                self.fix(
                    (Cat((a, *left, b, *right)),), Reason("parts of symbolic sizes are not comparable", reason.node)
                )
                return
            elif size_a < size_b:
                b_head, b_tail = self.cut(b, size_a, reason)
                self.unify(a, b_head, reason)
                right.insert(0, b_tail)
            else:
                a_head, a_tail = self.cut(a, size_b, reason)
                self.unify(a_head, b, reason)
                left.insert(0, a_tail)

    def cut(self, expr: Expr, offset: Size, reason: Reason) -> tuple[Expr, Expr]:
        """`expr` as two pieces, the first of `offset` positions; both fixed where the cut does not fall on an axis."""
        expr = self.resolve(expr)
        total = expr_size(expr)
        inner = expr_size(expr[1:])
        outer = quotient(offset, inner)
        if outer is None or not isinstance(outer, int) or not isinstance(total, int):
            return self._uncuttable(expr, offset, total, reason)
        if len(expr) > 1:
            head, tail = self.cut(expr[:1], outer, reason)
            return (*head, *expr[1:]), (*tail, *expr[1:])
        (factor,) = expr
        if isinstance(factor, Axis):
            head, tail = self.fresh(offset), self.fresh(simplified(total - offset))
            self._bind(factor, concatenate((head, tail)), reason)
            return head, tail
        return self._cut_parts(factor, outer, reason)

    def _cut_parts(self, cat: Cat, offset: int, reason: Reason) -> tuple[Expr, Expr]:
        head: list[Expr] = []
        parts = list(cat.parts)
        while parts and offset:
            part = parts.pop(0)
            size = expr_size(part)
            assert isinstance(size, int)
            if size <= offset:
                head.append(part)
                offset -= size
            else:
                first, second = self.cut(part, offset, reason)
                head.append(first)
                parts.insert(0, second)
                offset = 0
        return concatenate(map(self.resolve, head)), concatenate(map(self.resolve, parts))

    def _uncuttable(self, expr: Expr, offset: Size, total: Size, reason: Reason) -> tuple[Expr, Expr]:
        head, tail = self.fresh(offset), self.fresh(simplified(total - offset))
        why = Reason(
            f"a cut at {offset} does not fall on a multiple of the inner axes", reason.node, reason.rule, reason.line
        )
        self.fix((*expr, *head, *tail), why)
        return head, tail

    def _conflict(self, a: list[Factor], b: list[Factor], ls: list[Factor], rs: list[Factor], reason: Reason) -> None:
        """No common refinement: the shortest aligned stretch of both products is fixed."""
        size_a, size_b = expr_size(a), expr_size(b)
        while size_a != size_b and (ls or rs):
            grow_left = bool(ls) and (not rs or _smaller(size_a, size_b))
            (a if grow_left else b).append((ls if grow_left else rs).pop())
            size_a, size_b = expr_size(a), expr_size(b)
        why = Reason("the two layouts have no common refinement", reason.node, reason.rule, reason.line)
        self.fix((*a, *b), why)

    def _bind(self, axis: Axis, expr: Expr, reason: Reason) -> None:
        if any(atom is axis for atom in self.atoms(expr)):
            self.fix((axis, *expr), Reason("an axis would contain itself", reason.node, reason.rule, reason.line))
            return
        self._bindings[axis] = expr
        self.links.append(Link(axis, expr, reason))


def _smaller(a: Size, b: Size) -> bool:
    return a < b if isinstance(a, int) and isinstance(b, int) else not divides(b, a)


def concatenate(parts: Iterable[Expr]) -> Expr:
    """The concatenation of resolved expressions as an expression: nested ones are flattened, a single part is
    itself."""
    flat: list[Expr] = []
    for part in parts:
        if len(part) == 1 and isinstance(part[0], Cat):
            flat.extend(part[0].parts)
        elif expr_size(part) != 0:
            flat.append(part)
    return flat[0] if len(flat) == 1 else (Cat(tuple(flat)),)


def _axes(factor: Factor) -> Iterator[Axis]:
    if isinstance(factor, Axis):
        yield factor
    else:
        for part in factor.parts:
            for inner in part:
                yield from _axes(inner)
