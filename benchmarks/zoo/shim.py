"""torchvision beside a torch that it was not built for."""

from __future__ import annotations

import importlib.util

import torch

__all__ = ["shim_torchvision"]

_KEEP: list[torch.library.Library] = []


def shim_torchvision() -> None:
    """Names the two operators without which a torchvision build for another torch does not import.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ModuleNotFoundError("torchvision is not installed")
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)
