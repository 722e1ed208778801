"""Coupled groups: every axis that lies on weights, with everything that must change with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fxslim.graph.axes.analysis import Axes, CallAxes, analyze_axes
from fxslim.graph.axes.batching import batch_axes
from fxslim.graph.axes.notation import Kind, Symmetry, letters_of
from fxslim.graph.axes.orientation import conflicting_orientations
from fxslim.graph.axes.roles import Role, classify
from fxslim.graph.axes.terms import Axis, Cat, Expr, Reason, expr_size
from fxslim.graph.axes.weights import STACK, chosen_weights, weight_like
from fxslim.graph.errors import AnalysisError
from fxslim.graph.program import Program

__all__ = ["Analysis", "Group", "Site", "analyze"]


@dataclass(frozen=True)
class Site:
    """One place of a group: a dimension of a weight."""

    weight: str
    dim: int
    role: str  # produces / consumes / carries
    offset: int  # position of the first occurrence in the dimension
    stride: int  # distance between neighbouring positions
    layout: str  # the dimension's expression, this axis as *

    def __str__(self) -> str:
        return f"{self.weight}[{self.dim}]" + (f" as {self.layout}" if self.layout != "*" else "")


@dataclass(frozen=True)
class Group:
    """An axis with everything that must change with it."""

    name: str
    kind: str  # neurons, channels, heads, ... (see roles.py)
    axis: Axis
    sites: tuple[Site, ...]
    nodes: tuple[str, ...]  # operators that do more than move it, as `silu[2]`
    batch: tuple[Axis, ...]  # axes for each of whose positions it may be selected differently
    symmetry: Symmetry
    inexact: tuple[Reason, ...]  # places where slicing changes values that stay
    caches: tuple[str, ...]  # cache inputs whose shape changes with it
    fixed: Reason | None
    consumers: tuple[str, ...] = field(default=())  # calls that sum over it

    @property
    def size(self) -> int:
        """Number of positions."""
        assert isinstance(self.axis.size, int)
        return self.axis.size

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the batch axes and of its own: [*batch, size]."""
        return tuple(int(axis.size) for axis in (*self.batch, self.axis))

    @property
    def exact(self) -> bool:
        """Whether the slim program equals the original with the removed positions masked."""
        return not self.inexact

    @property
    def prunable(self) -> bool:
        """Whether positions may be removed at all."""
        return self.fixed is None

    def __str__(self) -> str:
        path = list(map(str, self.sites))
        middle = list(self.nodes[:4]) + (["..."] if len(self.nodes) > 4 else [])
        chain = " = ".join([path[0], *middle, *path[1:]])
        facts = [f"{self.kind}", f"{self.size}", f"{'exact' if self.exact else 'inexact'}", f"symmetry {self.symmetry}"]
        if self.fixed is not None:
            facts = [self.kind, str(self.size), f"fixed: {self.fixed}"]
        return f"{self.name} ({', '.join(facts)}): {chain}"


