"""torchvision: every classification, segmentation, detection, video and optical flow model of its registry, at its
own width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.zoo.case import Build, Case
from benchmarks.zoo.shim import shim_torchvision

__all__ = ["cases"]

# Sizes that a model needs, or that make it affordable; all others see 64 x 64 pixels.
_OPTIONS: dict[str, dict[str, Any]] = {
    "inception_v3": {"init_weights": False},
    "googlenet": {"init_weights": False},
    **{f"vit_{name}": {"image_size": 64} for name in ("b_16", "b_32", "l_16", "l_32")},
    "vit_h_14": {"image_size": 56},
}
_PIXELS = {"inception_v3": 96, "vit_h_14": 56, "maxvit_t": 224, "raft_large": 128, "raft_small": 128}
_VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18", "mvit_v1_b", "mvit_v2_s", "s3d", "swin3d_t", "swin3d_s", "swin3d_b")
_FRAMES = dict.fromkeys(("s3d", "mvit_v1_b", "mvit_v2_s"), (16, 224))
# The smallest of each family has a dynamic batch; its larger siblings, the same blocks more often or wider, have not:
# symbolic shapes double the time of capture and export.
_DYNAMIC = frozenset({
    "alexnet", "convnext_tiny", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "densenet121", "efficientnet_b0",
    "efficientnet_v2_s", "fcn_resnet50", "googlenet", "inception_v3", "lraspp_mobilenet_v3_large", "maxvit_t", "mc3_18",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18",
    "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "s3d", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin3d_t", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2",
})  # fmt: skip
_SIBLING = "a larger sibling of a model that has a dynamic batch"
_DETECTION = ("fasterrcnn", "fcos", "keypointrcnn", "maskrcnn", "retinanet", "ssd")


def cases() -> dict[str, Build]:
    """A build for every model of the registry that is not quantised."""
    shim_torchvision()
    import torchvision

    return {name: _build(name) for name in torchvision.models.list_models() if not name.startswith("quantized_")}


def _build(name: str) -> Callable[[], Case]:
    def make() -> Case:
        import torchvision

        options = dict(_OPTIONS.get(name, {}))
        if name.startswith(_DETECTION) or name.endswith(("resnet50", "resnet101", "mobilenet_v3_large")):
            options["weights_backbone"] = None
        if name.startswith(_DETECTION):
            size = 320 if name.startswith("ssd") else 64
            options |= {} if name.startswith("ssd") else {"min_size": 64, "max_size": 64}
            model = torchvision.models.get_model(name, weights=None, **options).eval()
            return Case(model, ([torch.rand(3, size, size)],), static="a list of images of any size")
        segmentation = "deeplab" in name or "fcn_" in name or "lraspp" in name
        if not segmentation:
            options.pop("weights_backbone", None)
        model = torchvision.models.get_model(name, weights=None, **options).eval()
        pixels = _PIXELS.get(name, 64)
        if name.startswith("raft"):
            images = (torch.rand(1, 3, pixels, pixels), torch.rand(1, 3, pixels, pixels))
            return Case(model, images, static="its grid of coordinates is made for one batch size")
        if name in _VIDEO:
            frames, pixels = _FRAMES.get(name, (8, 64))
            return _case(name, model, torch.randn(2, 3, frames, pixels, pixels))
        return _case(name, model, torch.randn(2, 3, pixels, pixels))

    return make


def _case(name: str, model: nn.Module, x: torch.Tensor) -> Case:
    return Case(model, (x,), dims=({0: "batch"},)) if name in _DYNAMIC else Case(model, (x,), static=_SIBLING)
