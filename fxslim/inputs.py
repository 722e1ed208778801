"""What a program takes: shape, type and range of each flat input, and the check of a batch against them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxslim.graph.axes.analysis import find_caches
from fxslim.graph.dims import known_size, summands
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program

__all__ = ["InputSpec", "check", "input_specs"]

aten = torch.ops.aten

# Between an input and the embedding that looks it up, these leave the values as they are.
_SAME_VALUES = frozenset(
    {
        aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.dim, aten.clone.default,
        aten._to_copy.default, aten.to.dtype, aten.slice.Tensor, aten.expand.default, aten.permute.default,
    }
)  # fmt: skip


@dataclass(frozen=True)
class InputSpec:
    """One flat input: `shape` has None for a dynamic dimension, `names` its names, `rows` the embedding's size."""

    name: str
    shape: tuple[int | None, ...]
    names: tuple[str | None, ...]
    dtype: torch.dtype
    rows: int | None = None  # ids must lie below; None where the input is not looked up in a table
    cache: bool = False  # the program's own: empty at first

    def __str__(self) -> str:
        """The input as a user would write it: `input_ids [batch, sequence] int64`."""
        sizes = (name or str(size) for name, size in zip(self.names, self.shape, strict=True))
        return f"{self.name} [{', '.join(sizes)}] {str(self.dtype).removeprefix('torch.')}"


def input_specs(program: Program) -> tuple[InputSpec, ...]:
    """The specification of every flat input of `program`, in order.

    Raises:
        InputError: the program has no inputs.
    """
    nodes = program.graph.find_nodes(op="placeholder")
    if not nodes:
        raise InputError("the program has no inputs, so there is nothing to give it", at=program.source)
    specs, caches = list[InputSpec](), find_caches(program)
    for node, example in zip(nodes, program.example_inputs, strict=True):
        dynamic = program.dynamic.get(node.name, {})
        shape = tuple(None if i in dynamic else size for i, size in enumerate(example.shape))
        names = tuple(dynamic.get(i) for i in range(example.ndim))
        rows = _table_rows(program, node)
        specs.append(InputSpec(node.name, shape, names, example.dtype, rows, node.name in caches))
    return tuple(specs)


def _table_rows(program: Program, node: fx.Node) -> int | None:
    """Rows of the smallest embedding that is indexed by the values of `node`."""
    found: list[int] = []
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        for user in current.users:
            if user.target is aten.embedding.default and user.args[1] is current:
                table = user.args[0]
                if isinstance(table, fx.Node) and isinstance(table.meta.get("val"), torch.Tensor):
                    found.append(int(table.meta["val"].shape[0]))
            elif user.target in _SAME_VALUES and user.args[0] is current and user not in seen:
                seen.add(user)
                pending.append(user)
    return min(found, default=None)


def check(batch: Sequence[torch.Tensor], specs: Sequence[InputSpec], at: str, rows: torch.Tensor | None = None) -> None:
    """Returns if the batch fits: ranks, fixed sizes, equal names with equal sizes, types, finite values, ids in range.

    With the numbers of its `rows` [n] it is no batch yet, but rows to be cut into batches: any number of them fits.

    Raises:
        InputError: it does not fit; the message names the input, and the row where values are the reason.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for tensor, spec in zip(batch, specs, strict=True):
        place = f"{at}, input {spec.name}"
        _check_shape(tensor, spec, place, any_rows=rows is not None)
        for name, size in zip(spec.names, tensor.shape, strict=True):
            if name is None:
                continue
            other, owner = sizes.setdefault(name, (size, spec.name))
            if other != size:
                raise InputError(f"{name} is {size} here and {other} in {owner}", at=place)
        _check_values(tensor, spec, place, rows)
    known = {name: size for name, (size, _) in sizes.items() if not summands(name)}
    for name, (size, owner) in sizes.items():
        if (wanted := known_size(name, known)) not in (None, size):
            raise InputError(f"{name} is {size}, not {wanted}", at=f"{at}, input {owner}")


def _check_shape(tensor: torch.Tensor, spec: InputSpec, at: str, *, any_rows: bool) -> None:
    given = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
    expected = f"the program takes {spec}"
    if tensor.ndim != len(spec.shape):
        raise InputError(
            f"rank {tensor.ndim} instead of {len(spec.shape)}: the data has {given}", at=at, remedy=expected
        )
    first = 1 if any_rows else 0
    if any(w is not None and w != n for w, n in zip(spec.shape[first:], tensor.shape[first:], strict=True)):
        raise InputError(f"the shape does not fit: the data has {given}", at=at, remedy=expected)
    if tensor.dtype != spec.dtype:
        raise InputError(f"the type does not fit: the data has {given}", at=at, remedy=f"{expected}: convert the data")


def _check_values(tensor: torch.Tensor, spec: InputSpec, at: str, rows: torch.Tensor | None) -> None:
    if tensor.is_floating_point() and bool((bad := ~torch.isfinite(tensor)).any()):
        raise InputError(
            f"{int(bad.sum())} of {tensor.numel()} values are NaN or Inf",
            at=at + _first_row(bad, rows),
            remedy="clean the data",
        )
    if spec.rows is None or not tensor.numel():
        return
    low, high = int(tensor.min()), int(tensor.max())
    if low < 0 or high >= spec.rows:
        raise InputError(
            f"ids from {low} to {high} in an embedding of {spec.rows} rows",
            at=at + _first_row((tensor < 0) | (tensor >= spec.rows), rows),
            remedy="use the tokenizer that belongs to the model",
        )


def _first_row(bad: torch.Tensor, rows: torch.Tensor | None) -> str:
    """Where the first bad value stands, to put behind the name of the input."""
    if not bad.ndim:
        return ""
    place = int(bad.flatten(1).any(1).nonzero()[0]) if bad.ndim > 1 else int(bad.nonzero()[0])
    return f", row {place if rows is None else int(rows[place])}"