@dataclass
class Analysis:
    """The groups of a program, and answers about them."""

    program: Program
    axes: Axes
    groups: tuple[Group, ...]

    @property
    def unknown_ops(self) -> dict[str, int]:
        """Operators without a rule and how often each occurs; their dimensions are fixed."""
        return {name: len(nodes) for name, nodes in self.axes.unknown.items()}

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups from which positions may be removed."""
        return tuple(g for g in self.groups if g.prunable)

    def group(self, name: str) -> Group:
        """The group called `name`.

        Raises:
            AnalysisError: there is none.
        """
        for group in self.groups:
            if group.name == name:
                return group
        raise AnalysisError(f"there is no group {name!r}", remedy="`fxslim groups MODEL` lists them")

    def explain(self, a: str, b: str | None = None) -> str:
        """Why two dimensions (`weight[dim]`) are tied, as the chain of nodes and rules; or what ties and fixes one."""
        from fxslim.graph.axes.explain import explain

        return explain(self, a, b)


def analyze(program: Program) -> Analysis:
    """The coupled groups of `program`. Needs shapes only: weights may be on the meta device."""
    axes = analyze_axes(program)
    return Analysis(program, axes, tuple(_Builder(axes).groups()))


class _Builder:
    """Collects, for every axis that lies on a weight, what the calls of the program say of it."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        own = weight_like(axes.program.graph)
        self.weight_like = {**own, **chosen_weights(axes.program.graph, own)}
        self.weights = {name: axes.dims(node) for name, node in axes.program.weight_nodes().items()}
        self.sites: dict[Axis, list[tuple[str, int]]] = defaultdict(list)
        self.roles: dict[tuple[str, int, Axis], str] = {}
        self.symmetry: dict[Axis, Symmetry] = {}
        self.inexact: dict[Axis, dict[str, Reason]] = defaultdict(dict)
        self.uses: dict[Axis, set[Role]] = defaultdict(set)
        self.nodes: dict[Axis, dict[str, None]] = defaultdict(dict)
        self.consumers: dict[Axis, dict[str, None]] = defaultdict(dict)
        self.ended: set[Axis] = set()  # some call has it in its operands and not in its results
        self.caches: dict[Axis, set[str]] = defaultdict(set)

    def groups(self) -> Iterator[Group]:
        """All groups, in the order of their first weight."""
        self._weights()
        for call in self.axes.calls.values():
            self._visit(call)
        self._interface()
        for axis in conflicting_orientations(self.axes):
            if axis in self.symmetry:
                self.symmetry[axis] = self.symmetry[axis].meet(Symmetry.ORTHOGONAL)
        wanted = set(self.sites)
        batches = batch_axes(self.axes, wanted)
        taken: Counter[str] = Counter()
        for axis in self.sites:
            yield self._group(axis, batches[axis], taken)

    def _weights(self) -> None:
        for name, dims in self.weights.items():
            for dim, expr in enumerate(dims):
                for axis in dict.fromkeys(self.axes.terms.atoms(expr)):
                    if isinstance(axis.size, int):
                        self.sites[axis].append((name, dim))
                        self.symmetry.setdefault(axis, Symmetry.GENERAL)
                        if _repeated(expr, axis):
                            self.symmetry[axis] = self.symmetry[axis].meet(Symmetry.PAIRED)

    def _visit(self, call: CallAxes) -> None:
        atoms = {letter: tuple(self.axes.terms.atoms(e)) for letter, e in call.letters.items()}
        kept = {letter for dims in call.rule.results for letter in letters_of(dims)}
        for letter, members in atoms.items():
            kind, symmetry = call.rule.kind(letter), call.rule.symmetry_of(letter)
            role = classify(call, letter, self.weight_like)
            for axis in dict.fromkeys(members):
                if axis not in self.sites:
                    continue
                self.symmetry[axis] = self.symmetry[axis].meet(symmetry)
                if kind is Kind.TIED:
                    self.inexact[axis].setdefault(call.node.name, call.reason(letter))
                if role is not None:
                    self.uses[axis].add(role)
                if kind is not Kind.FIXED and letter not in kept:
                    self.ended.add(axis)
                if kind in (Kind.REDUCE, Kind.RECURRENT) and call.rule.costs:
                    self.consumers[axis].setdefault(call.node.name)
                self._mention(call, letter, axis, kind, symmetry)
        self._site_roles(call, atoms)

    def _mention(self, call: CallAxes, letter: str, axis: Axis, kind: Kind, symmetry: Symmetry) -> None:
        """Operators that do more than move positions appear in the printed chain."""
        plain = symmetry is Symmetry.GENERAL and kind is Kind.PASS
        if plain or call.rule.costs or not call.rule.results:
            return
        for dims in call.rule.results:
            for dim, pattern in enumerate(dims):
                if letter in letters_of((pattern,)):
                    self.nodes[axis].setdefault(f"{call.node.name}[{dim}]")

    def _site_roles(self, call: CallAxes, atoms: dict[str, tuple[Axis, ...]]) -> None:
        """A weight produces the letters it adds to a result, consumes those it sums over, carries those it scales or
        shifts."""
        for operand, dims in zip(call.operands, call.rule.operands, strict=True):
            roots = self.weight_like.get(operand, frozenset())
            if not roots:
                continue
            others = {
                x
                for o, d in zip(call.operands, call.rule.operands, strict=True)
                if o is not operand
                for x in letters_of(d)
            }
            own = set(letters_of(dims))
            contracts = bool(call.rule.costs) and any(call.rule.kind(x) is Kind.REDUCE or x not in others for x in own)
            table = len(dims) < STACK and bool(others)  # of a stack of matrices, whoever multiplies decides
            reads_rows = table and any(call.rule.kind(x) is Kind.FIXED for x in own - others)
            makes = "produces" if contracts or reads_rows else "carries"
            for letter in sorted(own):
                kind, places = call.rule.kind(letter), [d for d, p in enumerate(dims) if letter in letters_of((p,))]
                consumes = kind is Kind.REDUCE and letter in others
                by_place = dict.fromkeys(places, "consumes" if consumes else makes)
                if kind is Kind.RECURRENT and len(places) > 1:
                    by_place[places[-1]] = "consumes"  # [h, h]: rows make it, columns are fed with it
                for axis in atoms.get(letter, ()):
                    for name in sorted(roots):
                        for place, role in by_place.items():
                            self._set_role(name, axis, role, place if operand.op == "get_attr" else None)

    def _set_role(self, weight: str, axis: Axis, role: str, place: int | None) -> None:
        """Notes a role for the weight's dimension `place` (all that hold the axis where the weight is read through a
        view)."""
        for name, dim in self.sites.get(axis, ()):
            if name == weight and place in (None, dim):
                old = self.roles.get((weight, dim, axis))
                if old is None or old == "carries":
                    self.roles[(weight, dim, axis)] = role

    def _interface(self) -> None:
        for node in self.axes.program.graph.find_nodes(op="placeholder"):
            if node.name in self.axes.caches:
                for expr in self.axes.dims(node):
                    for axis in self.axes.terms.atoms(expr):
                        self.caches[axis].add(node.name)

    def _group(self, axis: Axis, batch: tuple[Axis, ...], taken: Counter[str]) -> Group:
        sites = tuple(self._site(name, dim, axis) for name, dim in dict.fromkeys(self.sites[axis]))
        sites = tuple(sorted(sites, key=lambda s: s.role != "produces"))
        symmetry = self.symmetry[axis]
        kind = Role.name_of(self.uses[axis], symmetry, sites, self._summed(axis), self._shared_head(axis))
        base = f"{sites[0].weight}[{sites[0].dim}]"
        expr = self.weights[sites[0].weight][sites[0].dim]
        name = base if len(expr) == 1 and isinstance(expr[0], Axis) else f"{base}.{kind.replace(' ', '-')}"
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}.{taken[name]}"
        return Group(
            name, kind, axis, sites, tuple(self.nodes[axis]), batch, symmetry, tuple(self.inexact[axis].values()),
            tuple(sorted(self.caches[axis])), self._fixed(axis), tuple(self.consumers[axis]),
        )  # fmt: skip

    def _fixed(self, axis: Axis) -> Reason | None:
        if axis in self.axes.fixed:
            return self.axes.fixed[axis]
        roles = {self.roles.get((name, dim, axis), "carries") for name, dim in self.sites[axis]}
        if not self.consumers[axis] and axis not in self.ended and "consumes" not in roles:
            return Reason("nothing sums over it: removing positions would change the shape of a result")
        return None

    def _summed(self, axis: Axis) -> bool:
        return Role.SUMMED in self.uses[axis]

    def _shared_head(self, axis: Axis) -> bool:
        """Whether a key/value head serves several query heads: heads and heads in a group lie on one dimension."""
        for name, dim in self.sites[axis]:
            expr = self.weights[name][dim]
            heads = [f for f in expr if isinstance(f, Axis) and Role.HEADS in self.uses[f]]
            if len(heads) > 1:
                return heads[-1] is not axis
        return False

    def _site(self, name: str, dim: int, axis: Axis) -> Site:
        expr = self.weights[name][dim]
        offset, stride = _offset_and_stride(expr, axis)
        role = self.roles.get((name, dim, axis), "carries")
        return Site(name, dim, role, offset, stride, layout(expr, axis))


