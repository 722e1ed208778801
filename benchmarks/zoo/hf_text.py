"""Language models: encoders, decoders, encoder-decoders."""

from __future__ import annotations

from benchmarks.zoo.hf_build import Row, rows

__all__ = ["TEXT"]

PLAIN = "input_ids attention_mask"
SLIDING = ["sliding_attention", "full_attention"]
PAIR = "input_ids attention_mask decoder_input_ids"


ENCODERS = {
    **rows(
        "BertForMaskedLM BertForSequenceClassification BertModel AlbertForMaskedLM "
        "CamembertForMaskedLM ConvBertForMaskedLM Data2VecTextForMaskedLM DebertaForMaskedLM DebertaV2ForMaskedLM "
        "ElectraForPreTraining ErnieForMaskedLM FlaubertWithLMHeadModel IBertForMaskedLM "
        "MegatronBertForMaskedLM MPNetForMaskedLM MraForMaskedLM NezhaForMaskedLM RemBertForMaskedLM "
        "RobertaForMaskedLM RobertaPreLayerNormForMaskedLM RoFormerForMaskedLM "
        "XLMRobertaForMaskedLM XLMRobertaXLForMaskedLM XLMModel "
        "YosoForMaskedLM NystromformerForMaskedLM ModernBertForMaskedLM "
        "EsmForMaskedLM BigBirdForMaskedLM "
        "LongformerForMaskedLM TapasModel T5EncoderModel DPRQuestionEncoder "
        "BertGenerationEncoder XLNetLMHeadModel "
        "DistilBertForMaskedLM EuroBertForMaskedLM NomicBertModel ",
        PLAIN,
    ),
    "ReformerForMaskedLM": Row(
        PLAIN,
        {
            "axial_pos_shape": [4, 16],
            "axial_pos_embds_dim": [16, 32],
            "attn_layers": ["local", "lsh"],
            "local_attn_chunk_length": 4,
            "lsh_attn_chunk_length": 4,
            "num_buckets": 2,
            "hash_seed": 0,
        },
    ),
    "PerceiverForMaskedLM": Row(
        "inputs attention_mask",
        {
            "num_latents": 6,
            "d_latents": 40,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "qk_channels": 32,
            "v_channels": 40,
        },
    ),
    "MobileBertForMaskedLM": Row(PLAIN, {"embedding_size": 32, "intra_bottleneck_size": 32}),
    "BrosForTokenClassification": Row("input_ids attention_mask bbox:unit", {"hidden_size": 64}),
    "LayoutLMForMaskedLM": Row("input_ids attention_mask bbox"),
    "LiltForTokenClassification": Row("input_ids attention_mask bbox"),
    "LukeForMaskedLM": Row(PLAIN, {"entity_vocab_size": 30, "entity_emb_size": 24}),
    "RoCBertForMaskedLM": Row(
        PLAIN,
        {
            "pronunciation_vocab_size": 30,
            "pronunciation_embed_dim": 20,
            "shape_vocab_size": 36,
            "shape_embed_dim": 24,
        },
    ),
    "MarkupLMForTokenClassification": Row(
        PLAIN,
        {
            "max_xpath_tag_unit_embeddings": 20,
            "max_xpath_subs_unit_embeddings": 24,
            "tag_pad_id": 18,
            "subs_pad_id": 22,
            "xpath_unit_hidden_size": 8,
            "max_depth": 5,
        },
    ),
    "CanineForTokenClassification": Row(PLAIN, {"num_hash_buckets": 64, "local_transformer_stride": 4}),
    "FunnelForMaskedLM": Row(PLAIN, {"block_sizes": [1, 2], "d_head": 12}),
    # With a mask its logits are the lowest floats there are, next to which no difference shows.
    "SplinterForQuestionAnswering": Row("input_ids", {"question_token_id": 50}),
    "BertForQuestionAnswering": Row("input_ids attention_mask token_type_ids", {"num_labels": 2}),
    "SqueezeBertForMaskedLM": Row(PLAIN, {"embedding_size": 48}),
    "XmodForMaskedLM": Row(PLAIN, {"default_language": "en_XX"}),
    "FNetForMaskedLM": Row("input_ids token_type_ids"),
}
DECODERS = {
    **rows(
        "GPT2LMHeadModel GPTNeoXForCausalLM GPTNeoXJapaneseForCausalLM GPTJForCausalLM "
        "CodeGenForCausalLM GPTBigCodeForCausalLM OpenAIGPTLMHeadModel OPTForCausalLM BloomForCausalLM "
        "MptForCausalLM FalconForCausalLM PersimmonForCausalLM PhiForCausalLM Phi3ForCausalLM PhimoeForCausalLM "
        "LlamaForCausalLM MistralForCausalLM MixtralForCausalLM MinistralForCausalLM GemmaForCausalLM "
        "Gemma2ForCausalLM VaultGemmaForCausalLM "
        "Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM "
        "OlmoForCausalLM Olmo2ForCausalLM OlmoeForCausalLM FlexOlmoForCausalLM CohereForCausalLM "
        "GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeSharedForCausalLM "
        "Starcoder2ForCausalLM BioGptForCausalLM XGLMForCausalLM "
        "MambaForCausalLM FalconMambaForCausalLM RwkvForCausalLM "
        "FalconH1ForCausalLM "
        "Dots1ForCausalLM DiffLlamaForCausalLM "
        "DogeForCausalLM Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM GlmForCausalLM Glm4ForCausalLM "
        "Glm4MoeForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM "
        "Llama4ForCausalLM NemotronForCausalLM "
        "SeedOssForCausalLM SmolLM3ForCausalLM ApertusForCausalLM ArceeForCausalLM BitNetForCausalLM "
        "ModernBertDecoderForCausalLM MegaForCausalLM OpenLlamaForCausalLM "
        "AfmoeForCausalLM CwmForCausalLM NanoChatForCausalLM Ministral3ForCausalLM "
        "Qwen3_5ForCausalLM OlmoHybridForCausalLM SolarOpenForCausalLM Jais2ForCausalLM "
        "MiniMaxM2ForCausalLM ExaoneMoeForCausalLM NemotronHForCausalLM AriaTextForCausalLM BertLMHeadModel "
        "TrOCRForCausalLM ProphetNetForCausalLM BartForCausalLM",
        PLAIN,
    ),
    "GPTNeoForCausalLM": Row(PLAIN, {"attention_types": [[["global", "local"], 1]]}),
    "StableLmForCausalLM": Row(PLAIN, {"partial_rotary_factor": 0.5}),
    # Step by step: the library's own kernel for whole chunks calls a tensor as if it were a function.
    "xLSTMForCausalLM": Row(PLAIN, {"chunk_size": 16}),
    "Mamba2ForCausalLM": Row(PLAIN, {"num_heads": 4, "head_dim": 24, "n_groups": 2}),
    "JambaForCausalLM": Row(PLAIN, {"attn_layer_period": 2, "attn_layer_offset": 1}),
    "BambaForCausalLM": Row(PLAIN, {"attn_layer_indices": [1]}),
    # With a mask they ask whether all of it is one, which no export can follow. Two layers share their attention.
    "ZambaForCausalLM": Row(
        "input_ids",
        {
            "num_hidden_layers": 5,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "n_mamba_heads": 2,
            "attention_hidden_size": 96,
        },
    ),
    "Zamba2ForCausalLM": Row(
        "input_ids",
        {
            "layers_block_type": ["mamba", "hybrid"],
            "n_mamba_heads": 4,
            "adapter_rank": 8,
            "num_key_value_heads": 4,
        },
    ),
    "GraniteMoeHybridForCausalLM": Row(PLAIN, {"layer_types": ["mamba", "attention"]}),
    "RecurrentGemmaForCausalLM": Row(PLAIN, {"num_hidden_layers": 3, "attention_window_size": 4}),
    "Gemma3nForCausalLM": Row(
        PLAIN,
        {
            "layer_types": SLIDING,
            "num_kv_shared_layers": 0,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "Gemma3ForCausalLM": Row(PLAIN, {"layer_types": SLIDING}),
    "Olmo3ForCausalLM": Row(PLAIN, {"layer_types": SLIDING}),
    "Cohere2ForCausalLM": Row(PLAIN, {"layer_types": SLIDING}),
    "Exaone4ForCausalLM": Row(PLAIN, {"layer_types": SLIDING}),
    "GptOssForCausalLM": Row(PLAIN, {"layer_types": SLIDING}),
    "Qwen3NextForCausalLM": Row(PLAIN, {"layer_types": ["linear_attention", "full_attention"]}),
    "MiniMaxForCausalLM": Row(PLAIN, {"layer_types": ["linear_attention", "full_attention"], "block_size": 4}),
    "Lfm2MoeForCausalLM": Row(PLAIN, {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "Lfm2ForCausalLM": Row(PLAIN, {"layer_types": ["conv", "full_attention"]}),
    "DeepseekV2ForCausalLM": Row(PLAIN, {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1}),
    "DeepseekV3ForCausalLM": Row(PLAIN, {"num_key_value_heads": 4}),
    "LongcatFlashForCausalLM": Row(
        PLAIN, {"num_key_value_heads": 4, "head_dim": 8, "zero_expert_num": 2, "num_layers": 1}
    ),
    "CpmAntForCausalLM": Row("input_ids", {"dim_head": 12, "prompt_length": 4, "prompt_types": 4, "segment_types": 4}),
    "DbrxForCausalLM": Row(
        PLAIN,
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 80, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "CTRLLMHeadModel": Row(PLAIN, {"dff": 80}),
    "HeliumForCausalLM": Row(PLAIN, {"head_dim": 12}),
    "JetMoeForCausalLM": Row(PLAIN, {"kv_channels": 12}),
    "ImageGPTForImageClassification": Row("input_ids position_ids"),
}
ENCODER_DECODERS = {
    **rows(
        "T5ForConditionalGeneration MT5ForConditionalGeneration UMT5ForConditionalGeneration "
        "LongT5ForConditionalGeneration SwitchTransformersForConditionalGeneration "
        "BartForConditionalGeneration MBartForConditionalGeneration MvpForConditionalGeneration "
        "PLBartForConditionalGeneration PegasusForConditionalGeneration PegasusXForConditionalGeneration "
        "BigBirdPegasusForConditionalGeneration MarianMTModel BlenderbotForConditionalGeneration "
        "BlenderbotSmallForConditionalGeneration M2M100ForConditionalGeneration NllbMoeForConditionalGeneration "
        "ProphetNetForConditionalGeneration XLMProphetNetForConditionalGeneration "
        "SeamlessM4TForTextToText",
        PAIR,
    ),
    "T5GemmaForConditionalGeneration": Row(PAIR, {"encoder.model_type": "gemma2", "decoder.model_type": "gemma2"}),
    "FSMTForConditionalGeneration": Row(PAIR, {"src_vocab_size": 100, "tgt_vocab_size": 104}),
    "LEDForConditionalGeneration": Row(
        PAIR, {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64}
    ),
    "UdopForConditionalGeneration": Row(
        "input_ids attention_mask bbox:unit decoder_input_ids", {"max_2d_position_embeddings": 1024}
    ),
}
TEXT: dict[str, Row] = {**ENCODERS, **DECODERS, **ENCODER_DECODERS}
