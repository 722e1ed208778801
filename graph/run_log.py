"""What a model does in its layers: a run on fake tensors that writes down every operator with its operands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OUTSIDE", "run_log"]

OUTSIDE = -1
"""The number of the part that belongs to no layer."""

Entry = tuple[Any, ...]


def run_log(
    model: nn.Module, name: str, layers: Sequence[nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[int, list[Entry]] | None:
    """What is called in each of the layers (those of the list `name`, which may be shorter than its model thinks), and
    under `OUTSIDE` elsewhere, in order; None where a value comes from nowhere. No weight is read.

    An entry says the operator, its constants, and where its tensors come from without saying the layer's number: from
    the layer itself, from the one before, from the last one, from a weight inside of the layer.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with mode:
        state = {n: torch.empty(t.shape, dtype=t.dtype) for n, t in tensors.items()}
        given = pytree.tree_map_only(Tensor, mode.from_tensor, (args, dict(kwargs)))
    log = _Log(name, len(layers), {**state, **{f"input {i}": t for i, t in enumerate(pytree.tree_leaves(given))}})
    hooks: list[Any] = []
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(log.entering(number)))
        hooks.append(layer.register_forward_hook(log.leaving))
    try:
        with torch.no_grad(), mode, log:
            torch.func.functional_call(model, state, *given)
    finally:
        for hook in hooks:
            hook.remove()
    return None if log.unknown else dict(log.parts)


class _Log(TorchDispatchMode):
    """Notes every call. Tensors are known by the object that stands for them, which is kept alive."""

    def __init__(self, name: str, count: int, known: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: dict[int, list[Entry]] = defaultdict(list)
        self.unknown = False
        self._prefix, self._count, self._part = f"{name}.", count, OUTSIDE
        self._named = {id(t): n for n, t in known.items() if isinstance(t, Tensor)}
        self._made: dict[int, tuple[int, int, int]] = {}  # tensor -> part, number of the call, of the result
        self._alive: list[Any] = [known]

    def entering(self, number: int) -> Callable[..., None]:
        """A hook: what is called from here on belongs to a layer."""

        def enter(*_: Any) -> None:
            self._part = number

        return enter

    def leaving(self, *_: Any) -> None:
        """A hook: what is called from here on belongs to no layer."""
        self._part = OUTSIDE

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What `func` returns, after the call was noted."""
        options = dict(kwargs or {})
        said = pytree.tree_map_only(Tensor, self._said, (args, options))
        result = func(*args, **options)
        calls = self.parts[self._part]
        for i, value in enumerate(pytree.tree_leaves(result)):
            if isinstance(value, Tensor):
                self._made[id(value)] = (self._part, len(calls), i)
                self._alive.append(value)
        calls.append((func, repr(said)))
        return result

    def _said(self, tensor: Tensor) -> Any:
        if (made := self._made.get(id(tensor))) is not None:
            return (self._place(made[0]), *made[1:])
        name = self._named.get(id(tensor))
        if name is not None:
            return ("weight", name.removeprefix(f"{self._prefix}{self._part}.") if self._part != OUTSIDE else name)
        if isinstance(tensor, FakeTensor) or tensor.numel() > 64:
            self.unknown = True
            return None
        return ("constant", str(tensor.dtype), tensor.tolist())

    def _place(self, part: int) -> str:
        if part == self._part:
            return "own"
        if self._part == OUTSIDE and part == self._count - 1:
            return "last"
        return "before" if part != OUTSIDE and part == self._part - 1 else f"part {part}"
