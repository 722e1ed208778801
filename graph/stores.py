"""Weights by name that need not be in memory: in files of safetensors, or spilled to a scratch folder.

A weight that is on disk is read anew each time it is asked for, into memory of its own: nothing is mapped, so what a
process holds is what it was asked to hold. Whoever needs one several times in a row says so with `holding`. How a
program is run whose weights do not fit into memory is a property of its store: the `Placement`.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxslim.graph.errors import InputError, LocalError

__all__ = [
    "FileTensor",
    "Placement",
    "Spill",
    "WeightStore",
    "entry_in",
    "raw_bytes",
    "read_header",
    "write_safetensors",
]

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U16": torch.uint16,
    "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip
"""Element types of safetensors."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, as the library of the format has it
SPILLED_FROM = 1 << 16  # bytes: less is not worth a file
_CAST_AT_ONCE = 1 << 22  # numbers that are in memory in both types
PIECE = 1 << 28  # bytes: large enough that reading is not a matter of seeking


@dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor in a file: contiguous, little-endian, from `offset` on."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype  # that it is read in
    stored: torch.dtype | None = None  # that of the file, where it is another
    source: FileTensor | None = None  # what it was cast from: a spilled file lives as long as that

    @property
    def nbytes(self) -> int:
        """Bytes of its data, once read."""
        return math.prod(self.shape) * self.dtype.itemsize

    def cast(self, dtype: torch.dtype) -> FileTensor:
        """The same tensor, read in another type; one that is cast already is not cast twice.

        Raises:
            ValueError: it is cast already.
        """
        if self.stored is not None:
            raise ValueError("a tensor that is cast already")
        return self if dtype is self.dtype else replace(self, dtype=dtype, stored=self.dtype, source=self)

    def read(self) -> Tensor:
        """Its values, in memory of their own.

        Raises:
            InputError: the file is gone, or ends too early.
        """
        held, made = self.stored or self.dtype, torch.empty(math.prod(self.shape), dtype=self.dtype)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                for part in [made] if held is self.dtype else torch.split(made, _CAST_AT_ONCE):
                    values = part if held is self.dtype else torch.empty(len(part), dtype=held)
                    if not _filled(file, values):
                        raise LocalError("the file of weights was cut short while it was in use", at=str(self.path))
                    if values is not part:
                        part.copy_(values)
        except OSError as error:
            raise LocalError(f"weights cannot be read: {error.strerror or error}", at=str(self.path)) from error
        return made.reshape(self.shape)

    @property
    def besides(self) -> int:
        """Bytes that are needed besides its own while it is read."""
        return 0


def _filled(file: io.FileIO, values: Tensor) -> bool:
    """Whether a file held so many bytes more; they are in `values: [n]` then."""
    size, done = values.nbytes, 0
    if not size:
        return True
    view = memoryview(values.view(torch.uint8).numpy())  # type: ignore[arg-type]
    while done < size and (got := file.readinto(view[done:])):
        done += got
    return done == size


@dataclass(frozen=True)
class Placement:
    """Where a program runs, and how much of it at once.

    Weights on disk are read in pieces of at most `piece` bytes (or one weight), and each piece runs for all batches
    before the next is read. With a `device` pieces run there: their weights and the values of the running batch. With
    `offload` what the batches hold between pieces is on disk, where the store spills.
    """

    piece: int = PIECE
    device: torch.device | None = None
    offload: bool = False


class Spill:
    """A folder that tensors of at least so many bytes are written to; the file of one goes when nobody refers to it any
    more."""

    def __init__(self, folder: Path, least: int = SPILLED_FROM) -> None:
        self.folder, self.least = folder, least
        self._numbers = itertools.count()

    def put(self, tensor: Tensor) -> FileTensor:
        """The tensor, written.

        Raises:
            InputError: the folder is full or cannot be written.
        """
        path = self.folder / f"{os.getpid()}-{next(self._numbers)}.bin"
        try:
            with path.open("wb") as file:
                file.write(raw_bytes(tensor))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise LocalError(
                f"weights cannot be spilled to disk: {error.strerror or error}",
                at=str(self.folder),
                remedy="free space there, or name another folder",
            ) from error
        made = FileTensor(path, 0, tuple(tensor.shape), tensor.dtype)
        weakref.finalize(made, path.unlink, missing_ok=True)
        return made


