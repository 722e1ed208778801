"""Compares an ONNX file with the program it claims to be: names, types, dimensions, weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
import torch.utils._pytree as pytree
from torch import fx

from fxslim.export.clean import dim_name_is_safe
from fxslim.export.model_file import Constant, Interface, guarded, read_constants, read_interface
from fxslim.export.narrow import NARROW, torch_dtype
from fxslim.export.weights import PERMUTATION, same_data, sizes
from fxslim.graph.axes.analysis import find_caches
from fxslim.graph.errors import CheckError
from fxslim.graph.program import Program

__all__ = [
    "cache_names",
    "constant_outputs",
    "expected_interface",
    "interface_failures",
    "tensor_outputs",
    "weight_failures",
]

_DTYPES = {
    torch.float32: "FLOAT", torch.float64: "DOUBLE", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16",
    torch.int64: "INT64", torch.int32: "INT32", torch.int16: "INT16", torch.int8: "INT8", torch.uint8: "UINT8",
    torch.bool: "BOOL",
}  # fmt: skip
_AT_ONCE = 1 << 20  # numbers of a weight that are looked at together
_MOST = 5  # failures of one kind that are worth a line each


def cache_names(program: Program) -> frozenset[str]:
    """What the inputs and outputs that hold caches are called in an ONNX file."""
    caches = find_caches(program)
    return frozenset({*(program.names.get(name, name) for name in caches), *caches.values()})


def expected_interface(program: Program, dtype: str = "float32") -> tuple[tuple[Interface, ...], tuple[Interface, ...]]:
    """The inputs and outputs that an export of `program` in `dtype` must have; None stands for any dynamic dimension.

    A narrow type is that of the caches only; all else keeps the type that it has in the program.
    """
    caches = frozenset() if dtype == "float32" else cache_names(program)

    def typed(name: str, tensor: torch.Tensor) -> str:
        return dtype.upper() if name in caches and tensor.dtype is torch.float32 else _dtype(tensor)

    inputs = tuple(
        Interface(outside, typed(outside, tensor), _input_dims(program, name, tensor))
        for name, outside, tensor in zip(
            program.input_names, program.outside_names, program.example_inputs, strict=True
        )
    )
    outputs = tuple(
        Interface(name, typed(name, value), tuple(d if isinstance(d, int) else None for d in value.shape))
        for name, value in tensor_outputs(program).items()
    )
    return inputs, outputs


def tensor_outputs(program: Program) -> dict[str, torch.Tensor]:
    """The outputs that an ONNX file of `program` returns: example values (fake tensors) by name, in order."""
    named = zip(program.output_names, program.output_nodes, strict=True)
    values = ((name, node.meta.get("val")) for name, node in named if isinstance(node, fx.Node))
    return {name: value for name, value in values if isinstance(value, torch.Tensor)}


def constant_outputs(program: Program) -> dict[str, Constant]:
    """The outputs that are the same for every input: a number, text or nothing. The file holds them as metadata.

    Raises:
        CheckError: an output is neither a tensor nor a constant: a size, which depends on the inputs.
    """
    tensors = tensor_outputs(program)
    named = zip(program.output_names, program.output_nodes, strict=True)
    constants = {name: value for name, value in named if name not in tensors}
    for name, value in constants.items():
        if not isinstance(value, int | float | str | None):
            raise CheckError(
                f"the output {name!r} of the program is {value!r}, neither a tensor nor a constant: no place in ONNX",
                remedy="wrap the model so that it returns this as a tensor, or not at all",
            )
    return constants


def _dtype(tensor: torch.Tensor) -> str:
    return _DTYPES.get(tensor.dtype, str(tensor.dtype))


def _input_dims(program: Program, name: str, tensor: torch.Tensor) -> tuple[int | str | None, ...]:
    dynamic = program.dynamic.get(name, {})
    return tuple(dynamic.get(i, size) for i, size in enumerate(tensor.shape))


def interface_failures(program: Program, model: ir.Model, dtype: str = "float32") -> list[str]:
    """One sentence for each way in which the file's inputs and outputs differ from those of `program` in `dtype`."""
    failures: list[str] = []
    for kind, found, expected in zip(
        ("input", "output"), read_interface(model), expected_interface(program, dtype), strict=True
    ):
        names, wanted = [i.name for i in found], [i.name for i in expected]
        if names != wanted:
            failures.append(f"the {kind}s of the file are {', '.join(names)}, those of the program {', '.join(wanted)}")
            continue
        for have, want in zip(found, expected, strict=True):
            failures.extend(_differences(kind, have, want))
    return [*failures, *_constant_failures(read_constants(model), constant_outputs(program))]


def _constant_failures(found: dict[str, Constant], expected: dict[str, Constant]) -> Iterator[str]:
    for name in [*expected, *(n for n in found if n not in expected)]:
        have, want = (repr(values[name]) if name in values else "none" for values in (found, expected))
        if have != want:  # as text: 0 is not 0.0, and nan is nan
            yield f"the constant output {name!r} is {have} in the file and {want} in the program"


