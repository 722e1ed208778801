"""Evaluation of a program on real tensors, node by node: in its own precision or in float64, whole or with units
masked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from fxslim.graph.axes.analysis import Axes, CallAxes
from fxslim.graph.axes.notation import Kind, letters_of
from fxslim.graph.axes.select import Selection, number_of
from fxslim.graph.axes.terms import expr_size, size_of
from fxslim.graph.errors import AnalysisError, CheckError, where
from fxslim.graph.literals import new_literals, replace_arguments
from fxslim.graph.pieces import Environment, weights_of
from fxslim.graph.program import Program, bind_symbols
from fxslim.graph.stores import FileTensor

__all__ = ["Environment", "Evaluator", "MaskedEvaluator", "last_uses"]

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32})
# These reinterpret bits or step along a grid of their own: in another type they would compute something else.
_DTYPE_BOUND = frozenset({torch.ops.aten.view.dtype, torch.ops.aten.nextafter.default})


class Evaluator:
    """Runs a program. With `dtype=torch.float64` weights, inputs and every dtype named in the graph become float64.

    It runs on the device that the program's store names: then its inputs are there, and so are its outputs.
    """

    def __init__(self, program: Program, *, dtype: torch.dtype | None = None) -> None:
        self.program = program
        self.dtype = dtype
        self.device = program.weights.placement.device
        self._replaced = program.weights.empty()
        self._last = last_uses(program.graph)

    def run(self, inputs: Sequence[Tensor]) -> list[Any]:
        """The flat outputs for flat inputs (in the order of `program.input_names`)."""
        env = self.bind(inputs)
        self.advance(env, self.program.graph.nodes)
        return self.outputs(env)

    def bind(self, inputs: Sequence[Tensor]) -> Environment:
        """An environment in which the inputs are bound."""
        nodes = self.program.graph.find_nodes(op="placeholder")
        if len(nodes) != len(inputs):
            raise AnalysisError(
                f"the program has {len(nodes)} inputs ({', '.join(n.name for n in nodes)}), got {len(inputs)}"
            )
        return {node: self._as_here(value) for node, value in zip(nodes, inputs, strict=True)}

    def advance(self, env: Environment, nodes: Iterable[fx.Node]) -> None:
        """Evaluates `nodes` in order; values are dropped from `env` after their last use, outputs stay."""
        with torch.no_grad():
            for node in nodes:
                if node.op == "call_function":
                    env[node] = self.compute(node, env)
                    for dead in self._last.get(node, ()):
                        env.pop(dead, None)

    def outputs(self, env: Environment) -> list[Any]:
        """The flat outputs from an environment that has reached the end."""
        return [self.value(v, env) if isinstance(v, fx.Node) else v for v in self.program.output_nodes]

    def value(self, node: fx.Node, env: Environment) -> Any:
        """The value of a node. Weights are read when they are used: a replaced one counts from then on, and only those
        of one call are held in another precision."""
        return self.weight(str(node.target)) if node.op == "get_attr" else env[node]

    def weight(self, name: str) -> Tensor:
        """A weight in the evaluation's precision."""
        return self._as_here(self._replaced[name] if name in self._replaced else self.program.weights[name])

    def set_weight(self, name: str, value: Tensor | FileTensor) -> None:
        """Replaces a weight, by a tensor or by where one is, for the evaluations that follow, not in the program."""
        if isinstance(value, Tensor):
            self._replaced[name] = value
        else:
            self._replaced.link(name, value)

    @contextmanager
    def holding(self, nodes: Iterable[fx.Node]) -> Iterator[None]:
        """Reads the weights of calls once, for all evaluations in the block."""
        names = weights_of(nodes)
        own = [name for name in names if name in self._replaced]
        with self._replaced.holding(own), self.program.weights.holding(n for n in names if n not in self._replaced):
            yield

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], env: Environment) -> Any:
        """The value of one call."""
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def compute(self, node: fx.Node, env: Environment) -> Any:
        """The value of one node; those of its arguments are in `env`. What a call makes in torch's default type (zeros,
        a quotient of integers) is widened too."""
        if self.dtype is not None and node.target in _DTYPE_BOUND:
            name = str(self.dtype).removeprefix("torch.")
            raise CheckError(f"the operator has no meaning in {name}: there is no reference", at=where(node))
        args, kwargs = self._arguments(node, lambda n: self.value(n, env))
        try:
            return pytree.tree_map_only(Tensor, self._as_here, self.call(node, args, kwargs, env))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise AnalysisError(f"evaluation failed: {error}", at=where(node)) from error

    def _arguments(self, node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = fx.map_arg((node.args, node.kwargs), value)
        if self.dtype is not None:
            args, kwargs = (_mapped(a, torch.dtype, self._type) for a in (args, kwargs))
        if self.device is not None:
            args, kwargs = (_mapped(a, torch.device, lambda _: self.device) for a in (args, kwargs))
        return args, kwargs

    def _type(self, named: torch.dtype) -> torch.dtype | None:
        return self.dtype if named in _FLOATS else named

    def _as_here(self, value: Tensor) -> Tensor:
        value = value if self.device is None else value.to(self.device)
        if self.dtype is None or not (value.is_floating_point() or value.is_complex()):
            return value
        return value.to(self.dtype.to_complex() if value.is_complex() else self.dtype)


class MaskedEvaluator(Evaluator):
    """Runs the original program with removed units masked: wherever an operator sums over a selected axis, removed
    positions of one operand are zero.

    Operators whose statistics tie positions (normalisations, softmax) are given the kept positions only; each such
    place makes a group inexact, and its group says so. What remains is the statement that the slim program must
    satisfy to rounding.
    """

    def __init__(self, axes: Axes, selection: Selection, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(axes.program, dtype=dtype)
        self.axes, self.selection = axes, selection
        self._symbols: dict[sympy.Symbol, int] = {}
        self._plans: dict[fx.Node, tuple[list[int], bool]] = {}
        self._data_sizes = _data_sizes(axes.program)

    def bind(self, inputs: Sequence[Tensor]) -> Environment:
        """An environment in which the inputs, and the sizes of their dynamic dimensions, are bound."""
        env = super().bind(inputs)
        self._symbols = bind_symbols(self.program, inputs)
        return env

    def fork(self, other: MaskedEvaluator, env: Environment) -> Environment:
        """An environment that goes on from that of another evaluator of the same program, and leaves it as it is."""
        self._symbols = dict(other._symbols)
        return dict(env)

    def compute(self, node: fx.Node, env: Environment) -> Any:
        """The value of one node. Sizes that depend on data are known from here on."""
        value = super().compute(node, env)
        for index, dim, symbol in self._data_sizes.get(node, ()):
            self._symbols[symbol] = (value if isinstance(value, Tensor) else value[index]).shape[dim]
        return value

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], env: Environment) -> Any:
        """The value of one call with removed units masked."""
        call = self.axes.calls.get(node)
        if call is None:
            return super().call(node, args, kwargs, env)
        masked, tied = self._plan(call)
        if tied:
            return self._on_kept(call, env)
        if masked:
            args, kwargs = self._masked(call, masked, env)
        return super().call(node, args, kwargs, env)

    def _plan(self, call: CallAxes) -> tuple[list[int], bool]:
        """Which operands to mask, and whether a selected letter is tied here."""
        if call.node not in self._plans:
            chosen = {x for x, e in call.letters.items() if self.selection.touches((self.axes.terms.resolve(e),))}
            tied = any(call.rule.kind(x) is Kind.TIED for x in chosen)
            operands: list[int] = []
            for letter in sorted(chosen):
                kind = call.rule.kind(letter)
                holders = [i for i, dims in enumerate(call.rule.operands) if letter in letters_of(dims)]
                if kind is Kind.REDUCE and not tied and not any(i in operands for i in holders):
                    operands += holders[:1] if call.rule.costs else holders  # zero in one factor is zero in a product
                elif kind is Kind.RECURRENT and not tied:
                    operands += [i for i in holders if i not in operands and _feeds_back(call, i, letter)]
            self._plans[call.node] = (operands, tied)
        return self._plans[call.node]

    def _masked(self, call: CallAxes, operands: list[int], env: Environment) -> tuple[tuple[Any, ...], dict[str, Any]]:
        local: Environment = {}
        for index in operands:
            node = call.operands[index]
            mask = self.selection.mask(self.axes.dims(node), self._symbols)
            if mask is not None:
                value = self.value(node, env)
                local[node] = value.masked_fill(~mask.to(value.device), 0)
        return self._arguments(call.node, lambda n: local[n] if n in local else self.value(n, env))

    def _on_kept(self, call: CallAxes, env: Environment) -> Any:
        """The call on the kept positions alone, its results back in place with zeros for the removed."""
        local = {n: self.selection.take(self.value(n, env), self.axes.dims(n), self._symbols) for n in call.operands}
        args, kwargs = self._arguments(call.node, lambda n: local[n] if n in local else self.value(n, env))
        literals = new_literals(self.axes, call, self.selection, self._symbols)
        args, kwargs = replace_arguments(call.node, args, kwargs, literals)
        result = Evaluator.call(self, call.node, args, kwargs, env)
        results = result if isinstance(result, list | tuple) else (result,)
        full = [self._spread(r, dims) for r, dims in zip(results, self.axes.values[call.node], strict=True)]
        return type(result)(full) if isinstance(result, list | tuple) else full[0]

    def _spread(self, value: Tensor, dims: tuple[Any, ...]) -> Tensor:
        resolved = tuple(self.axes.terms.resolve(e) for e in dims)
        shape = [number_of(expr_size(e), self._symbols) for e in resolved]
        return self.selection.put(value, value.new_zeros(shape), resolved, self._symbols)


