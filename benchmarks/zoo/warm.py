"""Importing this module captures and exports a tiny model, so that processes forked afterwards need not import what the
exporters load on first use: some seconds for each of hundreds of models.

No ONNX Runtime session is made here: its threads would not survive a fork.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from fxslim.api import capture
from fxslim.export import export_onnx

__all__: list[str] = []

with tempfile.TemporaryDirectory() as _folder:
    _tiny = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2))
    export_onnx(capture(_tiny, (torch.randn(2, 4),), {}, ({0: "batch"},)), Path(_folder) / "tiny.onnx")