def layout(expr: Expr, axis: Axis) -> str:
    """The expression as text: sizes for other axes, `*` for this one."""
    return "·".join(_factor_text(f, axis) for f in expr) or "1"


def _factor_text(factor: Axis | Cat, axis: Axis) -> str:
    if isinstance(factor, Axis):
        return "*" if factor is axis else str(factor.size)
    return "[" + "|".join(layout(part, axis) for part in factor.parts) + "]"


def _repeated(expr: Iterable[Axis | Cat], axis: Axis) -> bool:
    """Whether `axis` lies in more than one part of a concatenation or is multiplied with itself, under one and the
    same path."""
    for factor in expr:
        if isinstance(factor, Cat):
            holding = [part for part in factor.parts if _contains(part, axis)]
            single = [part for part in holding if len(part) == 1 and part[0] is axis]
            if len(single) > 1 or any(_repeated(part, axis) for part in holding):
                return True
    return sum(f is axis for f in expr) > 1


def _contains(expr: Expr, axis: Axis) -> bool:
    return any(f is axis or (isinstance(f, Cat) and any(_contains(p, axis) for p in f.parts)) for f in expr)


def _offset_and_stride(expr: Expr, axis: Axis) -> tuple[int, int]:
    """Offset of the first position and distance of neighbours; dynamic sizes count as 1."""
    stride = 1
    for factor in reversed(expr):
        if factor is axis:
            return 0, stride
        if isinstance(factor, Cat) and _contains((factor,), axis):
            start = 0
            for part in factor.parts:
                if _contains(part, axis):
                    offset, inner = _offset_and_stride(part, axis)
                    return (start + offset) * stride, inner * stride
                size = expr_size(part)
                start += size if isinstance(size, int) else 1
        size = expr_size((factor,))
        stride *= size if isinstance(size, int) else 1
    return 0, 1