def _data_sizes(program: Program) -> dict[fx.Node, list[tuple[int, int, sympy.Symbol]]]:
    """Where sizes that no input has come up first: which of a call's tensors, which dimension, and the symbol."""
    known = set(bind_symbols(program, program.example_inputs))
    found: dict[fx.Node, list[tuple[int, int, sympy.Symbol]]] = {}
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "call_function" else None
        for index, tensor in enumerate(value if isinstance(value, list | tuple) else (value,)):
            for dim, size in enumerate(tensor.shape if isinstance(tensor, Tensor) else ()):
                symbol = size_of(size)
                if isinstance(symbol, sympy.Symbol) and symbol not in known:
                    known.add(symbol)
                    found.setdefault(node, []).append((index, dim, symbol))
    return found


def _feeds_back(call: CallAxes, operand: int, letter: str) -> bool:
    """Whether an operand carries the letter in two dimensions: it takes the letter's positions to themselves."""
    return sum(letter in letters_of((pattern,)) for pattern in call.rule.operands[operand]) > 1


def last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For every node, the values that are needed for the last time when it runs."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        users = [u for u in node.users if u.op != "output"]
        if users and len(users) == len(node.users):
            found.setdefault(max(users, key=order.__getitem__), []).append(node)
    return found


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A structure of arguments with every value of a kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {k: _mapped(v, kind, change) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(v, kind, change) for v in value)
    return value
