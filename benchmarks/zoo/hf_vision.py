"""Vision models: transformers, pyramids, convolutional networks, detection, segmentation, depth, video."""

from __future__ import annotations

from benchmarks.zoo.hf_build import Row, batch_only, rows

__all__ = ["VISION"]

PYRAMID = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1], "image_size": 64}
FOUR_HEADS = {"num_attention_heads": [1, 2, 4, 4]}
WINDOWS = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2}
RESNET = {"embedding_size": 16, "hidden_sizes": [24, 32, 40, 48], "depths": [1, 2, 1, 1]}
TINY_RESNET = {
    "backbone_config.model_type": "resnet",
    **{f"backbone_config.{k}": v for k, v in RESNET.items()},
}
DETECTOR = {
    **TINY_RESNET,
    "backbone_config.out_features": ["stage4"],
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
    "num_queries": 7,
    "zoo_image": 64,
}
RT_DETR = {
    "backbone_config.model_type": "rt_detr_resnet",
    **{f"backbone_config.{k}": v for k, v in RESNET.items()},
    "backbone_config.out_features": ["stage2", "stage3", "stage4"],
    "encoder_in_channels": [32, 40, 48],
    "encoder_hidden_dim": 48,
    "decoder_in_channels": [48, 48, 48],
    "num_queries": 7,
    "num_denoising": 0,
    "encoder_layers": 1,
    "zoo_image": 64,
}
HGNET = {
    "stem_channels": [3, 8, 12],
    "stage_in_channels": [12, 16, 24, 32],
    "stage_mid_channels": [8, 12, 16, 20],
    "stage_out_channels": [16, 24, 32, 40],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "embedding_size": 12,
    "hidden_sizes": [16, 24, 32, 40],
}
DINO_BACKBONE = {
    "backbone_config.model_type": "dinov2",
    "backbone_config.image_size": 32,
    "backbone_config.num_hidden_layers": 4,
    "backbone_config.out_indices": [1, 2, 3, 4],
    "backbone_config.reshape_hidden_states": False,
}
SAM = {
    "vision_config.image_size": 64,
    "vision_config.output_channels": 40,
    "vision_config.num_pos_feats": 20,
    "vision_config.window_size": 3,
    "vision_config.global_attn_indexes": [1],
    "prompt_encoder_config.hidden_size": 40,
    "prompt_encoder_config.image_size": 64,
    "mask_decoder_config.hidden_size": 40,
    "mask_decoder_config.iou_head_hidden_dim": 36,
    "mask_decoder_config.iou_head_depth": 2,
}
VIT_MAE = {
    "decoder_hidden_size": 32,
    "decoder_intermediate_size": 56,
    "decoder_num_attention_heads": 4,
    "decoder_num_hidden_layers": 2,
}
VIDEO = {"num_frames": 4}


