"""The notation of dimension rules: one line per operator, in the manner of einsum.

    linear        b s k, n k, n -> b s n
    conv2d        b (g c) h w, (g o) c y x, (g o) -> b (g o) i j | fixed h w y x i j
    layer_norm    b s d, d, d -> b s d | tied d
    cat           a b, a c -> a [b|c]

A dimension is a letter (a word), `1`, a product `(g c)`, major to minor, or a concatenation `[b|c]`. A letter's kind
follows from where it stands: *pass* (in the result: slicing commutes with the operator), *reduce* (only in operands:
removing positions equals zeroing them); clauses after `|` name those that are *tied* (must be sliced together, but
values change), *recurrent* (fed back inside the operator: removing positions equals zeroing the weights that feed them
back) or *fixed* (never sliced), and the symmetry that the operator leaves to a letter where it is not the rule's
default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import lru_cache

from fxslim.graph.axes.terms import Size
from fxslim.graph.errors import RuleError

__all__ = ["Concat", "DimRule", "Dims", "Kind", "Pattern", "Product", "Symmetry", "letters_of", "parse_dims"]


class Kind(Enum):
    """What removing positions of a letter does to the operator's result."""

    PASS = "pass"
    REDUCE = "reduce"
    TIED = "tied"
    RECURRENT = "recurrent"
    FIXED = "fixed"


class Symmetry(IntEnum):
    """The largest group of changes of basis of an axis that commute with an operator; the meet is the minimum.

    ORTHOGONAL and SCALING meet in PERMUTATION (neither contains the other): see `meet`.
    """

    FIXED = 0
    PAIRED = 1
    PERMUTATION = 2
    SCALING = 3
    ORTHOGONAL = 4
    GENERAL = 5

    def meet(self, other: Symmetry) -> Symmetry:
        """The largest symmetry contained in both."""
        if {self, other} == {Symmetry.SCALING, Symmetry.ORTHOGONAL}:
            return Symmetry.PERMUTATION
        return min(self, other)

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Product:
    """`(g c)`: factors from major to minor; the empty product is a dimension of size 1."""

    factors: tuple[Pattern, ...]

    def __str__(self) -> str:
        return f"({' '.join(map(str, self.factors))})" if self.factors else "1"


@dataclass(frozen=True)
class Concat:
    """`[b|c]`: parts one after the other."""

    parts: tuple[Pattern, ...]

    def __str__(self) -> str:
        return (
            "["
            + "|".join(str(part).strip("()") if isinstance(part, Product) else str(part) for part in self.parts)
            + "]"
        )


Pattern = str | Product | Concat
Dims = tuple[Pattern, ...]

_TOKEN = re.compile(r"\s*([A-Za-z_]\w*|1|[()\[\]|])")
_CLAUSES = ("tied", "recurrent", "fixed", *(s.name.lower() for s in Symmetry if s is not Symmetry.FIXED))


@dataclass(frozen=True)
class DimRule:
    """How the dimensions of one call relate. Printable, comparable data; `parse` and `str` are inverse."""

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    tied: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    symmetry: tuple[tuple[str, Symmetry], ...] = ()
    default: Symmetry = field(default=Symmetry.PERMUTATION, compare=False)
    sizes: Mapping[str, Size] = field(default_factory=dict, compare=False)
    costs: tuple[tuple[str, ...], ...] = field(default=(), compare=False)  # each: letters whose product counts MACs
    why: str = field(default="", compare=False)  # why the fixed letters are fixed
    recurrent: frozenset[str] = frozenset()

    @staticmethod
    def parse(
        text: str,
        *,
        default: Symmetry = Symmetry.PERMUTATION,
        sizes: Mapping[str, Size] | None = None,
        costs: Iterable[str] = (),
        why: str = "",
    ) -> DimRule:
        """The rule that `text` writes.

        Raises:
            RuleError: the text is not a rule, or a clause names a letter that it does not have.
        """
        body, *clauses = _split_clauses(text)
        left, arrow, right = body.partition("->")
        if not arrow:
            raise RuleError(f"a rule needs '->': {text!r}")
        rule = DimRule(
            tuple(parse_dims(part) for part in left.split(",")) if left.strip() else (),
            tuple(parse_dims(part) for part in right.split(",")),
            default=default, sizes=dict(sizes or {}), costs=tuple(tuple(c.split()) for c in costs), why=why,
        )  # fmt: skip
        return _with_clauses(rule, clauses, text)

    def letters(self) -> frozenset[str]:
        """All letters of the rule."""
        return frozenset(letter for dims in (*self.operands, *self.results) for letter in letters_of(dims))

    def kind(self, letter: str) -> Kind:
        """The kind of a letter."""
        if letter in self.fixed:
            return Kind.FIXED
        if letter in self.tied:
            return Kind.TIED
        if letter in self.recurrent:
            return Kind.RECURRENT
        in_results = any(letter in letters_of(dims) for dims in self.results)
        return Kind.PASS if in_results else Kind.REDUCE

    def symmetry_of(self, letter: str) -> Symmetry:
        """The symmetry that the operator leaves to a letter."""
        if letter in self.fixed:
            return Symmetry.FIXED
        return dict(self.symmetry).get(letter, self.default)

    def __str__(self) -> str:
        text = f"{', '.join(map(_dims_text, self.operands))} -> {', '.join(map(_dims_text, self.results))}".strip()
        clauses = [("tied", self.tied), ("recurrent", self.recurrent), ("fixed", self.fixed)]
        for symmetry in sorted({s for _, s in self.symmetry}, reverse=True):
            clauses.append((str(symmetry), frozenset(letter for letter, s in self.symmetry if s is symmetry)))
        order = list(dict.fromkeys(letter for dims in (*self.operands, *self.results) for letter in letters_of(dims)))
        for name, members in clauses:
            if members:
                text += f" | {name} {' '.join(sorted(members, key=order.index))}"
        return text


