"""The oracle of dimension rules: what a rule claims of its letters, tried on the operator itself in float64.

    pass     dropping positions from every operand that carries the letter equals dropping them from the result
    reduce   dropping positions equals zeroing the operands there
    recurrent  dropping positions equals zeroing, there, the operands that carry the letter twice, and dropping results
    tied     dropping is legal, and is *not* equal to the above (else the rule is over-cautious)
    fixed    dropping is illegal or not equal (else likewise)
    symmetry a random member of the group, applied to the operands, comes out of the result

`check` returns every claim that does not hold, in words. It is itself tested with rules that are wrong on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from fxslim.graph.axes import rules as _rules  # noqa: F401  (fills the registry)
from fxslim.graph.axes.notation import Concat, DimRule, Kind, Pattern, Product, Symmetry, letters_of
from fxslim.graph.axes.registry import REGISTRY, Call, NewSizes, lookup
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.axes.terms import Axis, Expr, concatenate

__all__ = ["BadRule", "Sample", "check", "first_violation", "letter_sizes", "transform"]

RTOL, ATOL = 1e-9, 1e-11  # float64, sums of a few dozen terms


@dataclass(frozen=True, eq=False)
class Sample:
    """One call: an operator with real arguments (float64 where floating)."""

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    undefined: bool = False  # the values of the result are not defined (empty): only shapes are compared
    floor: int = 1  # the smallest size that a sliced letter is tried at

    @property
    def name(self) -> str:
        """The operator as printed, with the note in brackets."""
        return f"{self.op}" + (f" ({self.note})" if self.note else "")

    @cached_property
    def call(self) -> Call:
        """The call as a node of a graph, its values in `meta`."""
        graph = fx.Graph()

        def lift(value: Any) -> Any:
            if isinstance(value, Tensor):
                node = graph.placeholder(f"x{len(graph.nodes)}")
                node.meta["val"] = value
                return node
            return [lift(v) for v in value] if isinstance(value, list | tuple) else value

        args = tuple(lift(a) for a in self.args)
        kwargs = {k: lift(v) for k, v in self.kwargs.items()}
        node = graph.call_function(self.op, args, kwargs)
        node.meta["val"] = self.op(*self.args, **self.kwargs)
        return Call(node)

    @cached_property
    def operands(self) -> tuple[Tensor, ...]:
        """The values of the tensor operands, in the schema's order."""
        return tuple(n.meta["val"] for n in self.call.tensors)

    @cached_property
    def rule(self) -> DimRule | None:
        """The registered rule of this call."""
        return lookup(self.call.node)

    def run(self, operands: Sequence[Tensor], literals: Mapping[str, Any] | None = None) -> tuple[Tensor, ...]:
        """The results for other operands and literal arguments (by the schema's names)."""
        rest = iter(operands)

        def lower(value: Any) -> Any:
            if isinstance(value, fx.Node):
                return next(rest)
            return [lower(v) for v in value] if isinstance(value, list | tuple) else value

        values = {name: lower(value) for name, value in self.call.arguments.items()}
        values.update(literals or {})
        schema = {a.name: a.kwarg_only for a in self.op._schema.arguments}
        positional = [v for name, v in values.items() if not schema[name]]
        result = self.op(*positional, **{name: v for name, v in values.items() if schema[name]})
        return tuple(result) if isinstance(result, list | tuple) else (result,)


class BadRule(Exception):
    """The rule does not even fit the shapes."""


def check(sample: Sample, rule: DimRule, seed: int = 0) -> list[str]:
    """Every claim of `rule` that the operator refutes, and every chance that it misses; empty if the rule is right."""
    try:
        return list(_Trial(sample, rule, torch.Generator().manual_seed(seed)).violations())
    except BadRule as error:
        return [str(error)]


def first_violation(sample: Sample, rule: DimRule, seed: int = 0) -> str | None:
    """The first of `check`, without looking further."""
    try:
        return next(_Trial(sample, rule, torch.Generator().manual_seed(seed)).violations(), None)
    except BadRule as error:
        return str(error)


