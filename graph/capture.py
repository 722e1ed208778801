"""Capture: any `nn.Module` that `torch.export` understands becomes a Program."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from fxslim.graph.constants import fold_items
from fxslim.graph.dims import dim_named
from fxslim.graph.errors import CaptureError
from fxslim.graph.normalize import normalize
from fxslim.graph.placeholder import entry_of, has_placeholders
from fxslim.graph.program import DynamicShapes, Program, Weight, WeightStore
from fxslim.graph.repeat import Repeats, find_repeats, grown, run_alike, shortened
from fxslim.graph.stores import FileTensor

__all__ = ["canonical_names", "capture", "capture_exported", "export_strategies"]

_LIFTED = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


def capture(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any | None = None,
    caches: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
) -> Program:
    """The Program of `model.forward(*args, **kwargs)` in evaluation mode.

    `caches` names cache inputs and the outputs that replace them, whose static sizes may shrink together, in any basis:
    they are empty at first, or filled by what the program itself returned. Without it, inputs whose names say so (past,
    cache, state, memory) and that come back longer are taken for caches; those keep their basis.
    `dynamic_shapes` follows `torch.export`; a plain string in place of a `Dim` names a dynamic dimension, equal strings
    being one dimension, `a + b` the sum of two. `names` says what inputs are called outside, in an ONNX file, where
    that is no Python name (`past_key_values.0.key`). The model's weights are shared, not copied, and where they are
    placeholders stay on disk; its training flags are left as they were.

    Raises:
        CaptureError: the exporter cannot capture the model; the message carries its reason and the model's line.
    """
    given, named = pytree.tree_map_only(torch.Tensor, _plain, (tuple(args), dict(kwargs or {})))
    with _evaluation_mode(model):
        repeats = find_repeats(model) if has_placeholders(model) and caches is None else None
        program = None if repeats is None else _from_a_few(model, repeats, given, named, dynamic_shapes)
        program = program or _captured(model, given, named, dynamic_shapes)
    program.caches = None if caches is None else _checked_caches(program, caches)
    program.names = _checked_names(program, names or {})
    return program


def _captured(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Program:
    exported = export_strategies(model, args, kwargs, dynamic_shapes)
    shapes = _by_position(model, args, dynamic_shapes)
    return capture_exported(exported, canonical_names(model), _names_of_dims(exported, args, kwargs, shapes))


def _from_a_few(
    model: nn.Module, repeats: Repeats, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> Program | None:
    """The Program of a deep model from the capture of a few of its layers; None where it is not sure to be the same."""
    if not run_alike(model, repeats, args, kwargs):
        return None
    try:
        with shortened(repeats):
            program = _captured(model, args, kwargs, dynamic_shapes)
    except CaptureError:  # whatever it is, the whole model has the better message
        return None
    return program if grown(program, model, repeats, canonical_names(model)) else None


def _by_position(model: nn.Module, args: tuple[Any, ...], dynamic_shapes: Any) -> Any:
    """The specification with positional arguments first, in the order of `forward`."""
    if not isinstance(dynamic_shapes, dict) or not args:
        return dynamic_shapes
    names = list(inspect.signature(model.forward).parameters)[: len(args)]
    return {name: dynamic_shapes.get(name) for name in (*names, *(k for k in dynamic_shapes if k not in names))}


def _checked_caches(program: Program, caches: Mapping[str, str]) -> dict[str, str]:
    for name, output in caches.items():
        if name not in program.input_names or output not in program.output_names:
            raise CaptureError(
                f"caches: {name!r} -> {output!r} are not an input and an output",
                remedy=f"inputs: {', '.join(program.input_names)}; outputs: {', '.join(program.output_names)}",
            )
    return dict(caches)


def _checked_names(program: Program, names: Mapping[str, str]) -> dict[str, str]:
    if unknown := sorted(set(names) - set(program.input_names)):
        raise CaptureError(
            f"names: there is no input {unknown[0]!r}", remedy=f"inputs: {', '.join(program.input_names)}"
        )
    outside = [names.get(n, n) for n in program.input_names]
    if twice := sorted({n for n in outside if outside.count(n) > 1}):
        raise CaptureError(f"names: two inputs are called {twice[0]!r}")
    return dict(names)


def capture_exported(
    exported: ExportedProgram,
    canonical: Mapping[str, str] | None = None,
    dim_names: Mapping[str, str] | None = None,
    source: str = "module",
) -> Program:
    """The Program of an already exported model.

    `canonical` maps every weight name to the name its tensor goes by (tied weights share one); `dim_names` maps symbols
    of the exporter (`s0`) to names.
    """
    try:
        with _quiet():
            exported = exported.run_decompositions({})
    except Exception as error:
        raise CaptureError(f"the exported program cannot be made functional: {_reason(error)}") from error
    _refuse_mutations(exported)
    canonical = dict(canonical or {})
    graph, weights, info = _lift_weights(exported, canonical)
    example = _example_inputs(exported)
    program = Program(
        graph, WeightStore(weights), info, exported.call_spec.in_spec, exported.call_spec.out_spec, example,
        {}, _argument_names(exported.call_spec.in_spec), source,
    )  # fmt: skip
    program.dynamic = _dynamic_dims(program, dict(dim_names or {}))
    normalize(program)
    specs = exported.graph_signature.input_specs
    fold_items(program, {canonical.get(t := str(s.target), t) for s in specs if s.kind is InputKind.CONSTANT_TENSOR})
    for name in set(program.info) - set(program.weight_nodes()):  # what was normalised away takes its weights along
        del program.weights[name]
        del program.info[name]
    return program


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy: the exporter's guards also describe the base of a view."""
    return tensor.detach().contiguous().clone()


