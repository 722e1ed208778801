"""The registry of dimension rules: one function per operator that returns the rule of one call.

    @rule(aten.linear.default)
    def linear(call: Call) -> DimRule: ...

An operator with numbers that depend on shapes (view, slice, group counts) also registers a *literals* function, which
returns those arguments for new sizes. An operator without a rule is never assumed to be elementwise: its dimensions
are fixed and it is reported by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fxslim.graph.axes.notation import Concat, DimRule, Product
from fxslim.graph.axes.terms import Size, size_of
from fxslim.graph.errors import FxslimError, RuleError, where

__all__ = ["REGISTRY", "Call", "Entry", "NewSizes", "lookup", "rule"]


class Call:
    """One call of an operator, seen through its schema: arguments by name, tensors in order, sizes of their
    dimensions."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        self.op: Any = node.target

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """All arguments by the names of the schema, defaults included."""
        schema = self.op._schema
        values: dict[str, Any] = {}
        for index, argument in enumerate(schema.arguments):
            if index < len(self.node.args):
                values[argument.name] = self.node.args[index]
            elif argument.name in self.node.kwargs:
                values[argument.name] = self.node.kwargs[argument.name]
            elif argument.has_default_value():
                values[argument.name] = argument.default_value
        return values

    def arg(self, name: str) -> Any:
        """The argument called `name`."""
        return self.arguments[name]

    @cached_property
    def tensors(self) -> tuple[fx.Node, ...]:
        """The tensor operands, in the schema's order; absent ones are left out."""
        found: list[fx.Node] = []
        for value in self.arguments.values():
            for item in value if isinstance(value, list | tuple) else (value,):
                if isinstance(item, fx.Node) and isinstance(item.meta.get("val"), torch.Tensor):
                    found.append(item)
        return tuple(found)

    def shape(self, node: Any) -> tuple[Size, ...]:
        """The sizes of a tensor operand."""
        return tuple(size_of(s) for s in node.meta["val"].shape)

    @cached_property
    def shapes(self) -> tuple[tuple[Size, ...], ...]:
        """The sizes of all tensor operands."""
        return tuple(self.shape(t) for t in self.tensors)

    @cached_property
    def results(self) -> tuple[tuple[Size, ...], ...]:
        """The sizes of all results."""
        value = self.node.meta["val"]
        values = value if isinstance(value, list | tuple) else (value,)
        return tuple(tuple(size_of(s) for s in v.shape) for v in values if isinstance(v, torch.Tensor))

    def dim(self, name: str, rank: int) -> int:
        """The argument `name` as a non-negative dimension."""
        value = int(self.arg(name))
        return value + rank if value < 0 else value

    def dims(self, name: str, rank: int) -> tuple[int, ...]:
        """The argument `name` as non-negative dimensions; all of them where it is empty or None.

        A tensor without dimensions has none, whatever is asked for: PyTorch lets 0 and -1 pass there.
        """
        if rank == 0:
            return ()
        value = self.arg(name)
        if value is None or (isinstance(value, list | tuple) and not value):
            return tuple(range(rank))
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(int(d) % rank for d in items)


@dataclass(frozen=True)
class NewSizes:
    """Sizes after slicing, for functions that recompute literals."""

    letters: Mapping[str, Size]
    rule: DimRule

    def letter(self, letter: str) -> Size:
        """The new size of a letter (1 for a letter that the rule does not have)."""
        return self.letters.get(letter, 1)

    def result(self, index: int = 0) -> tuple[Size, ...]:
        """The new sizes of a result."""
        return tuple(self._size(pattern) for pattern in self.rule.results[index])

    def operand(self, index: int = 0) -> tuple[Size, ...]:
        """The new sizes of an operand."""
        return tuple(self._size(pattern) for pattern in self.rule.operands[index])

    def _size(self, pattern: Any) -> Size:
        if isinstance(pattern, str):
            return self.letters[pattern]
        total: Size = 1 if isinstance(pattern, Product) else 0
        if isinstance(pattern, Concat):
            return sum((self._size(part) for part in pattern.parts), start=total)
        for factor in pattern.factors:
            total = total * self._size(factor)
        return total


Build = Callable[[Call], DimRule | None]
Literals = Callable[[Call, NewSizes], Mapping[str, Any]]


@dataclass(frozen=True)
class Entry:
    """What is registered for one operator."""

    op: torch._ops.OpOverload
    build: Build
    literals: Literals | None = None


REGISTRY: dict[torch._ops.OpOverload, Entry] = {}


def rule(
    *ops: torch._ops.OpOverload, literals: Literals | None = None, replace: bool = False
) -> Callable[[Build], Build]:
    """A decorator that registers the rule of `ops`. One that there is already gives way only to `replace`.

    Raises:
        RuleError: a key is not an `OpOverload` (the message names the default overload), or is registered already.
    """
    for op in ops:
        if isinstance(op, torch._ops.OpOverloadPacket):
            raise RuleError(f"{op} is a packet of overloads", remedy=f"register one of them, for example {op}.default")
        if not isinstance(op, torch._ops.OpOverload):
            raise RuleError(f"a rule's key must be an OpOverload, not {type(op).__name__}")
        if op in REGISTRY and not replace:
            by = REGISTRY[op].build.__module__
            raise RuleError(
                f"a rule for {op} is registered already",
                at=by,
                remedy="say replace=True if yours is to be used instead",
            )

    def register(build: Build) -> Build:
        for op in ops:
            REGISTRY[op] = Entry(op, build, literals)
        return build

    return register


def lookup(node: fx.Node) -> DimRule | None:
    """The rule of a call, or None where its operator has none (or declines this call).

    Raises:
        RuleError: the rule fails, or does not fit the call (a defect of the rule).
    """
    entry = REGISTRY.get(node.target) if isinstance(node.target, torch._ops.OpOverload) else None
    if entry is None:
        return None
    call = Call(node)
    try:
        found = entry.build(call)
    except FxslimError:
        raise
    except Exception as error:  # rules come from elsewhere too, and raise anything
        raise RuleError(
            f"the rule of {entry.op} failed: {type(error).__name__}: {error}", at=where(node),
            remedy=f"mend it, or return None for calls that it does not know (in {entry.build.__module__})",
        ) from error  # fmt: skip
    if found is not None:
        _check_fit(found, call)
    return found


def _check_fit(found: DimRule, call: Call) -> None:
    if len(found.operands) != len(call.tensors) or len(found.results) != len(call.results):
        raise RuleError(f"{found} does not fit {call.node.format_node()}: operands or results missing")
    for dims, shape in zip((*found.operands, *found.results), (*call.shapes, *call.results), strict=True):
        if len(dims) != len(shape):
            raise RuleError(f"{found} does not fit {call.node.format_node()}: {dims} against the shape {shape}")


_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def names(count: int, prefix: str = "") -> tuple[str, ...]:
    """`count` letters: a b c ..., or with a prefix."""
    return tuple(f"{prefix}{_ALPHABET[i]}" for i in range(count))


def text(dims: Iterator[str] | tuple[str, ...] | list[str]) -> str:
    """The dimensions as rule text; `()` for a tensor without dimensions."""
    return " ".join(dims) or "()"
