"""The rewriter: the only way in which passes change a program. It counts edits, stamps nodes, and owns all shape
constants."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode

from fxslim.graph.axes.analysis import Axes
from fxslim.graph.axes.select import Selection
from fxslim.graph.axes.terms import Size, quotient, same_size, size_of
from fxslim.graph.dead_calls import remove_dead_calls
from fxslim.graph.errors import VerifyError, where
from fxslim.graph.literals import literals_for, new_literals, replace_arguments
from fxslim.graph.program import Program, Weight, bind_symbols
from fxslim.graph.stores import FileTensor

__all__ = ["Rewriter", "evaluate_fake", "fake_mode", "fake_value"]


class Rewriter:
    """Edits a copy of a program on behalf of one pass; `program` is the copy, `edits` what was done."""

    def __init__(self, program: Program, pass_name: str) -> None:
        self.program = program.clone()
        self.pass_name = pass_name
        self.edits: Counter[str] = Counter()
        self._mapping: dict[fx.Node, fx.Node] | None = None
        self._replaced: dict[fx.Node, fx.Node] = {}

    @property
    def modified(self) -> bool:
        """Whether anything was changed: computed from the edits, never claimed."""
        return bool(self.edits)

    def set_weight(self, name: str, tensor: Tensor | FileTensor) -> None:
        """Replaces a weight, by a tensor or by where one is; its recorded shape follows."""
        if isinstance(tensor, Tensor):
            self.program.weights[name] = tensor
        else:
            self.program.weights.link(name, tensor)
        self.program.info[name] = replace(self.program.info[name], shape=tuple(tensor.shape), dtype=tensor.dtype)
        self.edits["weight"] += 1

    def add_weight(
        self, name: str, tensor: Tensor, before: fx.Node, *, trainable: bool = True, persistent: bool = True,
        aliases: tuple[str, ...] = (),
    ) -> fx.Node:  # fmt: skip
        """A new weight and its node, inserted before `before`."""
        if name in self.program.info:
            raise VerifyError(f"a weight called {name!r} exists already", at=self.pass_name)
        value = fake_value(tensor, fake_mode(self.program))
        self.program.weights[name] = tensor
        self.program.info[name] = Weight(name, tuple(tensor.shape), tensor.dtype, trainable, aliases, persistent)
        with self.program.graph.inserting_before(before):
            node = self.program.graph.get_attr(name)
        node.meta = {"val": value, "from_pass": self.pass_name}
        self.edits["weight"] += 1
        return node

    def add_call(self, target: Callable[..., Any], args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        """A new call before `like`, which stands for the same line of the model; its value is derived.

        Raises:
            VerifyError: the operator refuses its operands.
        """
        with self.program.graph.inserting_before(like):
            node = self.program.graph.call_function(target, args)
        node.meta = {**like.meta, "from_pass": self.pass_name}
        with fake_mode(self.program):
            node.meta["val"] = evaluate_fake(node)
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Every use of `old` reads `new` instead."""
        old.replace_all_uses_with(new)
        self._replaced[old] = new
        self.edits["node"] += 1

    def tie(self, name: str, other: str) -> None:
        """All that read the weight `other` read `name` instead, and `other` becomes another name of it.

        Raises:
            VerifyError: they differ in shape or type.
        """
        nodes, info = self.program.weight_nodes(), self.program.info
        kept, gone = info[name], info[other]
        if (kept.shape, kept.dtype) != (gone.shape, gone.dtype):
            raise VerifyError(f"the weights {name!r} and {other!r} differ in shape or type", at=self.pass_name)
        if nodes[other] < nodes[name]:
            nodes[other].prepend(nodes[name])  # it is read before
        self.replace(nodes[other], nodes[name])
        self.program.graph.erase_node(nodes[other])
        del self.program.weights[other], info[other]
        info[name] = replace(kept, aliases=(*kept.aliases, other, *gone.aliases))

    def sweep(self) -> None:
        """Removes nodes whose value nothing reads, and with them weights that were read before and no longer are."""
        read = set(self.program.weight_nodes())
        remove_dead_calls(self.program.graph)
        for node in list(self.program.graph.find_nodes(op="get_attr")):
            if not node.users:
                self.program.graph.erase_node(node)
        for name in read - set(self.program.weight_nodes()):
            del self.program.weights[name]
            del self.program.info[name]

    def set_arguments(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Replaces the arguments of a node."""
        if node.args != args or dict(node.kwargs) != dict(kwargs):
            node.args, node.kwargs = args, dict(kwargs)
            node.meta["from_pass"] = self.pass_name
            self.edits["arguments"] += 1

    def slice(self, axes: Axes, selection: Selection) -> None:
        """Applies a selection: weights and cache inputs lose positions, every shape constant is recomputed from the
        axes, and every shape is derived again and compared with what the axes say.

        `axes` are those of the program that this rewriter copied.

        Raises:
            VerifyError: a shape comes out differently from what the axes say.
        """
        mode = fake_mode(self.program)
        for old, new in self.copies(axes).items():
            if old.op == "placeholder":
                self._slice_input(axes, selection, old, new)
            elif old.op == "get_attr":
                self._slice_weight(axes, selection, old, new)
            elif old.op == "call_function":
                self._refresh_literals(axes, selection, old, new)
                with mode:
                    new.meta["val"] = evaluate_fake(new)
                _compare(axes, selection, old, new)

    def copy_sliced(
        self, axes: Axes, selection: Selection, region: Sequence[fx.Node], before: fx.Node, suffix: str
    ) -> dict[fx.Node, fx.Node]:
        """Copies of the nodes in `region` (of the program that this rewriter copied, in order) under a selection:
        weights become new, smaller ones named with `suffix`, calls read the copies. Returns old node -> copy."""
        copies = self.copies(axes)
        mode, made = fake_mode(self.program), dict[fx.Node, fx.Node]()
        for old in region:
            if old.op == "get_attr":
                name = str(old.target)
                tensor = selection.take(self.program.weights[name], axes.dims(old)).contiguous()
                info = self.program.info[name]
                made[old] = self.add_weight(
                    f"{name}{suffix}", tensor, copies[before], trainable=info.trainable, persistent=info.persistent,
                    aliases=tuple(f"{alias}{suffix}" for alias in info.aliases),
                )  # fmt: skip
                continue
            with self.program.graph.inserting_before(copies[before]):
                new = self.program.graph.node_copy(old, lambda n: made[n] if n in made else self.now(copies[n]))
            new.meta = {**old.meta, "from_pass": self.pass_name}
            made[old] = new
            self._refresh_literals(axes, selection, old, new)
            with mode:
                new.meta["val"] = evaluate_fake(new)
            _compare(axes, selection, old, new)
            self.edits["node"] += 1
        return made

    def copies(self, axes: Axes) -> dict[fx.Node, fx.Node]:
        """The nodes of the program that was copied -> their copies, as long as none was removed."""
        if self._mapping is None:
            self._mapping = dict(zip(axes.program.graph.nodes, self.program.graph.nodes, strict=True))
        return self._mapping

    def now(self, node: fx.Node) -> fx.Node:
        """What is read instead of `node`, if it was replaced."""
        while node in self._replaced:
            node = self._replaced[node]
        return node

    def _slice_input(self, axes: Axes, selection: Selection, old: fx.Node, new: fx.Node) -> None:
        dims = axes.dims(old)
        if not selection.touches(dims):
            return
        shape = [
            selection.size(e) if selection.touches((e,)) else s
            for e, s in zip(dims, old.meta["val"].shape, strict=True)
        ]
        with fake_mode(self.program):
            new.meta["val"] = old.meta["val"].new_empty(shape)
        index = list(axes.program.input_names).index(old.name)
        inputs = list(self.program.example_inputs)
        inputs[index] = selection.take(inputs[index], dims, bind_symbols(axes.program, axes.program.example_inputs))
        self.program.example_inputs = tuple(inputs)
        self.edits["input"] += 1

    def _slice_weight(self, axes: Axes, selection: Selection, old: fx.Node, new: fx.Node) -> None:
        dims = axes.dims(old)
        if selection.touches(dims):
            tensor = selection.take(self.program.weights[str(old.target)], dims).contiguous()
            self.set_weight(str(old.target), tensor)
            with fake_mode(self.program):
                new.meta["val"] = old.meta["val"].new_empty(tuple(tensor.shape))
            new.meta["from_pass"] = self.pass_name

    def _refresh_literals(self, axes: Axes, selection: Selection, old: fx.Node, new: fx.Node) -> None:
        call = axes.calls.get(old)
        literals = new_literals(axes, call, selection) if call is not None else {}
        if literals:
            assert call is not None
            before = literals_for(axes, call, Selection())
            settled = {name: self._settle(new, name, value, before[name]) for name, value in literals.items()}
            self.set_arguments(new, *replace_arguments(new, new.args, new.kwargs, settled))

    def _settle(self, node: fx.Node, name: str, value: Any, before: Any) -> Any:
        """New sizes as arguments: the old ones where the selection leaves them as they were, numbers, or the old size
        nodes where they hold (after a correction) the new size."""
        old = _argument(node, name)
        if not isinstance(value, list):
            return old if _stays(old, value, before) else self._settle_one(node, old, value)
        olds = list(old) if isinstance(old, list | tuple) else [None] * len(value)
        rows = zip(olds, value, before, strict=True)
        return [o if _stays(o, v, b) else self._settle_one(node, o, v) for o, v, b in rows]

    def _settle_one(self, node: fx.Node, old: Any, new: Size | None) -> Any:
        if new is None:
            return None  # an optional size, left to the operator
        if isinstance(old, int) and old == -1:
            return old
        if isinstance(new, int):
            return new
        if not isinstance(old, fx.Node):
            raise VerifyError(f"the size {new} depends on an input but {old} is a number", at=where(node))
        current = size_of(old.meta["val"])
        if current == new:
            return old
        return self._scaled(node, old, current, new)

    def _scaled(self, node: fx.Node, old: fx.Node, current: Size, new: Size) -> fx.Node:
        """A size node times new/current: both are multiples of the same symbols."""
        common = _content(current), _content(new)
        if quotient(current, common[0]) != quotient(new, common[1]):
            raise VerifyError(f"the size {current} cannot be turned into {new}", at=where(node))
        with self.program.graph.inserting_before(node):
            unit = self.program.graph.call_function(operator.floordiv, (old, common[0]))
            unit.meta = {"val": old.meta["val"] // common[0], "from_pass": self.pass_name}
            scaled = self.program.graph.call_function(operator.mul, (unit, common[1]))
            scaled.meta = {"val": unit.meta["val"] * common[1], "from_pass": self.pass_name}
        self.edits["size"] += 1
        return scaled


def _stays(old: Any, new: Any, before: Any) -> bool:
    """Whether an argument that is given keeps its value: two names of one size that depends on data are not compared
    with each other."""
    return isinstance(old, fx.Node) and new == before


def _content(size: Size) -> int:
    """The integer factor of a size: 12 for 12*s0."""
    if isinstance(size, int):
        return size
    coefficient, _ = size.as_coeff_Mul()
    return int(coefficient)


def _argument(node: fx.Node, name: str) -> Any:
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    index = names.index(name)
    return node.args[index] if index < len(node.args) else node.kwargs.get(name)


def fake_mode(program: Program) -> Any:
    """The mode of the program's fake tensors."""
    values = [n.meta["val"] for n in program.graph.nodes if n.op in ("placeholder", "get_attr")]
    mode = detect_fake_mode(values)
    if mode is None:
        raise VerifyError("the program carries no fake tensors", remedy="capture it again")
    return mode


def fake_value(tensor: Tensor, mode: Any) -> Tensor:
    """A fake tensor of the same shape and type."""
    with mode:
        return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)


