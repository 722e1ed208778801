"""The Program: a captured model as a flat functional ATen graph, its weights by their original names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from fxslim.graph.errors import AnalysisError
from fxslim.graph.placeholder import Placeholder
from fxslim.graph.stores import FileTensor, WeightStore

__all__ = ["DynamicShapes", "Program", "Weight", "WeightStore", "bind_symbols"]

DynamicShapes = dict[str, dict[int, str]]
"""Dynamic dimensions by flat input name: `{"input_ids": {0: "batch", 1: "sequence"}}`."""


@dataclass(frozen=True)
class Weight:
    """What is known of a weight without touching its data."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    trainable: bool  # a parameter; buffers and lifted constants are not
    aliases: tuple[str, ...] = ()  # other names of the same tensor (tied weights)
    persistent: bool = True

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


@dataclass
class Program:
    """A captured model.

    `graph` is flat and functional: placeholders are the user's inputs, `get_attr` nodes are weights by name, all else
    are ATen calls or arithmetic on sizes. `node.meta["val"]` holds a fake tensor (or size) for every node.
    """

    graph: fx.Graph
    weights: WeightStore
    info: dict[str, Weight]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    example_inputs: tuple[torch.Tensor, ...]
    dynamic: DynamicShapes
    arg_names: tuple[str, ...]  # names of the arguments of `forward` that were given
    source: str = "module"
    history: list[str] = field(default_factory=list)  # passes applied, in order
    caches: dict[str, str] | None = None  # cache input -> output that replaces it; None: found by name
    names: dict[str, str] = field(default_factory=dict)  # input -> what it is called outside, where that differs

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the flat inputs, in order."""
        return tuple(n.name for n in self.graph.nodes if n.op == "placeholder")

    @property
    def outside_names(self) -> tuple[str, ...]:
        """What the flat inputs are called outside (in an ONNX file), in order."""
        return tuple(self.names.get(name, name) for name in self.input_names)

    @property
    def output_nodes(self) -> tuple[Any, ...]:
        """What the graph returns, flat: nodes or constants."""
        (output,) = self.graph.find_nodes(op="output")
        return tuple(output.args[0])

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the flat outputs: the keys of the model's output where it has any, else `output_0`, ..."""
        names = _leaf_names(self.out_spec)
        return tuple(names)

    def weight_nodes(self) -> dict[str, fx.Node]:
        """The one `get_attr` node of every weight that the graph uses."""
        return {str(n.target): n for n in self.graph.nodes if n.op == "get_attr"}

    def parameters(self) -> int:
        """Number of trainable scalars, tied ones once."""
        return sum(w.numel for w in self.info.values() if w.trainable)

    def clone(self) -> Program:
        """An independent copy of the graph over the same weight tensors (which no pass changes in place)."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        output = graph.graph_copy(self.graph, mapping)
        graph.output(output)
        for old, new in mapping.items():
            new.meta = dict(old.meta)
        (old_output,), (new_output,) = self.graph.find_nodes(op="output"), graph.find_nodes(op="output")
        new_output.meta = dict(old_output.meta)
        return Program(
            graph, self.weights.copy(), dict(self.info), self.in_spec, self.out_spec, self.example_inputs,
            {k: dict(v) for k, v in self.dynamic.items()}, self.arg_names, self.source, list(self.history),
            None if self.caches is None else dict(self.caches), dict(self.names),
        )  # fmt: skip

    def root(self, *, placeholders: bool = False) -> nn.Module:
        """A module tree that holds the weights under their original names, tied names included. With `placeholders`
        those that are on disk are not read."""
        root = nn.Module()
        for name, weight in self.info.items():
            entry = self.weights.entry(name)
            tensor = Placeholder(entry) if placeholders and isinstance(entry, FileTensor) else self.weights[name]
            value = nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) if weight.trainable else tensor
            for alias in (name, *weight.aliases):
                _register(root, alias, value, weight.persistent)
        return root

    def flat_module(self, *, placeholders: bool = False) -> fx.GraphModule:
        """A module over flat tensors: one argument per input name, a tuple of outputs. With `placeholders` weights that
        are on disk stay there: it can be traced, and not be run."""
        return fx.GraphModule(self.root(placeholders=placeholders), self._copied_graph())

    def module(self) -> fx.GraphModule:
        """A trainable `nn.Module` with the original's calling convention and parameter names."""
        graph = self._copied_graph()
        (output,) = graph.find_nodes(op="output")
        info = _PyTreeInfo(list(self.arg_names), self.in_spec, self.out_spec)
        graph.set_codegen(_PyTreeCodeGen(info))
        output.args = (list(output.args[0]),)
        module = fx.GraphModule(self.root(), graph)
        for weight in self.info.values():
            for alias in weight.aliases:  # a GraphModule takes over only what its graph reads: one name of each weight
                _register(module, alias, attrgetter(weight.name)(module), weight.persistent)
        return module

    def _copied_graph(self) -> fx.Graph:
        return self.clone().graph

    def flatten(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> list[torch.Tensor]:
        """The flat inputs for a call `forward(*args, **kwargs)`; raises if the structure differs from the capture."""
        flat, spec = pytree.tree_flatten((args, dict(kwargs or {})))
        if spec != self.in_spec:
            raise AnalysisError(f"the call has the structure {spec}, the program was captured with {self.in_spec}")
        return flat

    def fingerprint(self) -> str:
        """A hash of the structure (operators, arguments, weight names and shapes), not of the weights' values.

        An argument that is left out counts as its default: a saved program leaves out what a pass wrote down.
        """
        digest = hashlib.sha256()
        index = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            args = fx.map_arg(_all_arguments(node), lambda n: f"%{index[n]}")
            target = node.target if node.op in ("get_attr", "call_function") else ""
            digest.update(f"{node.op}|{_target_name(target)}|{args}\n".encode())
        for name in sorted(self.info):
            digest.update(f"{name}|{self.info[name].shape}\n".encode())
        return digest.hexdigest()


def bind_symbols(program: Program, inputs: Sequence[Tensor]) -> dict[sympy.Symbol, int]:
    """The values of the exporter's symbols for given inputs."""
    symbols: dict[sympy.Symbol, int] = {}
    for node, value in zip(program.graph.find_nodes(op="placeholder"), inputs, strict=True):
        for size, actual in zip(node.meta["val"].shape, value.shape, strict=True):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                symbols[size.node.expr] = int(actual)
    return symbols


def _all_arguments(node: fx.Node) -> Any:
    """The arguments of a call by name, defaults included; as they are where there is no schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.args, node.kwargs
    schema = node.target._schema.arguments
    given = dict(zip((a.name for a in schema), node.args, strict=False)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value if a.has_default_value() else None) for a in schema}


def _target_name(target: Any) -> str:
    return str(target) if isinstance(target, torch._ops.OpOverload | str) else getattr(target, "__name__", str(target))


def _register(root: nn.Module, name: str, value: torch.Tensor | nn.Parameter, persistent: bool) -> None:
    *path, leaf = name.split(".")
    module = root
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    if isinstance(value, nn.Parameter):
        module.register_parameter(leaf, value)
    else:
        module.register_buffer(leaf, value, persistent=persistent)


def _leaf_names(spec: pytree.TreeSpec) -> list[str]:
    """Names of the leaves of an output structure: keys and indices joined with `_`, `output_...` where there is no
    key."""
    names: list[str] = []

    def walk(node: pytree.TreeSpec, path: tuple[str, ...]) -> None:
        if node.is_leaf():
            names.append("_".join(path if path and not path[0].isdigit() else ("output", *path)))
            return
        keys = node.context if _is_names(node.context, node.num_children) else range(node.num_children)
        for key, child in zip(keys, node.children(), strict=True):
            walk(child, (*path, str(key)))

    walk(spec, ())
    return names


def _is_names(context: Any, count: int) -> bool:
    return isinstance(context, list | tuple) and len(context) == count and all(isinstance(k, str) for k in context)