class WeightStore(MutableMapping[str, Tensor]):
    """Hands out a tensor by name, from memory or from disk. Passes ask for one at a time.

    With a `spill`, what is put in goes to disk too, unless it is small.
    """

    def __init__(
        self, entries: Mapping[str, Tensor | FileTensor], spill: Spill | None = None,
        placement: Placement | None = None,
    ) -> None:  # fmt: skip
        self._entries: dict[str, Tensor | FileTensor] = (
            dict(entries._entries) if isinstance(entries, WeightStore) else dict(entries)
        )
        self.spill = spill
        self.placement = placement or Placement()
        self._held: dict[str, Tensor] = {}
        self._holders = Counter[str]()

    def __getitem__(self, name: str) -> Tensor:
        if name in self._held:
            return self._held[name]
        entry = self._entries[name]
        return entry if isinstance(entry, Tensor) else entry.read()

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self._held.pop(name, None)
        spill = self.spill if self.spill is not None and tensor.nbytes >= self.spill.least else None
        self._entries[name] = tensor if spill is None or tensor.is_meta else spill.put(tensor)

    def __delitem__(self, name: str) -> None:
        self._held.pop(name, None)
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forgets all weights, without reading those on disk."""
        self._held.clear()
        self._holders.clear()
        self._entries.clear()

    def entry(self, name: str) -> Tensor | FileTensor:
        """The tensor, or where it is: shape and type are known without reading it."""
        return self._entries[name]

    def link(self, name: str, entry: Tensor | FileTensor) -> None:
        """Puts in what `entry` of another store returned: nothing is copied."""
        self._held.pop(name, None)
        self._entries[name] = entry

    @property
    def on_disk(self) -> bool:
        """Whether any weight is on disk."""
        return any(isinstance(entry, FileTensor) for entry in self._entries.values())

    def copy(self) -> WeightStore:
        """A store over the same tensors: replacing one in the copy leaves this store as it is."""
        return WeightStore(self._entries, self.spill, self.placement)

    def empty(self) -> WeightStore:
        """A store without weights that spills where this one does."""
        return WeightStore({}, self.spill, self.placement)

    @contextmanager
    def holding(self, names: Iterable[str]) -> Iterator[None]:
        """Reads weights once and keeps them in memory, or on the device that the program runs on, until the end of the
        block."""
        device = self.placement.device
        taken: list[str] = []
        try:
            for name in names:
                if name in self and (device is not None or isinstance(self._entries[name], FileTensor)):
                    if name not in self._held:
                        self._held[name] = self[name] if device is None else self[name].to(device)
                    self._holders[name] += 1
                    taken.append(name)
            yield
        finally:
            for name in taken:
                self._holders[name] -= 1
                if not self._holders[name]:
                    self._held.pop(name, None)


def entry_in(weights: Mapping[str, Tensor], name: str) -> Tensor | FileTensor:
    """The tensor, or where it is: what a store has, or any other mapping."""
    return weights.entry(name) if isinstance(weights, WeightStore) else weights[name]


def read_header(path: Path) -> dict[str, FileTensor]:
    """The tensors of a file of safetensors, none of them read.

    Raises:
        InputError: the file cannot be read, or its header says what cannot be.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_LONGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        return {
            str(name): _described(path, said, 8 + length, size) for name, said in header.items()
            if name != "__metadata__"
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"the file of weights is damaged or cut off: {error}", at=str(path), remedy="download or save it again"
        ) from error


def _described(path: Path, said: Any, start: int, size: int) -> FileTensor:
    first, last = (int(offset) for offset in said["data_offsets"])
    shape = tuple(int(n) for n in said["shape"])
    if said["dtype"] not in DTYPES:
        raise ValueError(f"the element type {said['dtype']!r} is unknown")
    found = FileTensor(path, start + first, shape, DTYPES[said["dtype"]])
    if min(shape, default=0) < 0 or first < 0 or last - first != found.nbytes or start + last > size:
        raise ValueError(f"a tensor of shape {shape} in the bytes {first} to {last}")
    return found


def write_safetensors(path: Path, weights: WeightStore, names: Iterable[str] | None = None) -> None:
    """Writes weights to a file of safetensors one by one, so that no two are in memory.

    Raises:
        OSError: the file cannot be written.
    """
    listed = sorted(weights if names is None else names, key=lambda n: (-weights.entry(n).dtype.itemsize, n))
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in listed:
        entry = weights.entry(name)
        described[name] = {
            "dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [end, end + entry.nbytes],
        }  # fmt: skip
        end += entry.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in listed:
            file.write(raw_bytes(weights[name]))


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's elements in their order; of a contiguous one on the CPU without a copy."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy() if flat.numel() else b"")  # type: ignore[arg-type]
