"""Programs on disk without pickle: `graph.json` (structure), `weights.safetensors` (or several files with an index),
`inputs.safetensors` (the example inputs).

Loading runs no code from the files: operators are looked up by name among ATen's, those for which somebody has
registered a rule in this process, and a short list of functions on sizes, and the graph is traced again, so that shapes
are derived, not believed. A model-specific output class comes
back as a dictionary of the same keys.
"""

from __future__ import annotations

import json
import math
import operator
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx

from fxslim.graph.axes.rules import REGISTRY
from fxslim.graph.capture import capture_exported, export_strategies
from fxslim.graph.errors import CaptureError, FxslimError, InputError
from fxslim.graph.program import Program, Weight, WeightStore
from fxslim.graph.shards import SHARD, index_of, read_shards, write_shards
from fxslim.graph.stores import FileTensor

__all__ = ["GRAPH_FILE", "INPUTS_FILE", "WEIGHTS_FILE", "is_saved_program", "load", "save"]

FORMAT = 1
GRAPH_FILE, WEIGHTS_FILE, INPUTS_FILE = "graph.json", "weights.safetensors", "inputs.safetensors"

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in (
        "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge",
        "and_", "or_",
    )},
    **{f"torch.{name}": getattr(torch, name) for name in (
        "sym_max", "sym_min", "sym_not", "sym_ite", "sym_float", "sym_int",
    )},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "sqrt", "trunc")},
}  # fmt: skip
_FUNCTION_NAMES = {function: name for name, function in _FUNCTIONS.items()}
Scope = tuple[tuple[str, str, str], ...]
"""Modules around a call, the outermost first: the exporter's key, the path, and the class of each."""

_CONSTANTS = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


def is_saved_program(path: str | Path) -> bool:
    """Whether `path` is a directory that `save` wrote."""
    return (Path(path) / GRAPH_FILE).is_file()


def save(program: Program, directory: str | Path, *, shard: int = SHARD) -> Path:
    """Writes a program to a new directory, whole or not at all, and returns its path. Weights are read one by one; more
    than `shard` bytes of them go to several files with an index.

    Raises:
        InputError: the directory exists and is not empty, cannot be written, or the program holds what the format
            cannot express.
    """
    target = Path(directory)
    text = json.dumps(_encode_program(program), indent=1) + "\n"
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{str(target)!r} exists and is not empty", remedy="name a new directory")
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        write_shards(temporary / WEIGHTS_FILE, program.weights, shard)
        inputs = zip(program.input_names, program.example_inputs, strict=True)
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in inputs}, temporary / INPUTS_FILE)
        (temporary / GRAPH_FILE).write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(target)!r} cannot be written: {reason}") from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary)
    return target


def load(directory: str | Path, *, stream: bool = False) -> Program:
    """The program that `save` wrote. With `stream` its weights stay on disk, each read when it is asked for.

    Raises:
        InputError: a file is missing, damaged, or names an operator that the format does not allow.
    """
    path = Path(directory)
    try:
        data = json.loads((path / GRAPH_FILE).read_text(encoding="utf-8"))
        weights = _weights(path / WEIGHTS_FILE, stream)
        inputs = load_file(path / INPUTS_FILE)
    except FileNotFoundError as error:
        raise InputError(
            f"{str(path)!r} is not a saved program: {Path(error.filename or '?').name} is missing"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"the saved program {str(path)!r} is damaged: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} has an unknown format; this version reads format {FORMAT}")
    try:
        return _decode_program(data, weights, inputs)
    except FxslimError as error:
        said = f"the saved program {str(path)!r} cannot be rebuilt: {error.what}"
        raise InputError(said, at=error.at, remedy=error.remedy) from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise InputError(f"the saved program {str(path)!r} is damaged: {type(error).__name__}: {error}") from error


def _weights(path: Path, stream: bool) -> Mapping[str, Tensor | FileTensor]:
    if stream:
        return read_shards(path)
    if index_of(path).is_file():
        return {name: entry.read() for name, entry in read_shards(path).items()}
    weights: Mapping[str, Tensor] = load_file(path)
    return weights


def _encode_program(program: Program) -> dict[str, Any]:
    scopes: dict[Scope, int] = {}
    nodes = [_encode_node(node, scopes) for node in program.graph.nodes]
    return {
        "format": FORMAT,
        "source": program.source,
        "history": program.history,
        "arguments": list(program.arg_names),
        "inputs": _encode_spec(program.in_spec),
        "outputs": _encode_spec(program.out_spec),
        "caches": program.caches,
        "names": program.names,
        "dynamic": {name: {str(d): n for d, n in dims.items()} for name, dims in program.dynamic.items()},
        "weights": {
            w.name: {"trainable": w.trainable, "aliases": list(w.aliases), "persistent": w.persistent}
            for w in program.info.values()
        },
        "scopes": [[list(module) for module in scope] for scope in scopes],
        "nodes": nodes,
    }