def canonical_names(model: nn.Module) -> dict[str, str]:
    """For every parameter and buffer name of `model`, the first name of the same tensor object."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names[name] = first.setdefault(id(tensor), name)
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about its own deprecated parts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.|copyreg")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message="Using padding='same'")
        warnings.filterwarnings("ignore", message="The tensor attributes .* were assigned during export")  # LSTM, GRU
        logger, level = logging.getLogger("torch"), logging.getLogger("torch").level
        logger.setLevel(logging.CRITICAL + 1)  # what it would print is in the error that is raised
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def export_strategies(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """Exports with named dimensions first; where the exporter finds them too strict, with anonymous ones."""
    attempts: list[Callable[[str], Any]] = [dim_named, lambda name: Dim.DYNAMIC]
    problem: Exception | None = None
    for make in attempts if _has_names(dynamic_shapes) else attempts[:1]:
        dims: dict[str, Any] = {}
        try:
            spec = _map_names(dynamic_shapes, lambda name, d=dims, m=make: d.setdefault(name, m(name)))  # type: ignore[misc]
            with torch.no_grad(), _quiet():
                return torch.export.export(model, args, kwargs, dynamic_shapes=spec, strict=False)
        except Exception as error:
            problem = error
    assert problem is not None
    raise CaptureError(
        f"torch.export cannot capture {type(model).__name__}: {_reason(problem)}",
        at=_deepest_model_line(problem),
        remedy="make the model exportable, or export it yourself and hand over the ExportedProgram (or a .pt2 file)",
    ) from problem


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:600]}"


def _deepest_model_line(error: BaseException) -> str | None:
    """The last frame of the traceback that lies in neither torch nor fxslim: the model's own line."""
    found: str | None = None
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not any(part in code.co_filename for part in ("/torch/", "fxslim", "/graph/capture.py", "<frozen")):
            found = f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return found


def _refuse_mutations(exported: ExportedProgram) -> None:
    for spec in exported.graph_signature.output_specs:
        if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION, OutputKind.PARAMETER_MUTATION):
            raise CaptureError(
                f"the model writes to {spec.target!r} in its forward pass",
                remedy="return the new state as an output and take the old one as an input",
            )


def _lift_weights(
    exported: ExportedProgram, canonical: Mapping[str, str]
) -> tuple[fx.Graph, dict[str, torch.Tensor | FileTensor], dict[str, Weight]]:
    """A flat graph in which weights are `get_attr` nodes, one for each tensor."""
    graph = fx.Graph()
    specs = {s.arg.name: s for s in exported.graph_signature.input_specs}
    tensors, info, nodes = _weights(exported, canonical), {}, {}
    env: dict[fx.Node, fx.Node] = {}
    for old in exported.graph.nodes:
        spec = specs.get(old.name) if old.op == "placeholder" else None
        if spec is not None and spec.kind in _LIFTED:
            if not old.users:
                continue
            name = canonical.get(str(spec.target), str(spec.target))
            if name not in nodes:
                nodes[name] = graph.get_attr(name)
                nodes[name].meta = dict(old.meta)
                info[name] = _describe(name, tensors[name], spec, canonical)
            env[old] = nodes[name]
        elif spec is not None and spec.kind is not InputKind.USER_INPUT:
            raise CaptureError(f"inputs of kind {spec.kind.name} are not supported (input {old.name!r})")
        else:
            env[old] = graph.node_copy(old, lambda n: env[n])
            env[old].meta = dict(old.meta)
    _keep_user_outputs(graph, exported)
    return graph, {name: tensors[name] for name in info}, info


def _keep_user_outputs(graph: fx.Graph, exported: ExportedProgram) -> None:
    (output,) = graph.find_nodes(op="output")
    flat = output.args[0]
    kept = [
        v for v, s in zip(flat, exported.graph_signature.output_specs, strict=True) if s.kind == OutputKind.USER_OUTPUT
    ]
    output.args = (tuple(kept),)


