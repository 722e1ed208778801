"""Export: a Program becomes an ONNX file that carries its names, and nothing of the machine that wrote it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
import torch
from torch.export import Dim, ExportedProgram

from fxslim.export.clean import check_dim_names, clean, name_dims
from fxslim.export.decompositions import VIEWS, decomposed_where_needed
from fxslim.export.files import data_name, replace_model
from fxslim.export.interface import cache_names, constant_outputs, tensor_outputs
from fxslim.export.model_file import CONSTANTS, OnnxFile, describe
from fxslim.export.narrow import OnnxDtype, narrow, torch_dtype
from fxslim.export.rewrites import as_onnx_can_say_it
from fxslim.export.simplify import simplify
from fxslim.export.stored import read_when_written
from fxslim.export.translations import TRANSLATIONS
from fxslim.export.weights import fold_transposes, mark_weights
from fxslim.graph.dims import dim_named
from fxslim.graph.errors import CheckError, ExportError, InputError
from fxslim.graph.program import Program

__all__ = ["DEFAULT_OPSET", "OPSETS", "ExternalData", "export_onnx"]

ExternalData = Literal["auto", "always", "never"]

OPSETS = range(18, 25)
"""The exporter's operators are written for 18, and what it makes at 24 is complete, and runs."""

DEFAULT_OPSET = 20
"""The lowest one in which GELU is one operator, so runtimes from 2024 on can serve it. 23 adds Attention as one
operator, which is shorter, but which older runtimes and several accelerators refuse."""

_PROTOBUF_LIMIT = 2**31 - 2**26  # a protobuf ends at 2 GiB; the rest is room for the graph itself
_STREAMED_LIMIT = 2**28  # a protobuf is built in memory, where weights on disk are not wanted
_NOISY = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def export_onnx(
    program: Program,
    path: str | Path,
    *,
    opset: int | None = None,
    external_data: ExternalData = "auto",
    dtype: OnnxDtype = "float32",
) -> OnnxFile:
    """What was written to `path`: an ONNX model with the program's names of inputs, outputs, weights and dimensions.

    Outputs that are constants (a number, text, nothing) are not returned by the file; its metadata `fxslim.constants`
    holds them as a JSON object by name.
    Weights go to `<name>.onnx_data` beside it where they exceed 2 GB, or always. An existing model is replaced.
    Weights that the program has on disk are read one by one as they are written, to `<name>.onnx_data` where they
    exceed 256 MiB.
    With `dtype` float16 or bfloat16, float32 weights and arithmetic are written in that type, save what needs float32
    (docs/runtimes.md); inputs and outputs stay float32, but for caches.

    Raises:
        ExportError: the program cannot be expressed in ONNX at this opset, or the result is not what was asked for.
        InputError: the opset or the path cannot be used.
    """
    path, opset = Path(path), DEFAULT_OPSET if opset is None else opset
    if opset not in OPSETS:
        raise InputError(f"opset {opset} is not supported", remedy=f"choose one from {OPSETS[0]} to {OPSETS[-1]}")
    if external_data not in ("auto", "always", "never"):
        raise InputError(f"external_data is {external_data!r}", remedy="choose auto, always or never")
    _require_tensors(program)
    _require_width(program, dtype)
    model = _build(program, opset)
    _require_opset(model, opset)
    _require_names(program, model)
    if dtype != "float32":
        narrow(model, dtype, {name for name, info in program.info.items() if info.trainable}, cache_names(program))
    check_dim_names(model)
    separate = _wants_external(model, external_data, _STREAMED_LIMIT if program.weights.on_disk else _PROTOBUF_LIMIT)
    replace_model(path, lambda staged: _write(model, staged, separate))
    return describe(path)


def _require_tensors(program: Program) -> None:
    try:
        constants = constant_outputs(program)
    except CheckError as error:
        raise ExportError(error.what, remedy=error.remedy) from error
    if not tensor_outputs(program):
        listed = ", ".join(f"{name!r} is {value!r}" for name, value in constants.items()) or "there are none"
        raise ExportError(f"no output is a tensor: {listed}", remedy="wrap the model so that it returns a tensor")


def _require_width(program: Program, dtype: str) -> None:
    held = {weight.dtype for weight in program.info.values() if weight.dtype.is_floating_point}
    if torch_dtype(dtype) is not torch.float32 and held and torch.float32 not in held:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in held))
        raise InputError(
            f"the program is in {names}, so it cannot be written in {dtype}",
            remedy="load the model in float32: --dtype float32; a program in a narrow type is exported as it is",
        )


