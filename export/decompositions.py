"""Decompositions before the translation to ONNX, only where the translation needs any.

The exporter traces a program twice more to decompose operators that it cannot translate, which takes half of the time
of an export. What fxslim writes seldom has one.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any

import torch
from torch._ops import OperatorBase
from torch.export import ExportedProgram, default_decompositions

__all__ = ["VIEWS", "decomposed_where_needed"]

VIEWS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Composite operators that are translated as what they would be decomposed to."""

with suppress(ImportError):  # no public name: without it every reshape is taken apart, which takes time
    from onnxscript.function_libs.torch_lib.ops.core import aten_view

    # A decomposition makes a view of a reshape, whose translation also knows sizes of zero; that of a reshape does not.
    VIEWS[torch.ops.aten.reshape.default] = aten_view

_PRESERVED = default_decompositions()  # holds every composite operator that can be left whole


def decomposed_where_needed(exported: ExportedProgram) -> ExportedProgram:
    """`exported` as a program that gives itself where it is asked for decompositions that would change nothing."""
    return _WhereNeeded(
        exported.graph_module, exported.graph, exported.graph_signature, exported.state_dict,
        exported.range_constraints, exported.module_call_graph, exported.example_inputs, exported.constants,
        verifiers=exported.verifiers,
    )  # fmt: skip


class _WhereNeeded(ExportedProgram):
    def run_decompositions(
        self,
        decomp_table: dict[OperatorBase, Callable[..., Any]] | None = None,
        decompose_custom_triton_ops: bool = False,
    ) -> ExportedProgram:
        """Itself where no call is in the table or has to be taken apart all the same."""
        calls = (node.target for node in self.graph.nodes if node.op == "call_function")
        if decomp_table is None or any(_has_to_be_taken_apart(target, decomp_table) for target in calls):
            found: ExportedProgram = super().run_decompositions(decomp_table, decompose_custom_triton_ops)
            return found
        return self


def _has_to_be_taken_apart(target: Any, table: Container[Any]) -> bool:
    """Whether a decomposition would change a call of `target`: it is in the table, writes to what it reads, has graphs
    of its own, or is a composite operator that no decomposition leaves whole: the exporter may have a translation of
    it, but one that is never used otherwise."""
    if target in table or isinstance(target, torch._ops.HigherOrderOperator):
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False  # arithmetic on sizes
    composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return target._schema.is_mutable or (composite and target not in _PRESERVED and target not in VIEWS)
