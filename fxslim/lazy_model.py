"""Hugging Face models whose weights stay on disk: the library loads placeholders as it would load the weights.

So renamed keys, prefixes, tied weights and what the library merges or splits on loading come out as they always do, and
buffers that are in no file (rotary tables, position ids) are computed as always.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fxslim.graph.errors import InputError
from fxslim.graph.placeholder import AbsentTensor
from fxslim.graph.shards import read_shards
from fxslim.graph.stores import FileTensor, read_header

__all__ = ["absent_weights", "stored_dtype", "stored_weights"]

SINGLE = "model.safetensors"


def stored_weights(directory: Path) -> dict[str, FileTensor]:
    """The tensors in the files of safetensors of a directory by the names that they have there, none of them read.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: a file is damaged, or a tensor is not where the index says.
    """
    single = directory / SINGLE
    return read_header(single) if single.is_file() else read_shards(single)  # in the order in which transformers looks


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
