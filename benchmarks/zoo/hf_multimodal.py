"""Models of several kinds of input: image and text, layout and text, audio and text."""

from __future__ import annotations

from benchmarks.zoo.hf_build import Row, batch_only, rows

__all__ = ["MULTIMODAL"]

PICTURE = "input_ids attention_mask pixel_values"
CHAT = "input_ids:image attention_mask:image pixel_values"
CLIP_LLAMA = {
    "vision_config.model_type": "clip_vision_model",
    "text_config.model_type": "llama",
    "image_token_index": 95,
    "image_token_id": 95,
    "zoo_image_tokens": 16,
}
SIGLIP_GEMMA = {
    **CLIP_LLAMA,
    "vision_config.model_type": "siglip_vision_model",
    "text_config.model_type": "gemma",
}
QFORMER = {
    "num_query_tokens": 4,
    "image_token_index": 95,
    "image_text_hidden_size": 24,
    "qformer_config.encoder_hidden_size": 48,
    "text_config.model_type": "opt",
    "text_config.word_embed_proj_dim": 48,
    "zoo_image_tokens": 4,
}


CONTRASTIVE = {
    **rows(
        "CLIPModel ChineseCLIPModel AltCLIPModel MetaClip2Model Aimv2Model BlipModel "
        "CLIPForImageClassification SiglipForImageClassification",
        PICTURE,
    ),
    "SiglipModel": Row(PICTURE, {"text_config.projection_size": 48}),
    "CLIPTextModelWithProjection": Row("input_ids attention_mask"),
    "CLIPForImageClassification": Row("pixel_values"),
    "SiglipForImageClassification": Row("pixel_values"),
    "AlignModel": Row(
        PICTURE,
        {
            "vision_config.image_size": 64,
            "vision_config.hidden_dim": 40,
            "vision_config.kernel_sizes": [3, 5],
            "vision_config.in_channels": [32, 16],
            "vision_config.out_channels": [16, 40],
            "vision_config.strides": [1, 2],
            "vision_config.num_block_repeats": [1, 2],
            "vision_config.expand_ratios": [1, 3],
            "vision_config.width_coefficient": 1.0,
            "vision_config.depth_coefficient": 1.0,
        },
    ),
    "GroupViTModel": Row(
        PICTURE,
        {
            "vision_config.depths": [1, 1, 1],
            "vision_config.num_group_tokens": [6, 4, 0],
            "vision_config.num_output_groups": [6, 4, 4],
            "vision_config.num_hidden_layers": 3,
            "projection_intermediate_dim": 40,
        },
    ),
    "FlavaModel": Row(PICTURE, {f"{part}_config.num_hidden_layers": 2 for part in ("text", "image", "multimodal")}),
    "XCLIPModel": Row(
        "input_ids attention_mask pixel_values:frames",
        {
            "vision_config.num_frames": 4,
            "vision_config.mit_hidden_size": 40,
            "vision_config.mit_intermediate_size": 56,
            "vision_config.mit_num_attention_heads": 4,
            "prompt_num_attention_heads": 4,
        },
    ),
    "VisionTextDualEncoderModel": Row(PICTURE, {"vision_config.model_type": "vit", "text_config.model_type": "bert"}),
    "CLIPSegForImageSegmentation": Row(
        PICTURE,
        {"extract_layers": [0, 1], "reduce_dim": 24, "decoder_intermediate_size": 40, "decoder_num_attention_heads": 4},
    ),
    "OwlViTForObjectDetection": Row(PICTURE, {"projection_dim": 48}),
    "Owlv2ForObjectDetection": Row(PICTURE, {"projection_dim": 48}),
}
FUSED = {
    "ViltForQuestionAnswering": Row(PICTURE),
    "BridgeTowerModel": Row(
        PICTURE,
        {
            "text_config.num_hidden_layers": 2,
            "vision_config.num_hidden_layers": 2,
            "vision_config.hidden_size": 128,
        },
    ),
    "GitForCausalLM": Row(PICTURE),
    "BlipForConditionalGeneration": Row(PICTURE, {"text_config.encoder_hidden_size": 48}),
    "BlipForQuestionAnswering": Row(
        "input_ids attention_mask decoder_input_ids pixel_values", {"text_config.encoder_hidden_size": 48}
    ),
    "LxmertModel": Row(
        "input_ids attention_mask visual_feats visual_pos",
        {"l_layers": 2, "x_layers": 2, "r_layers": 2, "visual_feat_dim": 20},
    ),
    "VisualBertModel": Row("input_ids attention_mask visual_embeds", {"visual_embedding_dim": 20}),
    "LayoutLMv3ForTokenClassification": Row(
        "input_ids attention_mask bbox pixel_values",
        {"input_size": 32, "coordinate_size": 8, "shape_size": 8, "max_2d_position_embeddings": 1024, "zoo_image": 32},
    ),
    "VisionEncoderDecoderModel": Row(
        "pixel_values decoder_input_ids",
        {
            "encoder.model_type": "vit",
            "decoder.model_type": "bert",
            "decoder.is_decoder": True,
            "decoder.add_cross_attention": True,
        },
    ),
    "EncoderDecoderModel": Row(
        "input_ids attention_mask decoder_input_ids",
        {
            "encoder.model_type": "bert",
            "decoder.model_type": "bert",
            "decoder.is_decoder": True,
            "decoder.add_cross_attention": True,
        },
    ),
    "Pix2StructForConditionalGeneration": Row(
        "flattened_patches decoder_input_ids", {"vision_config.patch_embed_hidden_size": 56, "text_config.d_kv": 12}
    ),
}
CHATS = {
    "LlavaForConditionalGeneration": Row(CHAT, CLIP_LLAMA),
    "VipLlavaForConditionalGeneration": Row(CHAT, {**CLIP_LLAMA, "vision_feature_layers": [-2, -1]}),
    "PaliGemmaForConditionalGeneration": Row(CHAT, {**SIGLIP_GEMMA, "projection_dim": 48, "hidden_size": 48}),
    "Gemma3ForConditionalGeneration": Row(
        CHAT,
        {
            "vision_config.model_type": "siglip_vision_model",
            "vision_config.vision_use_head": False,
            "mm_tokens_per_image": 4,
            "image_token_index": 95,
            "zoo_image_tokens": 4,
        },
    ),
    "InternVLForConditionalGeneration": Row(
        CHAT, {"text_config.model_type": "qwen2", "image_token_id": 95, "zoo_image_tokens": 4}
    ),
    "Blip2ForConditionalGeneration": Row(CHAT, QFORMER),
    "Idefics3ForConditionalGeneration": Row(
        "input_ids:image attention_mask:image pixel_values:images",
        {"text_config.model_type": "llama", "image_token_id": 95, "scale_factor": 2, "zoo_image_tokens": 4},
    ),
    "AyaVisionForConditionalGeneration": Row(
        CHAT,
        {
            "vision_config.model_type": "siglip_vision_model",
            "text_config.model_type": "cohere2",
            "image_token_index": 95,
            "adapter_layer_norm_eps": 1e-6,
            "downsample_factor": 2,
            "zoo_image_tokens": 4,
        },
    ),
    "Kosmos2ForConditionalGeneration": Row(
        CHAT + " image_embeds_position_mask:image",
        {"latent_query_num": 4, "zoo_image_token": 95, "zoo_image_tokens": 4},
    ),
}
MULTIMODAL: dict[str, Row] = batch_only({**CONTRASTIVE, **FUSED, **CHATS})