def _weights(exported: ExportedProgram, canonical: Mapping[str, str]) -> dict[str, torch.Tensor | FileTensor]:
    everything = {**exported.constants, **exported.state_dict}
    return {canonical.get(k, k): entry_of(v) for k, v in everything.items() if isinstance(v, torch.Tensor)}


def _describe(name: str, tensor: torch.Tensor | FileTensor, spec: Any, canonical: Mapping[str, str]) -> Weight:
    aliases = tuple(k for k, v in canonical.items() if v == name and k != name)
    persistent = spec.persistent is not False
    trainable = spec.kind is InputKind.PARAMETER
    return Weight(name, tuple(tensor.shape), tensor.dtype, trainable, aliases, persistent)


def _example_inputs(exported: ExportedProgram) -> tuple[torch.Tensor, ...]:
    if exported.example_inputs is None:
        raise CaptureError("the exported program carries no example inputs", remedy="export it with example inputs")
    flat = pytree.tree_leaves(exported.example_inputs)
    for value in flat:
        if not isinstance(value, torch.Tensor):
            raise CaptureError(
                f"an input of the type {type(value).__name__} cannot be an input of the program: only tensors can",
                remedy="bind the other values before capture, for example in a small wrapper module",
            )
    return tuple(flat)


def _argument_names(in_spec: pytree.TreeSpec) -> tuple[str, ...]:
    args, kwargs = in_spec.child(0), in_spec.child(1)
    return (*(f"arg_{i}" for i in range(args.num_children)), *kwargs.context)


def _has_names(dynamic_shapes: Any) -> bool:
    found: list[str] = []
    _map_names(dynamic_shapes, lambda name: found.append(name))
    return bool(found)


def _map_names(spec: Any, make: Callable[[str], Any]) -> Any:
    if isinstance(spec, str):
        return make(spec)
    if isinstance(spec, dict):
        return {k: _map_names(v, make) for k, v in spec.items()}
    if isinstance(spec, list | tuple):
        return type(spec)(_map_names(v, make) for v in spec)
    return spec


def _names_of_dims(
    exported: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> dict[str, str]:
    """Symbol of the exporter -> the name the user gave that dimension."""
    if dynamic_shapes is None:
        return {}
    user_inputs = set(exported.graph_signature.user_inputs)
    nodes = [n for n in exported.graph.nodes if n.op == "placeholder" and n.name in user_inputs]
    names: dict[str, str] = {}
    for node, spec in zip(nodes, _flat_specs(dynamic_shapes, args, kwargs), strict=False):
        for dim, name in _dims_of(spec).items():
            shape = node.meta["val"].shape
            if not -len(shape) <= dim < len(shape):
                raise CaptureError(
                    f"dynamic_shapes: the input {node.name!r} has {len(shape)} dimensions, none is number {dim}"
                )
            size = shape[dim]
            if isinstance(size, torch.SymInt) and name:
                names.setdefault(str(size.node.expr), name)
    return names


def _flat_specs(dynamic_shapes: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """One specification for each flat input, in order (None where an input is static)."""
    if isinstance(dynamic_shapes, dict):
        positional = [v for k, v in dynamic_shapes.items() if k not in kwargs][: len(args)]
        given = [*positional, *(dynamic_shapes.get(k) for k in kwargs)]
    else:
        given = list(dynamic_shapes)
    flat: list[Any] = []
    values = [*args, *kwargs.values()]
    for value, spec in zip(values, given, strict=False):
        flat.extend(_leaves_of_spec(value, spec))
    return flat


def _leaves_of_spec(value: Any, spec: Any) -> list[Any]:
    """One specification for each tensor of a nested argument, which the specification is nested like."""
    if isinstance(value, torch.Tensor):
        return [spec]
    if spec is None:
        return [None] * len(pytree.tree_leaves(value))
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves_of_spec(inner, spec.get(key))]
    if isinstance(value, list | tuple):
        return [leaf for inner, own in zip(value, spec, strict=False) for leaf in _leaves_of_spec(inner, own)]
    return [spec]


def _dims_of(spec: Any) -> dict[int, str]:
    pairs = spec.items() if isinstance(spec, dict) else enumerate(spec or ())
    return {int(d): (v if isinstance(v, str) else getattr(v, "__name__", "")) for d, v in pairs if v is not None}


def _dynamic_dims(program: Program, names: dict[str, str]) -> DynamicShapes:
    dynamic: DynamicShapes = {}
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        for dim, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                symbol = str(size.node.expr)
                dynamic.setdefault(node.name, {})[dim] = names.get(symbol, f"{node.name}_dim_{dim}")
                names.setdefault(symbol, dynamic[node.name][dim])
    return dynamic
