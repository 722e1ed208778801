"""timm: one model of every architecture family (module) of its registry, the smallest that it offers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.zoo.case import Build, Case
from benchmarks.zoo.shim import shim_torchvision

__all__ = ["cases"]

# Smallest model of each module of the registry. Models called test_* are timm's own, made for tests.
FAMILIES = (
    "test_beit3", "halonet26t", "test_byobnet", "cait_xxs24_224", "coat_tiny", "coatnet_pico_rw_224", "convit_tiny",
    "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s",
    "cspnext_tiny", "davit_tiny", "deit_tiny_distilled_patch16_224", "densenet121", "dla46x_c", "dpn48b",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0",
    "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224",
    "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3",
    "inception_v4", "lcnetv2_small", "levit_128s", "lowformer_b0", "test_mambaout", "maxvit_pico_rw_256",
    "poolformerv2_s12", "caformer_s18", "gmlp_ti16_224", "mixer_s32_224", "resmlp_12_224", "mobilenetv3_small_050",
    "mobilevit_xxs", "mobilevitv2_050", "mvitv2_tiny", "nasnetalarge", "nest_tiny", "nextvit_small", "nf_regnet_b0",
    "dm_nfnet_f0", "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "regnety_002",
    "repghostnet_050", "repvit_m1", "repvgg_a0", "res2net50_14w_8s", "res2next50", "resnest14d", "resnet18",
    "ecaresnet26t", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1",
    "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small", "vgg11",
    "visformer_tiny", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "test_vit_relpos", "samvit_base_patch16_224",
    "vitamin_small_224", "volo_d1_224", "xcit_nano_12_p16_224", "ese_vovnet19b_slim_dw", "legacy_xception",
    "xception41p", "lambda_resnet26t", "botnet26t_256", "lamhalobotnet50ts_256", "eca_botnext26ts_256",
    "gc_efficientnetv2_rw_t", "bat_resnext26ts", "mobilenetv4_conv_small", "mobileone_s0",
)  # fmt: skip

# Position tables made for one size that the registry does not mark as such.
_FIXED = frozenset({"halonet26t", "botnet26t_256", "lamhalobotnet50ts_256", "lambda_resnet26t", "eca_botnext26ts_256"})
_PIXELS = 96  # enough for five halvings and a window


def cases() -> dict[str, Build]:
    """A build for every family that the installed timm has."""
    shim_torchvision()
    import timm

    known = set(timm.list_models())
    return {name: _build(name) for name in FAMILIES if name in known}


def _build(name: str) -> Callable[[], Case]:
    def make() -> Case:
        import timm

        model = timm.create_model(name).eval()
        config = model.pretrained_cfg
        fixed = config.get("fixed_input_size") or name in _FIXED
        pixels = config["input_size"][-1] if fixed else _PIXELS
        images = torch.randn(2, 3, pixels, pixels)
        return Case(
            model, (images,), static="a dynamic batch doubles the time; torchvision's and transformers' have one"
        )

    return make
