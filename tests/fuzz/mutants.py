"""Rules broken on purpose: one change to what an operator's rule says of every call, or its literals forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxslim.graph.axes.notation import DimRule, Dims, Kind, letters_of
from fxslim.graph.axes.registry import REGISTRY, Call, Entry, lookup
from fxslim.graph.program import Program
from tests.graph.axes import mutants as by_rule

__all__ = ["MUTATORS", "Mutant", "broken", "mutants_of", "reached"]

Mutator = Callable[[DimRule], DimRule | None]
"""The wrong rule, or None where there is nothing to break."""

_NEW = "other"


@dataclass(frozen=True)
class Mutant:
    """A broken rule: of which operator, and how."""

    operator: str
    change: str

    def __str__(self) -> str:
        return f"{self.operator}: {self.change}"


def _without(clause: str, number: int) -> Mutator:
    def mutate(rule: DimRule) -> DimRule | None:
        members = [x for x in _order(rule) if x in getattr(rule, clause)]
        if number >= len(members):
            return None
        return replace(rule, **{clause: getattr(rule, clause) - {members[number]}})

    return mutate


def _order(rule: DimRule) -> list[str]:
    return list(dict.fromkeys(x for dims in (*rule.operands, *rule.results) for x in letters_of(dims)))


def _swapped(rule: DimRule) -> DimRule | None:
    """The last two dimensions of the first result exchanged."""
    if not rule.results or len(rule.results[0]) < 2 or rule.results[0][-1] == rule.results[0][-2]:
        return None
    *lead, a, b = rule.results[0]
    return replace(rule, results=((*lead, b, a), *rule.results[1:]))


def _rolled(number: int) -> Mutator:
    def mutate(rule: DimRule) -> DimRule | None:
        if number >= len(rule.operands) or len(rule.operands[number]) < 2:
            return None
        dims = rule.operands[number]
        return replace(rule, operands=(*rule.operands[:number], (*dims[1:], dims[0]), *rule.operands[number + 1 :]))

    return mutate


def _apart(kind: Kind) -> Mutator:
    """A letter that ties two tensors becomes two: in the last operand (reduce) or in the first result (pass)."""

    def mutate(rule: DimRule) -> DimRule | None:
        for letter in reversed(_order(rule)):
            holders = [i for i, dims in enumerate(rule.operands) if letter in letters_of(dims)]
            if rule.kind(letter) is not kind or not holders:
                continue
            sizes = dict(rule.sizes) | ({_NEW: rule.sizes[letter]} if letter in rule.sizes else {})
            if kind is Kind.PASS and any(letter in letters_of(d) for d in rule.results[:1]):
                first = _renamed(rule.results[0], letter)
                return replace(rule, results=(first, *rule.results[1:]), sizes=sizes)
            if kind is Kind.REDUCE and len(holders) > 1:
                last = holders[-1]
                operands = (*rule.operands[:last], _renamed(rule.operands[last], letter), *rule.operands[last + 1 :])
                return replace(rule, operands=operands, sizes=sizes)
        return None

    return mutate


def _renamed(dims: Dims, letter: str) -> Dims:
    return by_rule._renamed(dims, {letter: _NEW})


MUTATORS: dict[str, Mutator] = {
    **{f"tied letter {i} not tied": _without("tied", i) for i in range(2)},
    **{f"fixed letter {i} not fixed": _without("fixed", i) for i in range(4)},
    "last dimensions of the result exchanged": _swapped,
    **{f"dimensions of operand {i} rolled": _rolled(i) for i in range(2)},
    "a summed letter not shared": _apart(Kind.REDUCE),
    "a passed letter not shared": _apart(Kind.PASS),
}
LITERALS = "literals forgotten"


def mutants_of(op: Any) -> Iterator[Mutant]:
    """Every way in which the rule of an operator is broken."""
    yield from (Mutant(str(op), change) for change in MUTATORS)
    if REGISTRY[op].literals is not None:
        yield Mutant(str(op), LITERALS)


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """The registry with one broken rule."""
    op = next(op for op in REGISTRY if str(op) == mutant.operator)
    entry = REGISTRY[op]
    REGISTRY[op] = _broken_entry(entry, mutant)
    try:
        yield
    finally:
        REGISTRY[op] = entry


def _broken_entry(entry: Entry, mutant: Mutant) -> Entry:
    if mutant.change == LITERALS:
        return replace(entry, literals=None)
    mutator = MUTATORS[mutant.change]

    def build(call: Call) -> DimRule | None:
        right = entry.build(call)
        return (mutator(right) or right) if right is not None else None

    return replace(entry, build=build)


def reached(program: Program, mutant: Mutant) -> bool:
    """Whether the program has a call of which the broken rule says something else than the right one."""
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) == mutant.operator:
            if mutant.change == LITERALS:
                return True
            right = lookup(node)
            wrong = MUTATORS[mutant.change](right) if right is not None else None
            if right is not None and wrong is not None and _differ(node, right, wrong):
                return True
    return False


def _differ(node: fx.Node, right: DimRule, wrong: DimRule) -> bool:
    shapes: Any = _Shapes(node)
    return by_rule.meaning(shapes, right) != by_rule.meaning(shapes, wrong)


class _Shapes:
    """What `meaning` asks of a sample: shapes of operands and results."""

    def __init__(self, node: fx.Node) -> None:
        value = node.meta["val"]
        values = value if isinstance(value, list | tuple) else (value,)
        self.operands = tuple(_meta(n.meta["val"]) for n in Call(node).tensors)
        self.results = tuple(_meta(v) for v in values if isinstance(v, Tensor))

    def run(self, _: object) -> tuple[Tensor, ...]:
        return self.results


def _meta(value: Tensor) -> Tensor:
    sizes = [int(s.node.hint) if isinstance(s, torch.SymInt) else int(s) for s in value.shape]
    return torch.empty(sizes, device="meta")
