"""Data in memory: iterables of texts, rows or batches, tables such as those of `datasets`, data loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fxslim.arrays import as_tensor, refuse_unequal_rows, refuse_unknown
from fxslim.batches import LABELS, Options, Rows
from fxslim.graph.errors import InputError
from fxslim.inputs import InputSpec, check
from fxslim.text import TEXT_FIELD, record_text

__all__ = ["MEMORY", "Items", "array_rows", "holds_text", "items_of", "read_items", "texts_of"]

MEMORY = "memory"
"""What a report calls data that came from no file."""

_MOST_ITEMS = 2**16  # of an iterable that has no length, where no limit was given: it may be endless

Numbered = Iterator[tuple[int, Any]]


@dataclass(frozen=True, eq=False)
class Items:
    """Tensors by input name, item by item: single rows, or whole batches as the user cut them."""

    items: tuple[dict[str, torch.Tensor], ...]
    numbers: tuple[int, ...]  # which item of the iterable each one is
    whole: bool
    available: int | None  # items in the iterable, where all of them were read or it has a length

    @property
    def rows(self) -> int:
        """Number of rows in all items."""
        return sum(_rows(item) if self.whole else 1 for item in self.items)

    def stacked(self) -> Rows:
        """All rows as arrays.

        Raises:
            InputError: they have different shapes.
        """
        names = [name for name in self.items[0] if all(name in item for item in self.items)]
        arrays = {}
        for name in names:
            values = [item[name] for item in self.items]
            shapes = {tuple(v.shape[1:] if self.whole else v.shape) for v in values}
            if len(shapes) > 1 or any(not v.ndim for v in values if self.whole):
                raise InputError(
                    f"rows of different shapes cannot be put together: {', '.join(map(str, sorted(shapes)[:4]))}",
                    at=f"{MEMORY}, input {name}",
                    remedy="give rows of one length (pad or truncate them), whole batches, or text",
                )
            arrays[name] = torch.cat(values) if self.whole else torch.stack(values)
        refuse_unequal_rows(arrays, MEMORY)
        numbers = torch.arange(self.rows) if self.whole else torch.tensor(self.numbers)
        available = self.available if not self.whole else None
        return Rows(arrays, numbers, MEMORY, available=available)


def array_rows(data: Any, specs: tuple[InputSpec, ...]) -> Rows | None:
    """The rows of one array [n, ...] or of arrays by input name; None where `data` is something else.

    Raises:
        InputError: they are not the program's inputs.
    """
    if isinstance(data, torch.Tensor | np.ndarray):
        data = dict(zip([s.name for s in specs], [data], strict=False))
    if not isinstance(data, Mapping):
        return None
    if tables := sorted(str(name) for name, value in data.items() if hasattr(value, "column_names")):
        raise InputError(f"several tables, {' and '.join(tables)}", at=MEMORY, remedy=f"give one: data[{tables[-1]!r}]")
    refuse_unknown(data, specs, MEMORY)
    types = {s.name: s.dtype for s in specs}
    arrays = {name: as_tensor(value, types.get(name), f"{MEMORY}, {name}") for name, value in data.items()}
    refuse_unequal_rows(arrays, MEMORY)
    return Rows.every(arrays, MEMORY)


def items_of(data: Iterable[Any], options: Options) -> Numbered:
    """Every item with its number. With a limit they come in random order, without replacement, where the items can be
    asked for by number; those of a stream come as they come.

    Raises:
        InputError: the iterable has no length, there is no limit, and it does not end.
    """
    if options.limit is not None and isinstance(data, Sized) and hasattr(data, "__getitem__"):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(options.seed)).tolist()
        yield from ((index, data[index]) for index in order)
        return
    bounded = options.limit is not None or isinstance(data, Sized)
    for index, item in enumerate(data):
        if not bounded and index == _MOST_ITEMS:
            raise InputError(
                f"the data has no length and more than {_MOST_ITEMS} items; it may be endless",
                at=MEMORY,
                remedy="say how many rows to take: limit=",
            )
        yield index, item


def holds_text(item: Any, specs: tuple[InputSpec, ...], options: Options) -> bool:
    """Whether an item is a text, or a record whose text is meant: its field was named, or it holds no input."""
    if isinstance(item, str):
        return True
    if not isinstance(item, Mapping):
        return False
    if options.text_field is not None:
        return True
    return not any(s.name in item for s in specs) and isinstance(item.get(TEXT_FIELD), str)


def texts_of(items: Numbered, options: Options) -> Iterator[str]:
    """The text of every item.

    Raises:
        InputError: an item holds none.
    """
    for number, item in items:
        yield record_text(item, options.text_field or TEXT_FIELD, f"{MEMORY}, item {number}")


def read_items(
    items: Numbered, specs: tuple[InputSpec, ...], limit: int | None, *, available: int | None, table: bool
) -> Items:
    """Rows or batches of tensors, each checked against the program's inputs, until they hold `limit` rows.

    An item is a row if its tensors have one dimension less than the inputs. Of a `table`, columns that are no inputs
    are left out.

    Raises:
        InputError: an item does not fit; the message names it.
    """
    taken: dict[int, dict[str, torch.Tensor]] = {}
    rows, whole, ended = 0, None, True
    for number, item in items:
        at = f"{MEMORY}, item {number}"
        named = _named(item, specs, at, table)
        if whole is None:
            whole = _is_whole(named, specs)
        batch = [named[s.name] if whole else named[s.name].unsqueeze(0) for s in specs]
        check(batch, specs, at, None if whole else torch.tensor([number]))
        taken[number] = named
        rows += _rows(named) if whole else 1
        if limit is not None and rows >= limit:
            ended = False
            break
    if not taken:
        raise InputError("the data holds no batch", at=MEMORY)
    with_labels = [LABELS in named for named in taken.values()]
    if any(with_labels) != all(with_labels):
        raise InputError("some batches have labels and some have none", remedy="give labels with every batch, or none")
    numbers = tuple(sorted(taken))
    known = len(taken) if ended else available
    return Items(tuple(taken[n] for n in numbers), numbers, bool(whole), known)


def _named(item: Any, specs: tuple[InputSpec, ...], at: str, table: bool) -> dict[str, torch.Tensor]:
    """The item as tensors by name."""
    names = [s.name for s in specs]
    if isinstance(item, torch.Tensor | np.ndarray):
        item = (item,)
    if isinstance(item, list | tuple):
        if len(item) not in (len(names), len(names) + 1):
            raise InputError(
                f"a batch of {len(item)} tensors for {len(names)} inputs", at=at, remedy=f"inputs: {', '.join(names)}"
            )
        item = dict(zip([*names, LABELS], item, strict=False))
    if not isinstance(item, Mapping):
        raise InputError(
            f"a batch of the type {type(item).__name__}", at=at, remedy="give a tensor, a tuple, a dict, or a text"
        )
    if table:
        item = {name: item[name] for name in [*names, LABELS] if name in item} or item
    refuse_unknown(item, specs, at)
    types = {s.name: s.dtype for s in specs}
    return {name: as_tensor(value, types.get(name), f"{at}, {name}") for name, value in item.items()}


def _is_whole(named: Mapping[str, torch.Tensor], specs: tuple[InputSpec, ...]) -> bool:
    """Whether these are batches: anything but rows, all of whose tensors lack one dimension."""
    return not all(spec.shape and named[spec.name].ndim == len(spec.shape) - 1 for spec in specs)


def _rows(item: Mapping[str, torch.Tensor]) -> int:
    first = next(iter(item.values()))
    return len(first) if first.ndim else 1
