"""Analysis: one walk over the graph that relates the dimensions of every value by the rules of its operators."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from fxslim.graph.axes import rules as _rules  # noqa: F401  (fills the registry)
from fxslim.graph.axes.notation import Concat, DimRule, Kind, Pattern, Product
from fxslim.graph.axes.registry import Call, lookup
from fxslim.graph.axes.terms import Axis, Expr, Reason, Size, Terms, concatenate, expr_size, quotient, size_of
from fxslim.graph.errors import RuleError, model_line
from fxslim.graph.program import Program

__all__ = ["Axes", "CallAxes", "analyze_axes"]

Dims = tuple[Expr, ...]
_CACHE_NAME = re.compile(r"past|cache|state|memory")


@dataclass(frozen=True)
class CallAxes:
    """The rule of one call with an expression for each of its letters."""

    node: fx.Node
    rule: DimRule
    operands: tuple[fx.Node, ...]
    letters: Mapping[str, Expr]

    def reason(self, letter: str) -> Reason:
        """What this call says of a letter, as a reason."""
        why = self.rule.why if self.rule.kind(letter) is Kind.FIXED else ""
        text = f"`{letter}` is {self.rule.kind(letter).value}" + (f": {why}" if why else "")
        return Reason(text, f"{self.node.name} ({self.node.target})", str(self.rule), model_line(self.node) or "")


@dataclass
class Axes:
    """The axes of a program: expressions for the dimensions of every value, in terms that unification has refined."""

    program: Program
    terms: Terms
    values: dict[fx.Node, tuple[Dims, ...]] = field(default_factory=dict)
    calls: dict[fx.Node, CallAxes] = field(default_factory=dict)
    unknown: dict[str, list[fx.Node]] = field(default_factory=dict)
    caches: dict[str, str] = field(default_factory=dict)  # cache input -> the output that replaces it
    fixed: dict[Axis, Reason] = field(default_factory=dict)

    def dims(self, node: fx.Node) -> Dims:
        """The resolved expressions of a single tensor value."""
        return tuple(self.terms.resolve(e) for e in self.values[node][0])


def analyze_axes(program: Program) -> Axes:
    """The axes of `program`. Works from shapes alone: weights may be on the meta device."""
    axes = Axes(program, Terms(), caches=find_caches(program))
    for node in program.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            _introduce(axes, node)
        elif node.op == "call_function":
            _call(axes, node)
        elif node.op == "output":
            _close_caches(axes)
            _fix_outputs(axes)
    _collect_fixed(axes)
    return axes


def _fresh(axes: Axes, value: object) -> tuple[Dims, ...]:
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(
        tuple(axes.terms.fresh(size_of(s)) for s in v.shape) if isinstance(v, torch.Tensor) else () for v in values
    )


def _introduce(axes: Axes, node: fx.Node) -> None:
    axes.values[node] = _fresh(axes, node.meta.get("val"))
    if node.op == "placeholder":
        role = "a cache input" if node.name in axes.caches else "an input of the user"
        for dim, expr in enumerate(axes.values[node][0]):
            if node.name not in axes.caches or not isinstance(expr_size(expr), int):
                axes.terms.fix(expr, Reason(f"dimension {dim} of `{node.name}`, {role}"))


def _call(axes: Axes, node: fx.Node) -> None:
    value = node.meta.get("val")
    if node.target is operator.getitem and node.args[0] in axes.values:
        axes.values[node] = (axes.values[node.args[0]][int(node.args[1])],)  # type: ignore[index, arg-type]
        return
    if not isinstance(value, torch.Tensor | list | tuple):
        return  # arithmetic on sizes
    try:
        found = lookup(node)
    except (RuleError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        found = None
        reason = getattr(error, "what", f"{type(error).__name__}: {error}")
        axes.unknown.setdefault(f"{node.target} (its rule does not fit: {reason})", []).append(node)
    else:
        if found is None:
            axes.unknown.setdefault(str(node.target), []).append(node)
    if found is None:
        _fix_everything(axes, node)
    else:
        _apply(axes, node, found)


def _fix_everything(axes: Axes, node: fx.Node) -> None:
    reason = Reason("an operator without a rule", f"{node.name} ({node.target})", line=model_line(node) or "")
    axes.values[node] = _fresh(axes, node.meta["val"])
    for dims in (*axes.values[node], *(d for n in node.all_input_nodes if n in axes.values for d in axes.values[n])):
        for expr in dims:
            axes.terms.fix(expr, reason)


def _apply(axes: Axes, node: fx.Node, found: DimRule) -> None:
    """Unifies the operands' dimensions with the rule's letters and states the results' dimensions in them."""
    operands = Call(node).tensors
    reason = Reason("met", f"{node.name} ({node.target})", str(found), model_line(node) or "")
    letters: dict[str, Expr] = {}
    for operand, patterns in zip(operands, found.operands, strict=True):
        for expr, pattern in zip(axes.values[operand][0], patterns, strict=True):
            _bind(axes.terms, letters, found, pattern, expr, reason)
    results: list[Dims] = []
    for patterns, value in zip(found.results, _tensors(node), strict=True):
        sizes = [size_of(s) for s in value.shape]
        results.append(tuple(_build(axes.terms, letters, found, p, s) for p, s in zip(patterns, sizes, strict=True)))
    axes.values[node] = tuple(results)
    call = CallAxes(node, found, operands, letters)
    axes.calls[node] = call
    for letter in found.fixed:
        if letter in letters:
            axes.terms.fix(letters[letter], call.reason(letter))


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta["val"]
    return [v for v in (value if isinstance(value, list | tuple) else (value,)) if isinstance(v, torch.Tensor)]


