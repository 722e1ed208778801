"""Programs whose weights are on disk, and files that know how often they were read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.stores import FileTensor, Placement, Spill, WeightStore, read_header, write_safetensors

__all__ = ["count_reads", "stored"]


def stored(analysis: Analysis, folder: Path, *, piece: int = 1, offload: bool = False) -> Analysis:
    """The same program with its weights in a file; what replaces them, of any size, is spilled."""
    folder.mkdir(parents=True, exist_ok=True)
    program = analysis.program.clone()
    file = folder / "weights.safetensors"
    write_safetensors(file, program.weights)
    program.weights = WeightStore(read_header(file), Spill(folder, 1), Placement(piece=piece, offload=offload))
    return analyze(program)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Sequence[object]]:
    """How often each part of a file is read from now on."""
    found: Counter[Sequence[object]] = Counter()
    read = FileTensor.read

    def counted(self: FileTensor) -> Tensor:
        found[(self.path.name, self.offset)] += 1
        return read(self)

    monkeypatch.setattr(FileTensor, "read", counted)
    return found