def _build(program: Program, opset: int) -> ir.Model:
    with _quiet():
        exported = _torch_export(program, opset)
        model = _torch_onnx_export(program, exported, opset)
    mark_weights(model, program.weights)
    clean(model)
    name_dims(model)
    if constants := constant_outputs(program):
        model.metadata_props[CONSTANTS] = json.dumps(constants)
    return model


def _torch_export(program: Program, opset: int) -> ExportedProgram:
    """With named dimensions first; where the exporter finds them too strict (a maximum, a multiple), anonymous ones."""
    module = as_onnx_can_say_it(program.flat_module(placeholders=True), opset).eval()
    makers: list[Callable[[str], Any]] = [dim_named, lambda name: Dim.DYNAMIC]
    problem: Exception | None = None
    for make in makers if program.dynamic else makers[:1]:
        try:
            with torch.no_grad():
                return torch.export.export(
                    module, program.example_inputs, dynamic_shapes=_dynamic_shapes(program, make), strict=False
                )
        except Exception as error:  # torch.export raises whatever the traced code raises
            problem = error
    raise ExportError(
        f"torch.export cannot trace the program again: {_reason(problem)}",
        remedy="if a pass changed the program, this is a defect of the pass: dump the graph after each pass to find it",
    ) from problem


def _dynamic_shapes(program: Program, make: Callable[[str], Any]) -> tuple[dict[int, Any] | None, ...]:
    """For each flat input its dynamic dimensions; equal names share one object."""
    made: dict[str, Any] = {}

    def of(name: str) -> dict[int, Any] | None:
        dims = program.dynamic.get(name)
        return {d: made[n] if n in made else made.setdefault(n, make(n)) for d, n in dims.items()} if dims else None

    return tuple(of(name) for name in program.input_names)


def _torch_onnx_export(program: Program, exported: ExportedProgram, opset: int) -> ir.Model:
    try:
        result = torch.onnx.export(
            decomposed_where_needed(exported),
            dynamo=True,
            input_names=list(program.outside_names),
            output_names=list(tensor_outputs(program)),
            opset_version=opset,
            dynamic_shapes=_dynamic_shapes(program, lambda name: name),
            custom_translation_table={**VIEWS, **TRANSLATIONS},
            optimize=False,
            verbose=False,
        )
        assert result is not None
        read_when_written(result.model)
        fold_transposes(result.model)
        # Not result.optimize(): at opset 23 it also fuses rotary embeddings, into a form that is wrong for batches of
        # more than one row where the table of angles is shared by the rows.
        simplify(result.model)
        return result.model
    except Exception as error:  # the exporter wraps anything
        raise ExportError(
            f"the program cannot be expressed in ONNX at opset {opset}: {_reason(error)}",
            remedy="try another opset, or replace the operator that is named here",
        ) from error


def _reason(error: BaseException | None) -> str:
    """The first lines of the innermost cause: the exporter's own message is a page of advice."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])[:500]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of dimension names that coincide on purpose, and of packages that are not needed here."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _require_opset(model: ir.Model, opset: int) -> None:
    got = model.opset_imports.get("")
    if got != opset:
        raise ExportError(
            f"opset {opset} was asked for, the exporter produced {got}", remedy=f"ask for opset {got}, or another one"
        )
    foreign = sorted({node.domain for graph in model.graphs() for node in graph if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ExportError(
            f"the model needs operators outside the ONNX standard: {', '.join(foreign)}",
            remedy="try another opset, in which these operators exist",
        )


def _require_names(program: Program, model: ir.Model) -> None:
    for kind, found, wanted in (
        ("inputs", model.graph.inputs, program.outside_names),
        ("outputs", model.graph.outputs, tuple(tensor_outputs(program))),
    ):
        names = [str(value.name) for value in found]
        if names != list(wanted):
            raise ExportError(f"the exporter named the {kind} {', '.join(names)} instead of {', '.join(wanted)}")


def _wants_external(model: ir.Model, external_data: ExternalData, limit: int) -> bool:
    values = (v.const_value for g in model.graphs() for v in g.initializers.values())
    size = sum(tensor.nbytes for tensor in values if tensor is not None)
    if external_data == "never" and size > _PROTOBUF_LIMIT:
        raise ExportError(
            f"the weights take {size} bytes, and a single ONNX file ends at 2 GiB",
            remedy="allow external data: external_data='auto'",
        )
    return external_data == "always" or (external_data == "auto" and size > limit)


def _write(model: ir.Model, staged: Path, separate: bool) -> None:
    ir.save(model, staged, external_data=data_name(staged) if separate else None)
    try:
        onnx.checker.check_model(str(staged.resolve()), full_check=True)
    except Exception as error:  # the checker's errors share no base with those of shape inference
        raise ExportError(f"the exporter wrote a model that the ONNX checker refuses: {_reason(error)}") from error