def _bind(terms: Terms, letters: dict[str, Expr], found: DimRule, pattern: Pattern, expr: Expr, reason: Reason) -> None:
    if isinstance(pattern, str) and pattern not in letters:
        letters[pattern] = expr
    else:
        terms.unify(_build(terms, letters, found, pattern, expr_size(expr)), expr, reason)


def _build(terms: Terms, letters: dict[str, Expr], found: DimRule, pattern: Pattern, size: Size) -> Expr:
    """The expression of a pattern; letters met for the first time become new axes."""
    if isinstance(pattern, str):
        if pattern not in letters:
            letters[pattern] = terms.fresh(size)
        return letters[pattern]
    if isinstance(pattern, Concat):
        return concatenate(_build(terms, letters, found, p, _pattern_size(found, letters, p)) for p in pattern.parts)
    factors: list[Expr] = [
        _build(terms, letters, found, p, _missing_size(found, letters, pattern, p, size)) for p in pattern.factors
    ]
    return tuple(f for expr in factors for f in expr)


def _pattern_size(found: DimRule, letters: Mapping[str, Expr], pattern: Pattern) -> Size:
    if isinstance(pattern, str):
        return expr_size(letters[pattern]) if pattern in letters else found.sizes[pattern]
    if isinstance(pattern, Concat):
        return sum((_pattern_size(found, letters, p) for p in pattern.parts), start=0)
    total: Size = 1
    for factor in pattern.factors:
        total = total * _pattern_size(found, letters, factor)
    return total


def _missing_size(found: DimRule, letters: Mapping[str, Expr], product: Product, wanted: Pattern, total: Size) -> Size:
    """The size of one factor: known, stated by the rule, or what the others leave of the total."""
    if not isinstance(wanted, str) or wanted in letters or wanted in found.sizes:
        return _pattern_size(found, letters, wanted)
    others: Size = 1
    for factor in product.factors:
        if factor != wanted:
            others = others * _pattern_size(found, letters, factor)
    size = quotient(total, others)
    if size is None:
        raise RuleError(f"the size of `{wanted}` in {found} cannot be derived")
    return size


def _close_caches(axes: Axes) -> None:
    """What comes back goes in again: where both sizes are known, both dimensions have the same positions."""
    inputs = {n.name: n for n in axes.program.graph.find_nodes(op="placeholder")}
    outputs = dict(zip(axes.program.output_names, axes.program.output_nodes, strict=True))
    for name, output in axes.caches.items():
        into, back = axes.values[inputs[name]][0], axes.values.get(outputs[output], ((),))[0]
        reason = Reason(f"the output `{output}` replaces the cache `{name}`")
        if len(into) != len(back):
            for expr in (*into, *back):
                axes.terms.fix(expr, Reason(f"{reason.text} in another shape"))
            continue
        for a, b in zip(into, back, strict=True):
            if isinstance(size := expr_size(a), int) and size == expr_size(b):
                axes.terms.unify(a, b, reason)
            else:
                axes.terms.fix(a, Reason(f"{reason.text} in another size"))
                axes.terms.fix(b, Reason(f"{reason.text} in another size"))


def _fix_outputs(axes: Axes) -> None:
    cached = set(axes.caches.values())
    for name, value in zip(axes.program.output_names, axes.program.output_nodes, strict=True):
        if isinstance(value, fx.Node) and value in axes.values and name not in cached:
            for dim, expr in enumerate(axes.values[value][0]):
                axes.terms.fix(expr, Reason(f"dimension {dim} of the output `{name}`"))


def find_caches(program: Program) -> dict[str, str]:
    """Cache inputs and the outputs that replace them.

    Those declared at capture, else inputs *called* caches that come back longer (`cat([past, new])`).
    Any other input that is concatenated is the user's and stays as it is.
    """
    if program.caches is not None:
        return program.caches
    found: dict[str, str] = {}
    for name, value in zip(program.output_names, program.output_nodes, strict=True):
        if isinstance(value, fx.Node) and value.target is torch.ops.aten.cat.default:
            first = value.args[0][0]  # type: ignore[index]
            if isinstance(first, fx.Node) and first.op == "placeholder" and _CACHE_NAME.search(first.name):
                found[first.name] = name
    return found


def _collect_fixed(axes: Axes) -> None:
    for expr, reason in axes.terms.fixations:
        for axis in axes.terms.atoms(expr):
            axes.fixed.setdefault(axis, reason)