def _encode_node(node: fx.Node, scopes: dict[Scope, int]) -> dict[str, Any]:
    target = _encode_target(node) if node.op == "call_function" else str(node.target)
    found: dict[str, Any] = {"name": node.name, "op": node.op, "target": target}
    if node.op in ("call_function", "output"):
        found["args"] = [_encode(a) for a in node.args]
        if node.kwargs:
            found["kwargs"] = {k: _encode(v) for k, v in node.kwargs.items()}
    if scope := _scope(node):
        found["scope"] = scopes.setdefault(scope, len(scopes))
    return found


def _scope(node: fx.Node) -> Scope:
    """The modules that a call was made in, the outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple((str(key), str(path), str(kind)) for key, (path, kind) in stack.items())


def _restore_calls(program: Program, data: Mapping[str, Any]) -> None:
    """Tells the calls of a program that was traced again their names and in which modules they were made: those of the
    saved one, where its calls are the same in the same order."""
    scopes = [{str(key): (str(path), str(kind)) for key, path, kind in scope} for scope in data.get("scopes", ())]
    entries = [entry for entry in data["nodes"] if entry["op"] == "call_function"]
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    if [entry["target"] for entry in entries] != [_encode_target(node) for node in calls]:
        return
    for node, entry in zip(calls, entries, strict=True):
        node.meta["nn_module_stack"] = dict(scopes[entry["scope"]]) if "scope" in entry else {}
    named = {entry["target"]: entry["name"] for entry in data["nodes"] if entry["op"] == "get_attr"}
    wanted = {node: entry["name"] for node, entry in zip(calls, entries, strict=True)}
    wanted |= {n: named.get(n.target, n.name) for n in program.graph.nodes if n.op == "get_attr"}
    program.graph = _renamed(program.graph, wanted)


def _renamed(graph: fx.Graph, wanted: Mapping[fx.Node, str]) -> fx.Graph:
    """The same graph with other names; as it is where two nodes would have one name."""
    names = [wanted.get(node, node.name) for node in graph.nodes]
    if len(set(names)) < len(names):
        return graph
    result, made = fx.Graph(), dict[fx.Node, fx.Node]()
    result.set_codegen(graph._codegen)
    for node, name in zip(graph.nodes, names, strict=True):
        args, kwargs = fx.map_arg((node.args, node.kwargs), made.__getitem__)
        made[node] = result.create_node(node.op, node.target, args, kwargs, name=name, type_expr=node.type)
        made[node].meta = dict(node.meta)
    return result


def _drop_added_copies(program: Program, data: Mapping[str, Any]) -> None:
    """Takes out the copies that tracing has put in where the saved program has none: before a reshape of what is not in
    order in memory, as attention returns it once its widths differ. The reshape makes them by itself."""
    wanted = [entry["target"] for entry in data["nodes"] if entry["op"] == "call_function"]
    added, place = [], 0
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if place < len(wanted) and _encode_target(node) == wanted[place]:
            place += 1
        elif node.target is torch.ops.aten.clone.default:
            added.append(node)
        else:
            return  # it is another graph: nothing is known of its copies
    if place < len(wanted):
        return
    for node in added:
        node.replace_all_uses_with(node.args[0])
        program.graph.erase_node(node)


def _encode_target(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        if target.namespace != "aten" and target not in REGISTRY:
            raise InputError(
                f"the operator {target} is not ATen's: a saved program could not be loaded everywhere", at=node.name,
                remedy="register a rule for it, by a plug-in that those who load the program have as well",
            )  # fmt: skip
        return str(target)
    if target in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[target]
    raise InputError(f"the function {target} cannot be saved", at=node.name)


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for name, kind in _CONSTANTS.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise InputError(f"an argument of the type {type(value).__name__} cannot be saved")


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, nodes) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind == "float":
        return float(inner)
    if kind == "device":
        return torch.device(inner)
    constant = getattr(torch, inner, None) if kind in _CONSTANTS else None
    if constant is None or not isinstance(constant, _CONSTANTS[kind]):
        raise InputError(f"unknown constant {kind} {inner!r}")
    return constant


def _decode_target(text: str) -> Callable[..., Any]:
    if text in _FUNCTIONS:
        return _FUNCTIONS[text]
    namespace, _, rest = text.partition(".")
    name, _, overload = rest.partition(".")
    if namespace != "aten":
        registered = next((op for op in REGISTRY if op.namespace != "aten" and str(op) == text), None)
        if registered is None:
            raise InputError(
                f"the operator {text!r} is not allowed in a saved program",
                remedy="if it is that of a plug-in, install it, or register its rule before loading",
            )
        return registered
    if not name.isidentifier() or not overload.isidentifier():
        raise InputError(f"the operator {text!r} is not allowed in a saved program")
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise InputError(f"this version of torch has no operator {text!r}")
    if found not in REGISTRY and (found._schema.is_mutable or not _takes_tensors(found)):
        raise InputError(f"the operator {text!r} is not allowed in a saved program")
    return found


def _takes_tensors(op: torch._ops.OpOverload) -> bool:
    """A function of tensors: operators without a rule that take none (they read files, say) are not allowed."""
    return any("Tensor" in str(argument.type) for argument in op._schema.arguments)


def _encode_spec(spec: pytree.TreeSpec) -> Any:
    if spec.is_leaf():
        return "tensor"
    children = [_encode_spec(c) for c in spec.children()]
    if spec.type is tuple:
        return {"tuple": children}
    if spec.type is list:
        return {"list": children}
    keys = spec.context
    if isinstance(keys, list | tuple) and len(keys) == len(children) and all(isinstance(k, str) for k in keys):
        return {"dict": dict(zip(keys, children, strict=True))}
    raise InputError(f"a structure of the type {spec.type} cannot be saved")


def _decode_spec(value: Any) -> pytree.TreeSpec:
    return pytree.tree_flatten(_dummy(value))[1]


def _dummy(value: Any) -> Any:
    if value == "tensor":
        return 0
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {k: _dummy(v) for k, v in inner.items()}
    return {"tuple": tuple, "list": list}[kind](_dummy(v) for v in inner)


def _decode_program(
    data: Mapping[str, Any], weights: Mapping[str, Tensor | FileTensor], inputs: dict[str, Tensor]
) -> Program:
    info = {
        name: Weight(
            name, tuple(weights[name].shape), weights[name].dtype, w["trainable"], tuple(w["aliases"]), w["persistent"]
        )
        for name, w in data["weights"].items()
    }
    graph = _decode_graph(data["nodes"])
    names = [n.name for n in graph.find_nodes(op="placeholder")]
    example = tuple(inputs[name] for name in names)
    dynamic = {name: {int(d): str(n) for d, n in dims.items()} for name, dims in data["dynamic"].items()}
    in_spec, out_spec = _decode_spec(data["inputs"]), _decode_spec(data["outputs"])
    draft = Program(graph, WeightStore(weights), info, in_spec, out_spec, example, dynamic, tuple(data["arguments"]))
    program = _trace(draft, names)
    program.in_spec, program.out_spec, program.arg_names = in_spec, out_spec, tuple(data["arguments"])
    program.dynamic, program.source, program.history = dynamic, data["source"], list(data["history"])
    program.caches = data.get("caches")
    program.names = {str(k): str(v) for k, v in data.get("names", {}).items()}
    program.info = {name: info[name] for name in program.info}
    _drop_added_copies(program, data)
    _restore_calls(program, data)
    return program


def _decode_graph(entries: list[Mapping[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in entries:
        kind, name = entry["op"], entry["name"]
        if kind not in ("placeholder", "get_attr", "call_function", "output"):
            raise InputError(f"unknown kind of node {kind!r}")
        target = _decode_target(entry["target"]) if kind == "call_function" else entry["target"]
        args = tuple(_decode(a, nodes) for a in entry.get("args", ()))
        kwargs = {k: _decode(v, nodes) for k, v in entry.get("kwargs", {}).items()}
        nodes[name] = graph.create_node(kind, target, args, kwargs, name=name)
    graph.lint()
    return graph


def _trace(draft: Program, names: list[str]) -> Program:
    """The program with all shapes derived anew."""
    module = draft.flat_module(placeholders=True)
    shapes = tuple(draft.dynamic.get(name) for name in names)  # by position: the exporter may rename an argument
    try:
        exported = export_strategies(module, draft.example_inputs, {}, shapes)
    except CaptureError as error:
        raise InputError(f"its graph does not run: {error.what}", at=error.at) from error
    canonical = {alias: w.name for w in draft.info.values() for alias in (w.name, *w.aliases)}
    return capture_exported(exported, canonical)
