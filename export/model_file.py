"""Reads ONNX files without trusting them: what cannot be read is a user's error, never a traceback of onnx."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import onnx
import onnx_ir as ir

from fxslim.export.narrow import DTYPE, NARROW
from fxslim.graph.errors import InputError

__all__ = [
    "CONSTANTS",
    "Constant",
    "Interface",
    "OnnxFile",
    "describe",
    "finite",
    "guarded",
    "load_model",
    "read_constants",
    "read_dtype",
    "read_interface",
]

CONSTANTS = "fxslim.constants"
"""Metadata of a file: the outputs of its program that are no tensors but constants, as a JSON object by name."""

Dim = int | str | None
Constant = int | float | str | None
T = TypeVar("T")


@dataclass(frozen=True)
class Interface:
    """One input or output: its name, its element type (`FLOAT`), and its dimensions (a size, a name, or None)."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class OnnxFile:
    """What is in an ONNX file. Sizes are bytes; `file_bytes` counts the external data too."""

    path: Path
    opset: int
    ir_version: int
    initializer_bytes: int
    file_bytes: int
    external: str | None  # file name of the external data, beside `path`
    inputs: tuple[Interface, ...]
    outputs: tuple[Interface, ...]
    ops: dict[str, int]  # operator -> number of nodes, subgraphs included, most frequent first
    constants: dict[str, Constant] = field(default_factory=dict)  # outputs of the program that no run needs to return
    dtype: str = "float32"  # of the arithmetic, as the exporter was asked
    float32_ops: dict[str, int] = field(default_factory=dict)  # what stayed in float32 where `dtype` is narrow

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values; the path is reduced to the file's name."""
        constants = {name: finite(value) for name, value in self.constants.items()}
        return {**asdict(self), "path": self.path.name, "constants": constants}


def guarded(path: Path, action: Callable[[], T]) -> T:
    """What `action` returns. Whatever onnx raises on a file that it cannot digest becomes an InputError."""
    try:
        return action()
    except Exception as error:  # protobuf, onnx and onnx_ir share no base class
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:300] or type(error).__name__
        raise InputError(
            f"{path} is not a readable ONNX model: {reason}",
            remedy="export it again; a copy that was cut short or edited cannot be repaired",
        ) from error


def load_model(path: Path) -> ir.Model:
    """The model in `path`, external data left on disk.

    Raises:
        InputError: there is no such file, or it is not an ONNX model.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    return guarded(path, lambda: _load(path))


def _load(path: Path) -> ir.Model:
    # The real path: onnx refuses external data behind symlinks, which is how the Hugging Face cache is laid out.
    real = path.resolve()
    onnx.checker.check_model(str(real))
    return ir.load(real)


def describe(path: Path) -> OnnxFile:
    """What is in the ONNX file `path`.

    Raises:
        InputError: there is no such file, or it is not an ONNX model.
    """
    model = load_model(path)
    return guarded(path, lambda: _describe(path, model))


def _describe(path: Path, model: ir.Model) -> OnnxFile:
    tensors = [v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None]
    locations = {Path(t.location).name for t in tensors if isinstance(t, ir.ExternalTensor)}
    if len(locations) > 1:
        raise ValueError(f"its weights are spread over {len(locations)} external files; one is supported")
    external = next(iter(locations), None)
    data_bytes = (path.resolve().parent / external).stat().st_size if external else 0
    ops = Counter(node.op_type for graph in model.graphs() for node in graph)
    inputs, outputs = read_interface(model)
    return OnnxFile(
        path, model.opset_imports[""], model.ir_version, sum(t.nbytes for t in tensors),
        path.stat().st_size + data_bytes, external, inputs, outputs, dict(ops.most_common()),
        read_constants(model), dtype := read_dtype(model), {} if dtype == "float32" else _float32_ops(model),
    )  # fmt: skip


def read_dtype(model: ir.Model) -> str:
    """The type that the file says its arithmetic is in: float32 unless it was exported in a narrow one.

    Raises:
        InputError: the metadata of that name is something else.
    """
    found = model.metadata_props.get(DTYPE, "float32")
    if found != "float32" and found not in NARROW:
        raise InputError(f"the metadata {DTYPE!r} of the file is {found[:80]!r}, no type", remedy="export it again")
    return found


def _float32_ops(model: ir.Model) -> dict[str, int]:
    """Operators that read or return float32, and how often; casts between the types are not counted."""

    def is_float(value: ir.Value | None) -> bool:
        return value is not None and value.dtype == ir.DataType.FLOAT

    found: Counter[str] = Counter()
    for graph in model.graphs():
        for node in graph:
            if node.op_type not in ("Cast", "Constant") and any(map(is_float, (*node.inputs, *node.outputs))):
                found[node.op_type] += 1
    return dict(found.most_common())


def read_interface(model: ir.Model) -> tuple[tuple[Interface, ...], tuple[Interface, ...]]:
    """The inputs and the outputs of `model`, in order."""
    return tuple(map(_interface, model.graph.inputs)), tuple(map(_interface, model.graph.outputs))


def read_constants(model: ir.Model) -> dict[str, Constant]:
    """The outputs that the file holds as metadata, by name.

    Raises:
        InputError: the metadata of that name is something else.
    """
    text = model.metadata_props.get(CONSTANTS, "{}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"the metadata {CONSTANTS!r} of the file is {text[:80]!r}, not a JSON object", remedy="export it again"
        )
    return found


def finite(value: Constant) -> Constant:
    """`value` as JSON can hold it: None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _interface(value: ir.Value) -> Interface:
    dims = tuple(d if isinstance(d, int) else (None if d.value is None else str(d.value)) for d in value.shape or ())
    return Interface(str(value.name), value.dtype.name if value.dtype is not None else "UNDEFINED", dims)
