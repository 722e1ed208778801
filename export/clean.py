"""Removes from an ONNX model what only the machine that made it needs to know."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, MutableMapping
from typing import Any

import onnx_ir as ir

from fxslim.export.weights import PERMUTATION
from fxslim.graph.errors import ExportError, InputError

__all__ = ["check_dim_names", "clean", "dim_name_is_safe", "name_dims", "refuse_dim_names"]

# Viewers group nodes by these two; everything else that the exporter attaches is its own debugging aid and holds
# source lines with absolute paths (up to half of a small file).
_KEPT = ("namespace", "pkg.torch.onnx.name_scopes", PERMUTATION)
_PATH = re.compile(r"""(?:^|[\s"'(=,])(?:/|~/|[A-Za-z]:[\\/])|\\|\.py\b""")
_TERM = r"(?:(?:\d+\*)?[A-Za-z_]\w*|\d+)"  # rows, 2*rows, 1
_DIM_NAME = re.compile(rf"(?=.*[A-Za-z_]){_TERM}(?: [+\-*] {_TERM})*", re.ASCII)


def clean(model: ir.Model) -> None:
    """Strips doc strings, stack traces and all metadata that holds a path from everything in the model."""
    model.doc_string = None
    _strip(model.metadata_props)
    for function in model.functions.values():
        function.doc_string = None
        _strip(function.metadata_props)
    for graph in model.graphs():
        graph.doc_string = None
        _strip(graph.metadata_props)
        for value in _values(graph):
            value.doc_string = None
            _strip(value.metadata_props)
        for node in graph:
            node.doc_string = None
            _strip(node.metadata_props)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _strip(props: MutableMapping[str, str]) -> None:
    for key in list(props):
        if key not in _KEPT or _PATH.search(props[key]):
            del props[key]


def dim_name_is_safe(name: str) -> bool:
    """Whether `name` is a name, or a sum, difference or product of names and numbers: safe for a loader to read."""
    return _DIM_NAME.fullmatch(name) is not None


def name_dims(model: ir.Model) -> None:
    """Gives every size that is another expression (a maximum, a quotient, ...) one name of its own: `size_0`, ...

    Equal expressions share a name. The names of the inputs' dimensions are the user's and stay as they are.
    """
    taken = {str(d.value) for value in _all_values(model) for d in value.shape or () if not isinstance(d, int)}
    fresh = (name for i in itertools.count() if not any((name := f"size_{i}") in text for text in taken))
    given: dict[str, str] = {}
    inputs = set(model.graph.inputs)
    for value in _all_values(model):
        if value.shape is None or value in inputs:
            continue
        dims = [d if isinstance(d, int) else d.value for d in value.shape]
        odd = [d for d in dims if isinstance(d, str) and not dim_name_is_safe(d)]
        given |= {expression: next(fresh) for expression in odd if expression not in given}
        if odd:
            value.shape = ir.Shape([given.get(d, d) if isinstance(d, str) else d for d in dims])


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from _values(graph)


def check_dim_names(model: ir.Model) -> None:
    """Raises ExportError for an input or output dimension whose name a loader could misread (some evaluate names)."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        for dim in value.shape or ():
            name = None if isinstance(dim, int) else dim.value
            if name is not None and not dim_name_is_safe(str(name)):
                raise ExportError(
                    f"the dimension name {name!r} of {value.name!r} is not a name, or a sum or product of names",
                    remedy="name the dynamic dimensions with letters, digits and underscores",
                )


def refuse_dim_names(session: Any) -> None:
    """Returns if every dimension of an `onnxruntime.InferenceSession` has a name that a loader may read.

    Raises:
        InputError: one has another: optimum evaluates the names of outputs' dimensions as Python.
    """
    for value in (*session.get_inputs(), *session.get_outputs()):
        for name in value.shape or ():
            if isinstance(name, str) and not dim_name_is_safe(name):
                raise InputError(
                    f"a dimension of {value.name!r} is called {name[:80]!r}, which is no name and no sum of names",
                    at=str(getattr(session, "_model_path", "") or "the ONNX file"),
                    rule="loaders evaluate the names of dimensions, so that a name may run any code",
                    remedy="do not load the file with optimum; one that fxslim exports has plain names",
                )