PLAIN = {
    **rows(
        "ViTForImageClassification DeiTForImageClassificationWithTeacher BeitForImageClassification "
        "Data2VecVisionForImageClassification Dinov2ForImageClassification Dinov2WithRegistersForImageClassification "
        "DINOv3ViTModel IJepaForImageClassification ViTMSNForImageClassification SiglipVisionModel MLCDVisionModel "
        "CLIPVisionModelWithProjection Aimv2VisionModel PixtralVisionModel VitDetModel InternVLVisionModel "
        "PixioModel"
    ),
    "Idefics3VisionTransformer": Row(
        "pixel_values", dims="none", static="it loops over the images of the batch to find the positions of patches"
    ),
    # Its mask is random unless the noise that it is made of is an input.
    "ViTMAEModel": Row("pixel_values noise"),
    "ViTMAEForPreTraining": Row("pixel_values noise", VIT_MAE),
    "BeitModel": Row("pixel_values", {"use_relative_position_bias": True, "use_mean_pooling": False}),
    "YolosForObjectDetection": Row("pixel_values", {"image_size": [32, 48], "num_detection_tokens": 6}),
    "MgpstrForSceneTextRecognition": Row(
        "pixel_values",
        {"image_size": [16, 32], "max_token_length": 5, "num_bpe_labels": 60, "num_wordpiece_labels": 50},
    ),
    "VitPoseForPoseEstimation": Row(
        "pixel_values",
        {
            "backbone_config.model_type": "vitpose_backbone",
            "backbone_config.image_size": [32, 24],
            "backbone_config.patch_size": [8, 8],
            "backbone_config.out_indices": [2],
            "backbone_config.num_experts": 1,
            "zoo_image": [32, 24],
        },
    ),
    "EomtForUniversalSegmentation": Row("pixel_values", {"num_queries": 7, "num_blocks": 1}),
    "SegGptModel": Row(
        "pixel_values:segments prompt_pixel_values:segments prompt_masks:segments",
        {
            "image_size": [64, 32],
            "pretrain_image_size": 32,
            "mlp_dim": 80,
            "merge_index": 0,
            "intermediate_hidden_state_indices": [1, 1],
        },
    ),
    "SamModel": Row("pixel_values input_points", SAM),
}
PYRAMIDS = {
    "PvtForImageClassification": Row("pixel_values", {**PYRAMID, **FOUR_HEADS}),
    "PvtV2ForImageClassification": Row("pixel_values", {**PYRAMID, **FOUR_HEADS}),
    "SegformerForSemanticSegmentation": Row("pixel_values", {**PYRAMID, **FOUR_HEADS, "decoder_hidden_size": 20}),
    "GLPNForDepthEstimation": Row("pixel_values", {**PYRAMID, **FOUR_HEADS, "decoder_hidden_size": 20}),
    "SwinForImageClassification": Row("pixel_values", WINDOWS),
    "Swinv2ForImageClassification": Row("pixel_values", {**WINDOWS, "pretrained_window_sizes": [0, 0]}),
    "DonutSwinModel": Row("pixel_values", WINDOWS),
    "MaskFormerSwinModel": Row("pixel_values", WINDOWS),
    "Swin2SRForImageSuperResolution": Row("pixel_values", {**WINDOWS, "patch_size": 1, "image_size": 16}),
    "FocalNetForImageClassification": Row(
        "pixel_values",
        {"embed_dim": 16, "hidden_sizes": [24, 32], "depths": [1, 2], "focal_levels": [2, 2], "focal_windows": [3, 3]},
    ),
    "HieraForImageClassification": Row(
        "pixel_values",
        {
            "embed_dim": 24,
            "image_size": [32, 32],
            "patch_size": [3, 3],
            "patch_stride": [2, 2],
            "patch_padding": [1, 1],
            "depths": [1, 1, 2],
            "num_heads": [1, 2, 4],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, True, False],
        },
    ),
    "CvtForImageClassification": Row(
        "pixel_values", {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]}
    ),
    "LevitForImageClassification": Row(
        "pixel_values",
        {
            "hidden_sizes": [32, 40, 48],
            "num_attention_heads": [2, 3, 4],
            "depths": [2, 1, 2],
            "key_dim": [8, 8, 8],
            "image_size": 64,
            "patch_size": 16,
        },
    ),
    "EfficientFormerForImageClassification": Row(
        "pixel_values",
        {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 2], "dim": 40, "resolution": 2, "zoo_image": 64},
    ),
    "SwiftFormerForImageClassification": Row(
        "pixel_values", {"embed_dims": [16, 24, 32, 40], "depths": [1, 1, 2, 1], "image_size": 64}
    ),
    "VJEPA2ForVideoClassification": Row(
        "pixel_values_videos",
        {
            "crop_size": 32,
            "frames_per_clip": 4,
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
            "num_pooler_layers": 1,
        },
    ),
}
CONVOLUTIONS = {
    "ResNetForImageClassification": Row("pixel_values", RESNET),
    "BitForImageClassification": Row("pixel_values", {**RESNET, "hidden_sizes": [32, 48, 64, 80], "num_groups": 4}),
    "RegNetForImageClassification": Row("pixel_values", {**RESNET, "groups_width": 8}),
    "ConvNextForImageClassification": Row("pixel_values", {**PYRAMID, "patch_size": 4}),
    "ConvNextV2ForImageClassification": Row("pixel_values", {**PYRAMID, "patch_size": 4}),
    "DINOv3ConvNextModel": Row("pixel_values", PYRAMID),
    "PoolFormerForImageClassification": Row("pixel_values", {**PYRAMID, "zoo_image": 64}),
    "VanForImageClassification": Row("pixel_values", PYRAMID),
    "EfficientNetForImageClassification": Row(
        "pixel_values",
        {
            "image_size": 64,
            "hidden_dim": 64,
            "kernel_sizes": [3, 5, 3],
            "in_channels": [160, 320, 480],
            "out_channels": [320, 480, 640],
            "strides": [1, 2, 2],
            "num_block_repeats": [1, 2, 1],
            "expand_ratios": [1, 3, 3],
            "width_coefficient": 0.05,
            "depth_coefficient": 1.0,
        },
    ),
    "MobileNetV1ForImageClassification": Row("pixel_values", {"depth_multiplier": 0.25, "image_size": 64}),
    "MobileNetV2ForImageClassification": Row("pixel_values", {"depth_multiplier": 0.25, "image_size": 64}),
    "MobileNetV2ForSemanticSegmentation": Row("pixel_values", {"depth_multiplier": 0.25, "image_size": 64}),
    "MobileViTForImageClassification": Row(
        "pixel_values",
        {
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 12, 16, 20, 24, 28, 48],
            "patch_size": 2,
            "image_size": 64,
        },
    ),
    "MobileViTV2ForImageClassification": Row(
        "pixel_values",
        {
            "base_attn_unit_dims": [16, 24, 32],
            "n_attn_blocks": [1, 1, 1],
            "width_multiplier": 0.5,
            "patch_size": 2,
            "image_size": 64,
        },
    ),
    "TextNetForImageClassification": Row(
        "pixel_values", {"stem_out_channels": 16, "hidden_sizes": [16, 16, 24, 32, 40], "image_size": [64, 64]}
    ),
    "HGNetV2ForImageClassification": Row("pixel_values", {**HGNET, "zoo_image": 64}),
    "SuperPointForKeypointDetection": Row(
        "pixel_values",
        {
            "encoder_hidden_sizes": [16, 16, 24, 24],
            "decoder_hidden_size": 32,
            "descriptor_decoder_dim": 32,
            "zoo_image": 64,
        },
    ),
}
HEADS = {
    "DetrForObjectDetection": Row("pixel_values", DETECTOR),
    # Its mask head normalises the width plus the heads, and parts of the width, in groups of 8.
    "DetrForSegmentation": Row(
        "pixel_values",
        {
            **DETECTOR,
            "backbone_config.out_features": ["stage1", "stage2", "stage3", "stage4"],
            "d_model": 64,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
        },
    ),
    "ConditionalDetrForObjectDetection": Row("pixel_values", DETECTOR),
    "DabDetrForObjectDetection": Row("pixel_values", DETECTOR),
    "TableTransformerForObjectDetection": Row("pixel_values", DETECTOR),
    "DeformableDetrForObjectDetection": Row(
        "pixel_values",
        {
            **DETECTOR,
            "backbone_config.out_features": ["stage2", "stage3", "stage4"],
            "num_feature_levels": 3,
            "d_model": 64,
            "disable_custom_kernels": True,
        },
    ),
    "RTDetrForObjectDetection": Row("pixel_values", RT_DETR),
    "RTDetrV2ForObjectDetection": Row("pixel_values", RT_DETR),
    "DFineForObjectDetection": Row(
        "pixel_values",
        {
            **{k: v for k, v in RT_DETR.items() if not k.startswith("backbone_config.")},
            "backbone_config.model_type": "hgnet_v2",
            **{f"backbone_config.{k}": v for k, v in HGNET.items()},
            "backbone_config.out_features": ["stage2", "stage3", "stage4"],
            "encoder_in_channels": [24, 32, 40],
            "lqe_hidden_dim": 16,
        },
    ),
    "UperNetForSemanticSegmentation": Row(
        "pixel_values",
        {
            **TINY_RESNET,
            "backbone_config.out_features": ["stage1", "stage2", "stage3", "stage4"],
            "auxiliary_in_channels": 40,
            "auxiliary_channels": 20,
            "pool_scales": [1, 2],
        },
    ),
    "DPTForDepthEstimation": Row(
        "pixel_values",
        {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 20, 24, 28],
            "fusion_hidden_size": 24,
        },
    ),
    "DepthAnythingForDepthEstimation": Row(
        "pixel_values",
        {
            **DINO_BACKBONE,
            "reassemble_hidden_size": 48,
            "neck_hidden_sizes": [16, 20, 24, 28],
            "fusion_hidden_size": 24,
            "head_hidden_size": 12,
        },
    ),
    "ZoeDepthForDepthEstimation": Row(
        "pixel_values",
        {
            "backbone_config.model_type": "beit",
            "backbone_config.num_hidden_layers": 4,
            "backbone_config.out_indices": [1, 2, 3, 4],
            "backbone_config.reshape_hidden_states": False,
            "neck_hidden_sizes": [16, 20, 24, 28],
            "fusion_hidden_size": 24,
            "bottleneck_features": 24,
            "num_attractors": [4, 3, 2, 1],
            "bin_embedding_dim": 20,
            "num_relative_features": 12,
            "bin_configurations": [{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
        },
    ),
    "VitMatteForImageMatting": Row(
        "pixel_values",
        {
            "backbone_config.model_type": "vitdet",
            "backbone_config.num_channels": 4,
            "backbone_config.out_features": ["stage2"],
            "backbone_config.image_size": 64,
            "backbone_config.patch_size": 16,
            "hidden_size": 48,
            "convstream_hidden_sizes": [12, 16, 20],
            "fusion_hidden_sizes": [24, 20, 16, 12],
        },
    ),
    "Mask2FormerForUniversalSegmentation": Row(
        "pixel_values",
        {
            "backbone_config.model_type": "swin",
            **{f"backbone_config.{k}": v for k, v in WINDOWS.items()},
            "backbone_config.depths": [1, 1, 1, 1],
            "backbone_config.num_heads": [2, 2, 4, 4],
            "backbone_config.image_size": 64,
            "backbone_config.out_features": ["stage1", "stage2", "stage3", "stage4"],
            "backbone_config.patch_size": 4,
            "feature_size": 64,
            "hidden_dim": 64,
            "mask_feature_size": 64,
            "encoder_feedforward_dim": 80,
            "dim_feedforward": 80,
            "decoder_layers": 3,
            "num_queries": 7,
        },
    ),
    "MaskFormerForInstanceSegmentation": Row(
        "pixel_values",
        {
            "backbone_config.model_type": "swin",
            **{f"backbone_config.{k}": v for k, v in WINDOWS.items()},
            "backbone_config.depths": [1, 1, 1, 1],
            "backbone_config.num_heads": [2, 2, 4, 4],
            "backbone_config.image_size": 64,
            "backbone_config.out_features": ["stage1", "stage2", "stage3", "stage4"],
            "backbone_config.patch_size": 4,
            "decoder_config.model_type": "detr",
            "decoder_config.num_queries": 7,
            "fpn_feature_size": 64,
            "mask_feature_size": 64,
        },
    ),
}
VIDEOS = {
    "TimesformerForVideoClassification": Row("pixel_values:frames", VIDEO),
    "VideoMAEForVideoClassification": Row("pixel_values:frames", VIDEO),
    "VivitForVideoClassification": Row("pixel_values:frames", {**VIDEO, "tubelet_size": [2, 8, 8]}),
}
VISION: dict[str, Row] = batch_only({**PLAIN, **PYRAMIDS, **CONVOLUTIONS, **HEADS, **VIDEOS})
