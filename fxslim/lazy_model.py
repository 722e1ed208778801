"""Hugging Face models whose weights stay on disk: the library loads placeholders as it would load the weights.

So renamed keys, prefixes, tied weights and what the library merges or splits on loading come out as they always do, and
buffers that are in no file (rotary tables, position ids) are computed as always.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fxslim.graph.errors import InputError
from fxslim.graph.placeholder import AbsentTensor
from fxslim.graph.stores import FileTensor, read_header

__all__ = ["absent_weights", "stored_dtype", "stored_weights"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def stored_weights(directory: Path) -> dict[str, FileTensor]:
    """The tensors in the files of safetensors of a directory by the names that they have there, none of them read.
    Empty where there is no such file.

    Raises:
        InputError: a file is missing or damaged, or a tensor is not where the index says.
    """
    if (directory / SINGLE).is_file():
        return read_header(directory / SINGLE)
    index = directory / INDEX
    if not index.is_file():
        return {}
    places: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    shards = {name: read_header(directory / name) for name in sorted(set(places.values()))}
    for tensor, shard in places.items():
        if tensor not in shards[shard]:
            raise InputError(
                f"the index says that {tensor!r} is in {shard}, and it is not there", at=str(index),
                remedy="download or save the model again",
            )  # fmt: skip
    return {tensor: shards[shard][tensor] for tensor, shard in places.items()}


def stored_dtype(weights: Mapping[str, FileTensor], at: Path) -> torch.dtype:
    """The floating point type that weights are stored in.

    Raises:
        InputError: there are several, or none.
    """
    found = {entry.dtype for entry in weights.values() if entry.dtype.is_floating_point}
    if len(found) != 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found)) or "no floating point type"
        raise InputError(
            f"the weights are stored in {names}, so the type of the program is not clear",
            at=str(at),
            remedy="say it: --dtype float32",
        )
    return found.pop()


def absent_weights(model_class: Any, config: Any, directory: Path, dtype: torch.dtype) -> dict[str, FileTensor]:
    """What stands for the weights of a model of which there is a configuration alone, by name."""
    with torch.device("meta"):
        model = model_class._from_config(config)
    path = directory / SINGLE
    return {
        name: AbsentTensor(path, 0, tuple(tensor.shape), dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in model.state_dict().items()
    }
