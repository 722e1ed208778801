"""Tensors without data: each stands for one in a file, and what is done to it is written down instead of done.

A library that loads a model into placeholders (renaming, casting, stacking, splitting what is in the files, tying
weights) loads it as it always does; where each weight then comes from, and how it is made, is read off them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from fxslim.graph.errors import InputError
from fxslim.graph.stores import FileTensor

__all__ = ["AbsentTensor", "ComposedTensor", "Placeholder", "entry_of", "has_placeholders", "types_in_files"]

aten = torch.ops.aten

_SAME = frozenset({aten.detach.default, aten.alias.default, aten.clone.default, aten.lift_fresh.default})
# What loaders do to weights, none of it arithmetic: another order, other parts.
_LAYOUT = frozenset({
    aten.cat.default, aten.stack.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
    aten.slice.Tensor, aten.select.int, aten.view.default, aten._unsafe_view.default, aten.reshape.default,
    aten.transpose.int, aten.permute.default, aten.t.default, aten.unsqueeze.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.expand.default, aten.flip.default,
})  # fmt: skip
_VIEWS = frozenset({aten.view.default, aten._unsafe_view.default})


@dataclass(frozen=True, eq=False)
class ComposedTensor(FileTensor):
    """What an operator makes of tensors in files, made anew at each access. `offset` means nothing."""

    target: Callable[..., Any] = aten.clone.default
    args: tuple[Any, ...] = ()
    index: int | None = None  # of the result, where there are several

    def read(self) -> Tensor:
        """Its values, in memory of their own."""
        if self._parts is not None:
            return self._joined()
        values = pytree.tree_map_only(FileTensor, lambda entry: entry.read(), self.args)
        made = self.target(*values)
        result: Tensor = made if self.index is None else made[self.index]
        shared = result.untyped_storage().nbytes() > self.nbytes  # of a part: what is around it has to go
        return result.clone(memory_format=torch.contiguous_format) if shared else result.contiguous()

    @property
    def besides(self) -> int:
        """Bytes that are needed besides its own while it is made: all that it is made of, or of what is put together
        one part at a time."""
        sources = [e for e in pytree.tree_leaves(self.args) if isinstance(e, FileTensor)]
        needed = [e.nbytes + e.besides for e in sources]
        return max(needed) if self._parts is not None else sum(needed)

    @property
    def _parts(self) -> Sequence[FileTensor] | None:
        """What is stacked or concatenated, if that is what is done."""
        if self.index is not None or self.target not in (aten.stack.default, aten.cat.default):
            return None
        dims = len(self.shape) - (self.target is aten.stack.default)
        parts: Sequence[FileTensor] = self.args[0]
        return parts if all(isinstance(e, FileTensor) and len(e.shape) == dims for e in parts) else None

    def _joined(self) -> Tensor:
        """Its values, put together part by part, so that no more than one of them is there twice."""
        parts, dim = self._parts or (), self.args[1] if len(self.args) > 1 else 0
        made, start = torch.empty(self.shape, dtype=self.dtype), 0
        for number, entry in enumerate(parts):
            if self.target is aten.stack.default:
                made.select(dim, number).copy_(entry.read())
                continue
            made.narrow(dim, start, entry.shape[dim]).copy_(entry.read())
            start += entry.shape[dim]
        return made

    def cast(self, dtype: torch.dtype) -> FileTensor:
        """The same, made in another type."""
        if dtype is self.dtype:
            return self
        parts = self._parts
        if parts is not None and all(part.dtype is self.dtype for part in parts):  # else it would be cast twice
            return replace(self, dtype=dtype)  # each part is cast when it is put in
        return ComposedTensor(self.path, -1, self.shape, dtype, target=Tensor.to, args=(self, dtype))


@dataclass(frozen=True, eq=False)
class AbsentTensor(FileTensor):
    """A weight of which only shape and type are known: good for an analysis, not for a result."""

    def read(self) -> Tensor:
        """Never returns.

        Raises:
            InputError: there are no values.
        """
        raise InputError(
            "the model has no weights here, only a configuration",
            at=str(self.path),
            rule="without weights a model can be looked at, and not be compressed",
            remedy="put its files of safetensors beside config.json",
        )


class Placeholder(Tensor):
    """A tensor on the CPU of an entry's shape and type. It can be cast, copied, laid out anew and compared; all else is
    refused."""

    entry: FileTensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, entry: FileTensor) -> Placeholder:
        """One that stands for `entry`."""
        made: Placeholder = Tensor._make_wrapper_subclass(
            cls, entry.shape, dtype=entry.dtype, device=torch.device("cpu")
        )
        made.entry = entry
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Its type, its shape and where its data are."""
        return f"Placeholder({list(self.shape)}, {self.dtype}, {self.entry.path})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What `func` returns for placeholders: further ones, or for a comparison the answer.

        Raises:
            InputError: it would need the data.
        """
        options = dict(kwargs or {})
        if func in _SAME:
            return Placeholder(args[0].entry)
        if func is aten._to_copy.default and torch.device(options.get("device") or "cpu").type == "cpu":
            return Placeholder(_cast(args[0].entry, options.get("dtype") or args[0].dtype))
        if func is aten.equal.default and all(isinstance(tensor, Placeholder) for tensor in args):
            return _same_values(args[0].entry, args[1].entry)
        if func in _LAYOUT and not options:
            return _laid_out(aten.reshape.default if func in _VIEWS else func, args)
        raise InputError(
            f"a weight that is still on disk cannot be given to {func}",
            at=str(next((t.entry.path for t in pytree.tree_leaves(args) if isinstance(t, Placeholder)), "")),
            remedy="leave streaming out, so that the weights are loaded",
        )


def entry_of(tensor: Tensor) -> Tensor | FileTensor:
    """What a store of weights holds for a tensor: where its data are, or itself."""
    return tensor.entry if isinstance(tensor, Placeholder) else tensor.detach()


def types_in_files(entry: FileTensor) -> set[torch.dtype]:
    """The types in which all that an entry is made of is stored."""
    if not isinstance(entry, ComposedTensor):
        return {entry.stored or entry.dtype}
    sources = [e for e in pytree.tree_leaves(entry.args) if isinstance(e, FileTensor)]
    return {dtype for source in sources for dtype in types_in_files(source)}


def has_placeholders(module: nn.Module) -> bool:
    """Whether a weight of a module is on disk."""
    return any(isinstance(tensor, Placeholder) for tensor in (*module.parameters(), *module.buffers()))


def _cast(entry: FileTensor, dtype: torch.dtype) -> FileTensor:
    if dtype is entry.dtype:
        return entry
    if isinstance(entry, ComposedTensor) or (type(entry) is FileTensor and entry.stored is None):
        return entry.cast(dtype)
    if isinstance(entry, AbsentTensor):
        return AbsentTensor(entry.path, 0, entry.shape, dtype)
    return ComposedTensor(entry.path, -1, entry.shape, dtype, target=Tensor.to, args=(entry, dtype))


def _same_values(a: FileTensor, b: FileTensor) -> bool:
    if a is b or (a.shape, a.dtype) != (b.shape, b.dtype):
        return a is b
    if isinstance(a, AbsentTensor) or isinstance(b, AbsentTensor):
        return isinstance(a, AbsentTensor) and isinstance(b, AbsentTensor)  # as tied as the model wants them
    return torch.equal(a.read(), b.read())


def _laid_out(func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Placeholders for the results of an operator, which gives them their shapes on the meta device."""
    entries = pytree.tree_map_only(Placeholder, lambda p: p.entry, args)
    sources = [e for e in pytree.tree_leaves(entries) if isinstance(e, FileTensor)]
    if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(entries)):
        raise InputError(
            f"{func} mixes weights on disk with others", at=str(sources[0].path), remedy="leave streaming out"
        )
    shapes = pytree.tree_map_only(Placeholder, lambda p: torch.empty(p.shape, dtype=p.dtype, device="meta"), args)
    made = func(*shapes)
    if isinstance(made, Tensor):
        return Placeholder(_composed(func, entries, sources, made, None))
    return [Placeholder(_composed(func, entries, sources, value, i)) for i, value in enumerate(made)]


def _composed(
    func: Callable[..., Any], args: tuple[Any, ...], sources: Sequence[FileTensor], like: Tensor, index: int | None
) -> FileTensor:
    path, shape = sources[0].path, tuple(like.shape)
    if any(isinstance(source, AbsentTensor) for source in sources):
        return AbsentTensor(path, 0, shape, like.dtype)
    if len(sources) == 1 and index is None and shape == sources[0].shape and func in _KEEPING:
        return sources[0]
    return ComposedTensor(path, -1, shape, like.dtype, target=func, args=args, index=index)


_KEEPING = frozenset({aten.slice.Tensor, aten.reshape.default, aten.expand.default})
"""Where the result has the shape of the operand, it is the operand."""
