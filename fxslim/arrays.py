"""Arrays by input name, out of files or as they are in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fxslim.batches import LABELS
from fxslim.graph.errors import InputError
from fxslim.inputs import InputSpec

__all__ = ["NUMPY", "TENSORS", "as_tensor", "read_arrays", "refuse_unequal_rows", "refuse_unknown"]

NUMPY, TENSORS = (".npz", ".npy"), ".safetensors"
"""Suffixes of files that hold arrays."""


def read_arrays(path: Path, specs: tuple[InputSpec, ...]) -> dict[str, torch.Tensor]:
    """The arrays [rows, ...] of a file by input name, and `labels` where it has them.

    Raises:
        InputError: the file is damaged, or its arrays are not those of the program's inputs.
    """
    try:
        arrays = _parse(path, specs)
    except (OSError, ValueError, EOFError, KeyError, SafetensorError, TypeError, BadZipFile) as error:
        raise InputError(
            f"the file cannot be read as arrays: {error}",
            at=str(path),
            remedy="write it with numpy.savez (no object arrays) or safetensors.torch.save_file",
        ) from error
    refuse_unknown(arrays, specs, str(path))
    refuse_unequal_rows(arrays, str(path))
    return arrays


def _parse(path: Path, specs: tuple[InputSpec, ...]) -> dict[str, torch.Tensor]:
    if path.suffix == TENSORS:
        return dict(load_file(path))
    with path.open("rb") as file:  # ours to close: the reader forgets to where the file is damaged
        _refuse_overstated(path)
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                return {name: _copied(loaded[name]) for name in loaded.files}
    if len(specs) != 1:
        raise ValueError(f"one array without a name for {len(specs)} inputs")
    return {specs[0].name: _copied(loaded)}


def _refuse_overstated(path: Path) -> None:
    """Returns if no array is said to be larger than what is there: memory is set aside for what a header says.

    Raises:
        ValueError: one is.
    """
    if is_zipfile(path):
        with ZipFile(path) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    _refuse_header(member, info.file_size)
    else:
        with path.open("rb") as file:
            _refuse_header(file, path.stat().st_size)


def _refuse_header(file: IO[bytes], size: int) -> None:
    header = np.lib.format
    read = header.read_array_header_1_0 if header.read_magic(file) == (1, 0) else header.read_array_header_2_0
    shape, _, dtype = read(file)
    if (stated := math.prod(shape) * dtype.itemsize) > size:
        raise ValueError(f"a header speaks of {stated:,} bytes, and {size:,} are there")


def _copied(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, order="C"))


def refuse_unequal_rows(arrays: Mapping[str, torch.Tensor], at: str) -> None:
    """Returns if all arrays have the same number of rows, and at least one.

    Raises:
        InputError: they have not.
    """
    for name, array in arrays.items():
        if not array.ndim:
            raise InputError("an array has no dimension of rows", at=f"{at}, {name}")
    if len({len(a) for a in arrays.values()}) != 1:
        counts = ", ".join(f"{name} {len(a)}" for name, a in arrays.items())
        raise InputError(f"the arrays have different numbers of rows: {counts}", at=at)
    if not len(next(iter(arrays.values()))):
        raise InputError("the arrays hold no rows", at=at)


def refuse_unknown(arrays: Mapping[str, Any], specs: tuple[InputSpec, ...], at: str) -> None:
    """Returns if the names are those of the program's inputs, with or without `labels`.

    Raises:
        InputError: one is missing or unknown.
    """
    names = [s.name for s in specs]
    problems = [f"there is no input {name!r}" for name in sorted(set(map(str, arrays)) - {*names, LABELS})]
    problems += [f"the input {name!r} is missing" for name in names if name not in arrays]
    if problems:
        raise InputError(
            "; ".join(problems),
            at=at,
            remedy=f"the program's inputs are {', '.join(names)}; a column of text is named by text_field=",
        )


def as_tensor(value: Any, dtype: torch.dtype | None, at: str) -> torch.Tensor:
    """The value as a tensor. Python numbers, and lists of them, have no type of their own: they take `dtype` if it
    holds numbers of their kind.

    Raises:
        InputError: it holds no numbers, or its lists are ragged.
    """
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biufc":
            raise InputError(f"an array of the type {value.dtype} holds no numbers", at=at)
        return _copied(value)
    if not isinstance(value, list | tuple | bool | int | float):
        raise InputError(f"a {type(value).__name__} is no tensor", at=at, remedy="preprocess it into arrays first")
    try:
        tensor = torch.tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"a list is no array: {error}", at=at, remedy="give numbers, in lists of one length"
        ) from error
    return tensor if dtype is None or (tensor.is_floating_point() and not dtype.is_floating_point) else tensor.to(dtype)
