"""Runs a program in float64: the reference that tells rounding from error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from fxslim.graph.errors import CheckError, where
from fxslim.graph.program import Program

__all__ = ["Float64Program", "run_float64"]

_NARROW = frozenset({torch.float16, torch.bfloat16, torch.float32})
# These reinterpret bits or round to a grid of their own: in float64 they would compute something else.
_DTYPE_BOUND = frozenset({torch.ops.aten.view.dtype, torch.ops.aten.nextafter.default})


@dataclass(frozen=True)
class _Stored:
    """Stands for a weight until a node needs it, so that only the weights of one node are held in float64."""

    name: str


class Float64Program(fx.Interpreter):
    """Evaluates the graph of a program with all floating-point data, weights and dtypes widened to float64."""

    def __init__(self, program: Program) -> None:
        super().__init__(nn.Module(), garbage_collect_values=True, graph=program.graph)
        self.weights: Mapping[str, torch.Tensor] = program.weights

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A stand-in for the weight `target`."""
        return _Stored(str(target))

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of `n`, weights and dtypes widened."""
        if n.op == "call_function" and n.target in _DTYPE_BOUND:
            raise CheckError("an operator has no meaning in float64, so there is no reference", at=where(n))
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return pytree.tree_map(self._widen, args), pytree.tree_map(self._widen, kwargs)

    def _widen(self, value: Any) -> Any:
        if isinstance(value, _Stored):
            return _wide(self.weights[value.name])
        if isinstance(value, torch.dtype) and value in _NARROW:
            return torch.float64
        return value


def run_float64(program: Program, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The flat outputs of `program` for the flat `inputs`, computed in float64 throughout."""
    with torch.no_grad():
        return list(Float64Program(program).run(*map(_wide, inputs)))


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.float64) if tensor.dtype in _NARROW else tensor.detach()
