"""A program as it computes in a narrow type: float32, each result rounded. It says how good an answer can be there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from fxslim.graph.evaluate import Environment, Evaluator
from fxslim.graph.program import Program

__all__ = ["RoundedEvaluator", "run_rounded"]

# What an exported file computes in float32 as well (`narrow.WIDE_OPS`), by the names that ATen has for it.
_WIDE = frozenset({
    "exp", "log", "pow", "_softmax", "_log_softmax", "softplus", "sin", "cos", "tan", "asin", "acos", "atan",
    "sinh", "cosh", "mean", "sum", "prod", "linalg_vector_norm", "var", "var_mean", "std", "logsumexp",
    "cumsum", "rsqrt", "native_batch_norm", "_native_batch_norm_legit_no_training", "native_group_norm",
})  # fmt: skip


def run_rounded(program: Program, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Any]:
    """The flat outputs of `program` for flat inputs, in float32, with weights and every result rounded to `dtype`.

    What an exported file computes in float32 (statistics, exponentials, what depends on integers alone) is not rounded
    here either. Numbers beyond the range of `dtype` are held at its end.

    Raises:
        AnalysisError: an operator refuses its arguments.
    """
    return RoundedEvaluator(program, dtype).run(inputs)


class RoundedEvaluator(Evaluator):
    """Evaluates as `run_rounded` does. Weights are rounded; buffers are constants, which a file holds in float32 where
    it computes so."""

    def __init__(self, program: Program, dtype: torch.dtype) -> None:
        super().__init__(program)
        self._narrow = dtype

    def bind(self, inputs: Sequence[Tensor]) -> Environment:
        """An environment in which the inputs are bound, rounded."""
        return super().bind([_rounded(t, self._narrow) if t.dtype is torch.float32 else t for t in inputs])

    def weight(self, name: str) -> Tensor:
        """A weight, rounded if it was learnt."""
        value = super().weight(name)
        if value.dtype is not torch.float32:
            return value
        return _rounded(value, self._narrow) if self.program.info[name].trainable else _mark_wide(value.clone())

    def compute(self, node: fx.Node, env: Environment) -> Any:
        """The value of one node."""
        # The mathematical form of attention: scores and probabilities are results, and rounded, as they are in a file.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Rounding(self._narrow):
            return super().compute(node, env)

    def outputs(self, env: Environment) -> list[Any]:
        """The flat outputs from an environment that has reached the end."""
        return [_plain(value) for value in super().outputs(env)]


class _Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Rounds what an operator returns, unless it is one of `_WIDE` or none of its operands was rounded."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What `func` returns, rounded."""
        out = func(*args, **(kwargs or {}))
        operands = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
        name = func.overloadpacket.__name__  # type: ignore[attr-defined]
        wide = name in _WIDE or all(_is_wide(t) for t in operands)
        finish = _mark_wide if wide else (lambda t: _rounded(t, self.dtype))
        return pytree.tree_map_only(Tensor, lambda t: finish(t) if _is_float(t) else t, out)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _is_wide(value: Tensor) -> bool:
    return getattr(value, "_fxslim_wide", False)


def _mark_wide(value: Tensor) -> Tensor:
    value._fxslim_wide = True  # type: ignore[attr-defined]
    return value


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    held = torch.where(value.isinf(), value, value.clamp(-largest, largest))
    return held.to(dtype).to(torch.float32)


def _plain(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