class _Trial:
    def __init__(self, sample: Sample, rule: DimRule, generator: torch.Generator) -> None:
        self.sample, self.rule, self.generator = sample, rule, generator
        self.operands = sample.operands
        self.results = sample.run(self.operands)
        self.sizes = letter_sizes(rule, [t.shape for t in self.operands], [t.shape for t in self.results])
        self.own = {x: Axis(i, n) for i, (x, n) in enumerate(self.sizes.items()) if n != 1}
        self.axes: dict[str, Expr] = {x: (self.own[x],) if x in self.own else () for x in self.sizes}

    def violations(self) -> Iterator[str]:
        """The claims that do not hold, lazily."""
        if self._try({}) != "equal":
            yield "the recomputed literals change the result where nothing is removed"
        for letter, size in self.sizes.items():
            if size > 1:
                yield from self._slicing(letter, size)
                yield from self._symmetry(letter, size)
        yield from self._together()

    def _slicing(self, letter: str, size: int) -> Iterator[str]:
        kind = self.rule.kind(letter)
        outcomes = [self._try({letter: keep}) for keep in _choices(size) if len(keep) >= self.sample.floor]
        exact = (Kind.PASS, Kind.REDUCE, Kind.RECURRENT)
        if kind in exact and not all(o == "equal" for o in outcomes):
            yield f"`{letter}` is claimed {kind.value}, but slicing it is {next(o for o in outcomes if o != 'equal')}"
        if kind is Kind.TIED and any(o == "illegal" for o in outcomes):
            yield f"`{letter}` is claimed tied, but slicing it is illegal"
        elif kind in (Kind.TIED, Kind.FIXED) and all(o == "equal" for o in outcomes):
            yield f"`{letter}` is claimed {kind.value}, but slicing it is exact: a missed chance"

    def _together(self) -> Iterator[str]:
        """All letters that may be sliced at once, half of each."""
        free = [x for x, n in self.sizes.items() if n > 1 and self.rule.kind(x) is Kind.PASS]
        keeps = {
            x: sorted(torch.randperm(self.sizes[x], generator=self.generator)[: -(-self.sizes[x] // 2)].tolist())
            for x in free
        }
        if len(free) > 1 and min(map(len, keeps.values())) >= self.sample.floor and self._try(keeps) != "equal":
            yield f"{free} sliced together do not commute"

    def _try(self, keeps: Mapping[str, list[int]]) -> str:
        """equal / different / illegal."""
        kept: dict[Axis, Kept] = {}
        for letter, keep in keeps.items():
            mask = torch.zeros(self.sizes[letter], dtype=torch.bool)
            mask[keep] = True
            kept[self.own[letter]] = Kept((), mask)
        selection = Selection(kept)
        in_result = all(self.rule.kind(x) is not Kind.RECURRENT and any(x in letters_of(d) for d in self.rule.results)
                        for x in keeps)  # fmt: skip
        try:
            got = self._rerun(selection)
        except (RuntimeError, IndexError, ValueError, TypeError):
            return "illegal"
        base = self.results if in_result else self.sample.run([self._zeroed(t, d, selection) for t, d in self._pairs()])
        want = tuple(selection.take(t, self._exprs(d)) for t, d in zip(base, self.rule.results, strict=True))
        if [t.shape for t in got] != [t.shape for t in want]:
            return "illegal"
        return "equal" if self._same(got, want) else "different"

    def _rerun(self, selection: Selection) -> tuple[Tensor, ...]:
        """The operator on sliced operands, its literals recomputed."""
        operands = [selection.take(t, self._exprs(d)) for t, d in self._pairs()]
        entry = REGISTRY[self.sample.op]
        new = NewSizes({x: selection.size(e) for x, e in self.axes.items()}, self.rule)
        return self.sample.run(operands, entry.literals(self.sample.call, new) if entry.literals else {})

    def _pairs(self) -> list[tuple[Tensor, tuple[Pattern, ...]]]:
        return list(zip(self.operands, self.rule.operands, strict=True))

    def _exprs(self, dims: Sequence[Pattern]) -> tuple[Expr, ...]:
        return tuple(_expr(d, self.axes) for d in dims)

    def _zeroed(self, tensor: Tensor, dims: tuple[Pattern, ...], selection: Selection) -> Tensor:
        mask = selection.mask(self._exprs(dims))
        fed_back = [x for x in self.rule.recurrent if self.own.get(x) in selection.kept]
        if fed_back and not any(sum(x in letters_of((p,)) for p in dims) > 1 for x in fed_back):
            return tensor
        return tensor if mask is None else torch.where(mask, tensor, torch.zeros_like(tensor))

    def _symmetry(self, letter: str, size: int) -> Iterator[str]:
        """Operands that share a summed letter get A and A^-T, all others A; the result must come out with A."""
        claim = self.rule.symmetry_of(letter)
        carriers = [t for t, d in self._pairs() if letter in letters_of(d)]
        if claim is Symmetry.FIXED:
            return
        if claim > Symmetry.PERMUTATION and not all(t.is_floating_point() for t in (*carriers, *self.results)):
            yield f"`{letter}` is claimed {claim}, but lies on integers"
            return
        act, dual = _member(claim, size, self.generator)
        summed = not any(letter in letters_of(d) for d in self.rule.results)
        operands, seen = [], 0
        for tensor, dims in self._pairs():
            use = dual if summed and seen else act
            seen += letter in letters_of(dims)
            operands.append(transform(tensor, dims, letter, use, self.sizes))
        got = self.sample.run(operands)
        want = tuple(
            transform(t, d, letter, act, self.sizes) for t, d in zip(self.results, self.rule.results, strict=True)
        )
        if not self._same(got, want):
            yield f"`{letter}` is claimed {claim}, but a random member of that group does not commute"

    def _same(self, got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
        if [t.shape for t in got] != [t.shape for t in want]:
            return False
        close = (torch.allclose(a, b, RTOL, ATOL, equal_nan=True) if a.is_floating_point() else torch.equal(a, b)
                 for a, b in zip(got, want, strict=True))  # fmt: skip
        return self.sample.undefined or all(close)


def letter_sizes(rule: DimRule, operands: Sequence[Sequence[int]], results: Sequence[Sequence[int]]) -> dict[str, int]:
    """The size of every letter, solved from the shapes.

    Raises:
        BadRule: the patterns do not fit the shapes.
    """
    sizes = {x: int(n) for x, n in rule.sizes.items() if x in rule.letters()}
    shapes = [*zip((*rule.operands, *rule.results), (*operands, *results), strict=False)]
    if (
        len(rule.operands) != len(operands)
        or len(rule.results) != len(results)
        or any(len(d) != len(s) for d, s in shapes)
    ):
        raise BadRule(f"{rule} does not fit the shapes {operands} -> {results}")
    for _ in range(4):
        for dims, shape in shapes:
            for pattern, size in zip(dims, shape, strict=True):
                _solve(pattern, int(size), sizes)
    for dims, shape in shapes:
        for pattern, size in zip(dims, shape, strict=True):
            if any(x not in sizes for x in letters_of((pattern,))) or _size(pattern, sizes) != size:
                raise BadRule(f"{rule} does not fit the shapes: {pattern} against {size}")
    order = [x for dims, _ in shapes for x in letters_of(dims)]
    return {x: sizes[x] for x in dict.fromkeys(order)}


def _solve(pattern: Pattern, size: int, sizes: dict[str, int]) -> None:
    """Notes the size of the only unknown letter of a pattern."""
    if isinstance(pattern, str):
        sizes.setdefault(pattern, size)
        return
    inner = pattern.factors if isinstance(pattern, Product) else pattern.parts
    unknown = [p for p in inner if any(x not in sizes for x in letters_of((p,)))]
    known = [_size(p, sizes) for p in inner if p not in unknown]
    if len(set(unknown)) != 1:
        return
    if isinstance(pattern, Product) and len(unknown) == 1:
        _solve(unknown[0], size // max(1, int(torch.tensor(known or [1]).prod())), sizes)
    elif isinstance(pattern, Concat):
        _solve(unknown[0], (size - sum(known)) // len(unknown), sizes)


def _size(pattern: Pattern, sizes: Mapping[str, int]) -> int:
    if isinstance(pattern, str):
        return sizes[pattern]
    if isinstance(pattern, Concat):
        return sum(_size(p, sizes) for p in pattern.parts)
    return int(torch.tensor([_size(p, sizes) for p in pattern.factors] or [1]).prod())


def _expr(pattern: Pattern, axes: Mapping[str, Expr]) -> Expr:
    if isinstance(pattern, str):
        return axes[pattern]
    if isinstance(pattern, Concat):
        return concatenate(_expr(p, axes) for p in pattern.parts)
    return tuple(f for p in pattern.factors for f in _expr(p, axes))


def _choices(size: int) -> list[list[int]]:
    """Positions to keep: all but the first, the last, a middle one; and a single one."""
    everything = list(range(size))
    dropped = dict.fromkeys((0, size - 1, size // 2))
    return [*([i for i in everything if i != d] for d in dropped), *([[size // 2]] if size > 2 else [])]


Act = Callable[[Tensor, int], Tensor]


def _member(symmetry: Symmetry, size: int, generator: torch.Generator) -> tuple[Act, Act]:
    """A random member of the group as an action on one dimension, and its inverse transpose."""
    if symmetry in (Symmetry.PERMUTATION, Symmetry.PAIRED):
        order = torch.roll(torch.randperm(size, generator=generator), 1)
        if bool((order == torch.arange(size)).all()):
            order = order.flip(0)
        return (lambda t, d: t.index_select(d, order),) * 2
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64) + 2 * torch.eye(
        size, dtype=torch.float64
    )
    if symmetry is Symmetry.ORTHOGONAL:
        matrix = torch.linalg.qr(matrix).Q
    elif symmetry is Symmetry.SCALING:
        matrix = torch.diag(torch.rand(size, generator=generator, dtype=torch.float64) + 0.5)
    return _linear(matrix), _linear(torch.linalg.inv(matrix).T)


def _linear(matrix: Tensor) -> Act:
    return lambda t, d: torch.tensordot(matrix, t, dims=([1], [d])).movedim(0, d).contiguous()  # `view` asks for it


def transform(tensor: Tensor, dims: Sequence[Pattern], letter: str, act: Act, sizes: Mapping[str, int]) -> Tensor:
    """`act` on every occurrence of a letter in a tensor's dimensions."""
    for dim, pattern in enumerate(dims):
        if letter in letters_of((pattern,)):
            tensor = _transform_dim(tensor, dim, pattern, letter, act, sizes)
    return tensor


def _transform_dim(
    tensor: Tensor, dim: int, pattern: Pattern, letter: str, act: Act, sizes: Mapping[str, int]
) -> Tensor:
    if isinstance(pattern, str):
        return act(tensor, dim)
    if isinstance(pattern, Concat):
        pieces = torch.split(tensor, [_size(p, sizes) for p in pattern.parts], dim)
        done = [_transform_dim(t, dim, p, letter, act, sizes) if letter in letters_of((p,)) else t
                for t, p in zip(pieces, pattern.parts, strict=True)]  # fmt: skip
        return torch.cat(done, dim)
    shape = tensor.shape
    tensor = tensor.reshape(*shape[:dim], *(_size(p, sizes) for p in pattern.factors), *shape[dim + 1 :])
    for offset, factor in enumerate(pattern.factors):
        if letter in letters_of((factor,)):
            tensor = _transform_dim(tensor, dim + offset, factor, letter, act, sizes)
    return tensor.reshape(shape)