def evaluate_fake(node: fx.Node) -> Any:
    """The value of a call on fake tensors: its shape, derived anew.

    Raises:
        VerifyError: the operator refuses the shapes of its operands.
    """
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    try:
        # Python's decompositions keep sizes symbolic where C++ kernels ask for numbers; no guard may specialise them.
        with torch.no_grad(), enable_python_dispatcher(), _no_guards(args, kwargs):
            return node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise VerifyError(f"the rewritten graph does not run: {reason}", at=where(node)) from error


def _no_guards(args: Any, kwargs: Any) -> AbstractContextManager[None]:
    values = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
    environment = getattr(detect_fake_mode(values), "shape_env", None) if values else None
    guards: AbstractContextManager[None] = environment.suppress_guards() if environment is not None else nullcontext()
    return guards


def _compare(axes: Axes, selection: Selection, old: fx.Node, new: fx.Node) -> None:
    if old not in axes.values or old.target is operator.getitem:
        return
    value = new.meta["val"]
    values = [v for v in (value if isinstance(value, list | tuple) else (value,)) if isinstance(v, Tensor)]
    for tensor, raw in zip(values, axes.values[old], strict=True):
        dims = tuple(axes.terms.resolve(e) for e in raw)
        for dim, (size, expr) in enumerate(zip(tensor.shape, dims, strict=True)):
            if selection.touches((expr,)) and not same_size(size_of(size), selection.size(expr)):
                raise VerifyError(
                    f"dimension {dim} has size {size}, its axes say {selection.size(expr)}",
                    at=where(new), rule=str(axes.calls[old].rule) if old in axes.calls else None,
                )  # fmt: skip