def _with_clauses(rule: DimRule, clauses: list[str], text: str) -> DimRule:
    known, named = rule.letters(), {"tied": set[str](), "recurrent": set[str](), "fixed": set[str]()}
    symmetry: dict[str, Symmetry] = {}
    for clause in clauses:
        name, *members = clause.split()
        if unknown := set(members) - known:
            raise RuleError(f"the clause {clause!r} names letters that the rule does not have: {sorted(unknown)}")
        if name in named:
            named[name].update(members)
        elif name in _CLAUSES:
            symmetry.update(dict.fromkeys(members, Symmetry[name.upper()]))
        else:
            raise RuleError(f"unknown clause {name!r} in {text!r}; clauses are {', '.join(_CLAUSES)}")
    return DimRule(
        rule.operands, rule.results, frozenset(named["tied"]), frozenset(named["fixed"]),
        tuple(sorted(symmetry.items())), rule.default, rule.sizes, rule.costs, rule.why, frozenset(named["recurrent"]),
    )  # fmt: skip


def _split_clauses(text: str) -> list[str]:
    """Splits at `|` outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def letters_of(dims: Iterable[Pattern]) -> Iterator[str]:
    """The letters of patterns, in order, with repetitions."""
    for pattern in dims:
        if isinstance(pattern, str):
            yield pattern
        else:
            yield from letters_of(pattern.factors if isinstance(pattern, Product) else pattern.parts)


def _dims_text(dims: Dims) -> str:
    return " ".join(map(str, dims)) or "()"


@lru_cache(maxsize=4096)
def parse_dims(text: str) -> Dims:
    """The dimensions that `text` writes; `()` alone is a tensor without dimensions."""
    if text.strip() == "()":
        return ()
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r"\s+", "", text):
        raise RuleError(f"not a list of dimensions: {text!r}")
    dims, rest = _sequence(tokens, "")
    if rest:
        raise RuleError(f"unbalanced brackets in {text!r}")
    return dims


def _sequence(tokens: list[str], stop: str) -> tuple[Dims, list[str]]:
    """Parses dimensions up to a closing token, which stays in the rest."""
    dims: list[Pattern] = []
    while tokens and tokens[0] not in (")", "]", "|"):
        head, *tokens = tokens
        if head == "(":
            inner, tokens = _sequence(tokens, ")")
            tokens = _expect(tokens, ")")
            dims.append(_product(inner))
        elif head == "[":
            parts: list[Pattern] = []
            while True:
                inner, tokens = _sequence(tokens, "|")
                parts.append(_product(inner))
                if not tokens or tokens[0] != "|":
                    break
                tokens = tokens[1:]
            tokens = _expect(tokens, "]")
            dims.append(Concat(tuple(parts)))
        else:
            dims.append(Product(()) if head == "1" else head)
    if not stop and tokens:
        raise RuleError(f"unexpected {tokens[0]!r}")
    return tuple(dims), tokens


def _product(dims: Dims) -> Pattern:
    factors = tuple(d for d in dims if d != Product(()))
    return factors[0] if len(factors) == 1 else Product(factors)


def _expect(tokens: list[str], token: str) -> list[str]:
    if not tokens or tokens[0] != token:
        raise RuleError(f"expected {token!r}")
    return tokens[1:]