def _differences(kind: str, have: Interface, want: Interface) -> Iterator[str]:
    what = f"the {kind} {have.name!r} of the file"
    if have.dtype != want.dtype:
        yield f"{what} has the type {have.dtype}, the program {want.dtype}"
    if len(have.dims) != len(want.dims):
        yield f"{what} has {len(have.dims)} dimensions, the program {len(want.dims)}"
        return
    for i, (a, b) in enumerate(zip(have.dims, want.dims, strict=True)):
        if isinstance(a, str) and not dim_name_is_safe(a):
            yield f"{what} has the dimension name {a!r}, which is not a plain name or a sum or product of names"
        elif isinstance(b, int) != isinstance(a, int) or (b is not None and a != b):
            yield f"{what} has {_text(a)} as dimension {i}, the program {_text(b)}"


def _text(dim: int | str | None) -> str:
    return "a dynamic size" if dim is None else str(dim)


def weight_failures(program: Program, model: ir.Model, path: Path, dtype: str = "float32") -> list[str]:
    """One sentence for each weight in the file that is not the program's or not finite (the first few of each).

    A file in a narrow `dtype` may hold a weight rounded to that type."""
    different: list[str] = []
    bad: list[str] = []
    if dtype != "float32" and not _holds(model, NARROW[dtype]):
        bad.append(f"the file says that it is in {dtype}, and holds no weight of that type")
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                bad.append(f"the initializer {name!r} of the file has no data")
                continue
            order = value.metadata_props.get(PERMUTATION)
            if order is not None:
                sentence = guarded(path, lambda n=name, t=tensor, o=order: _weight_failure(program, n, t, o, dtype))  # type: ignore[misc]
                different.extend([sentence] if sentence else [])
            elif (sentence := guarded(path, lambda n=name, t=tensor: _not_finite(program, n, t))) is not None:  # type: ignore[misc]
                bad.append(sentence)
    return [*_first(different), *_first(bad)]


def _holds(model: ir.Model, dtype: ir.DataType) -> bool:
    values = (value.const_value for value in model.graph.initializers.values())
    return any(tensor is not None and tensor.dtype == dtype for tensor in values)


def _weight_failure(
    program: Program, name: str, tensor: ir.TensorProtocol, order: str, dtype: str = "float32"
) -> str | None:
    if name not in program.weights:
        return f"the file holds the weight {name!r}, which the program does not have"
    weight = program.weights[name]
    if same_data(tensor, _as_stored(tensor, weight, dtype), order):
        return _not_finite(program, name, tensor)
    shapes = sizes(tensor), [weight.shape[int(i)] for i in order.split(",") if i]
    if shapes[0] != shapes[1]:
        return f"the weight {name!r} has the shape {shapes[0]} in the file and {shapes[1]} in the program"
    return f"the weight {name!r} of the file holds other values than that of the program"


def _as_stored(tensor: ir.TensorProtocol, weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """A float32 weight, rounded where a file in a narrow type holds it in that type."""
    if weight.dtype is not torch.float32 or tensor.dtype != NARROW.get(dtype):
        return weight
    return weight.to(torch_dtype(dtype))


def _not_finite(program: Program, name: str, tensor: ir.TensorProtocol) -> str | None:
    if not tensor.dtype.is_floating_point():
        return None
    nan, plus, minus = _unbounded(tensor)
    if nan:
        return f"the initializer {name!r} of the file holds NaN"
    # A mask is minus infinity by intent; a parameter never is.
    if name in program.info and program.info[name].trainable and (plus or minus):
        return f"the weight {name!r} of the file holds infinities"
    if plus and not (tensor.size == 1 and _names_infinity(program)):
        return f"the initializer {name!r} of the file holds plus infinity"
    return None


def _unbounded(tensor: ir.TensorProtocol) -> tuple[bool, bool, bool]:
    """Whether there is NaN, plus infinity and minus infinity among the values, of which few are copied at a time."""
    flat, found = tensor.numpy().reshape(-1), np.zeros(3, dtype=bool)
    for start in range(0, flat.size, _AT_ONCE):
        part = np.asarray(flat[start : start + _AT_ONCE], dtype=np.float64)
        found |= [np.isnan(part).any(), np.isposinf(part).any(), np.isneginf(part).any()]
    return bool(found[0]), bool(found[1]), bool(found[2])


def _names_infinity(program: Program) -> bool:
    """Whether a call of the program itself is given infinity as a number: a bound that bounds nothing."""
    return any(math.inf in pytree.tree_leaves((node.args, node.kwargs)) for node in program.graph.nodes)


def _first(sentences: Sequence[str]) -> list[str]:
    more = len(sentences) - _MOST
    return [*sentences[:_MOST], *([f"... and {more} more of this kind"] if more > 0 else [])]
