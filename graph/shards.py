"""Weights in several files of safetensors with an index, as other libraries write and read them."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from fxslim.graph.errors import InputError
from fxslim.graph.stores import FileTensor, WeightStore, read_header, write_safetensors

__all__ = ["SHARD", "index_of", "read_shards", "write_shards"]

SHARD = 5_000_000_000
"""Bytes of weights in one file; a larger weight has a file of its own."""


def index_of(path: Path) -> Path:
    """The index of the files that stand in the place of the file `path`."""
    return path.with_name(f"{path.name}.index.json")


def write_shards(path: Path, weights: WeightStore, limit: int = SHARD) -> None:
    """Writes weights to the file `path`, one by one; where they exceed `limit` bytes to files
    `<name>-00001-of-00003.safetensors` beside it, and an index.

    Raises:
        OSError: a file cannot be written.
    """
    shards = list(_divided(weights, limit))
    if len(shards) < 2:
        write_safetensors(path, weights)
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = path.with_name(f"{path.stem}-{number:05}-of-{len(shards):05}{path.suffix}")
        write_safetensors(file, weights, names)
        places |= dict.fromkeys(names, file.name)
    total = sum(weights.entry(name).nbytes for name in weights)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1, sort_keys=True)
    index_of(path).write_text(text + "\n", encoding="utf-8")


def _divided(weights: WeightStore, limit: int) -> Iterator[list[str]]:
    """The names in their order, in parts of at most `limit` bytes."""
    part: list[str] = []
    size = 0
    for name in weights:
        more = weights.entry(name).nbytes
        if part and size + more > limit:
            yield part
            part, size = [], 0
        part.append(name)
        size += more
    yield part


def read_shards(path: Path) -> dict[str, FileTensor]:
    """The tensors in the file `path`, or in the files of its index, none of them read.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: a file is damaged, or a tensor is not where the index says.
    """
    index = index_of(path)
    if not index.is_file():
        return _header(path)
    places = _places(index)
    shards = {name: _header(path.with_name(name)) for name in sorted(set(places.values()))}
    for tensor, shard in places.items():
        if tensor not in shards[shard]:
            raise InputError(f"the index says that {tensor!r} is in {shard}, and it is not there", at=str(index))
    return {tensor: shards[shard][tensor] for tensor, shard in places.items()}


def _places(index: Path) -> Mapping[str, str]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # A file elsewhere is nobody's weights.
        whole = all(isinstance(name, str) and Path(name).name == name for name in places.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the index of the weights cannot be read: {error}", at=str(index)) from error
    if not whole:
        raise InputError("the index of the weights names files elsewhere", at=str(index))
    found: Mapping[str, str] = places
    return found


def _header(path: Path) -> dict[str, FileTensor]:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    return read_header(path)
