"""Audio models and time series: waveforms, spectrograms, codecs, forecasts."""

from __future__ import annotations

from benchmarks.zoo.hf_build import Row, batch_only, rows

__all__ = ["AUDIO"]

WAVE = {
    "conv_dim": (16, 20, 24),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 5,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 20,
    "tdnn_dim": (20, 20, 24),
    "tdnn_kernel": (3, 1, 1),
    "tdnn_dilation": (1, 1, 1),
    "xvector_output_dim": 20,
    "apply_spec_augment": False,
}
FORECAST = {"context_length": 32, "prediction_length": 8, "num_input_channels": 3, "patch_length": 8, "patch_stride": 8}
# The number of mel bins divides by the subsampling factor.
PARAKEET = {
    "num_mel_bins": 16,
    "subsampling_conv_channels": 12,
    "conv_kernel_size": 5,
    "max_position_embeddings": 64,
}
CODEC = {"num_filters": 8, "upsampling_ratios": [4, 2], "codebook_size": 16}


WAVES = {
    **rows(
        "Wav2Vec2ForCTC HubertForCTC WavLMForCTC UniSpeechForCTC UniSpeechSatForCTC Data2VecAudioForCTC "
        "Wav2Vec2ForXVector",
        "input_values",
        **WAVE,
    ),
    "SEWForCTC": Row("input_values", {**WAVE, "squeeze_factor": 2}),
    "SEWDForCTC": Row("input_values", {**WAVE, "squeeze_factor": 2, "position_buckets": 8}),
    "Wav2Vec2ConformerForCTC": Row("input_values", {**WAVE, "conv_depthwise_kernel_size": 5}),
    "Wav2Vec2BertForCTC": Row(
        "input_features",
        {"feature_projection_input_dim": 20, "conv_depthwise_kernel_size": 5, "apply_spec_augment": False},
    ),
    "SpeechT5ForSpeechToText": Row("input_values decoder_input_ids", WAVE),
    "SpeechT5ForTextToSpeech": Row(
        "input_ids decoder_input_values",
        {
            "speech_decoder_prenet_units": 24,
            "speech_decoder_postnet_units": 24,
            "speech_decoder_postnet_layers": 2,
            "reduction_factor": 1,
            "speaker_embedding_dim": 12,
            "encoder_max_relative_position": 8,
            "speech_decoder_prenet_dropout": 0.0,  # drawn at inference too
        },
    ),
    "MoonshineForConditionalGeneration": Row(
        "input_values:whole decoder_input_ids",
        {
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "encoder_num_key_value_heads": 4,
            "decoder_num_key_value_heads": 4,
            "partial_rotary_factor": 0.5,
            "zoo_length": 4000,
        },
    ),
}
SPECTROGRAMS = {
    "WhisperForConditionalGeneration": Row("input_features:mel decoder_input_ids"),
    "WhisperForAudioClassification": Row("input_features:mel", {"classifier_proj_size": 20}),
    "Speech2TextForConditionalGeneration": Row(
        "input_features decoder_input_ids",
        {"input_feat_per_channel": 20, "conv_channels": 32, "conv_kernel_sizes": (3, 3)},
    ),
    "ASTForAudioClassification": Row(
        "input_values:frames", {"patch_size": 8, "frequency_stride": 6, "time_stride": 6, "max_length": 32}
    ),
    "Qwen2AudioEncoder": Row("input_features:mel"),
    "VoxtralEncoder": Row("input_features:mel"),
    "ParakeetForCTC": Row("input_features:bins", {f"encoder_config.{k}": v for k, v in PARAKEET.items()}),
    "ParakeetEncoder": Row("input_features:bins", PARAKEET),
    "ClapModel": Row(
        "input_ids attention_mask input_features:spectrogram",
        {
            "audio_config.spec_size": 64,
            "audio_config.num_mel_bins": 16,
            "audio_config.window_size": 4,
            "audio_config.patch_size": 4,
            "audio_config.depths": [1, 2],
            "audio_config.num_attention_heads": [2, 4],
            "audio_config.num_hidden_layers": 2,
            "audio_config.patch_embeds_hidden_size": 24,
            "audio_config.hidden_size": 48,
            "zoo_length": 256,
        },
    ),
    "UnivNetModel": Row(
        "input_features noise_sequence",
        {
            "model_hidden_channels": 8,
            "model_in_channels": 12,
            "resblock_stride_sizes": [2, 2],
            "resblock_kernel_sizes": [3, 3],
            "resblock_dilation_sizes": [[1, 3], [1, 3]],
            "kernel_predictor_hidden_channels": 12,
            "kernel_predictor_num_blocks": 1,
        },
    ),
    "SpeechT5HifiGan": Row(
        "spectrogram",
        {
            "model_in_dim": 20,
            "upsample_initial_channel": 32,
            "upsample_rates": [4, 2],
            "upsample_kernel_sizes": [8, 4],
            "resblock_kernel_sizes": [3, 5],
            "resblock_dilation_sizes": [[1, 3], [1, 3]],
        },
    ),
    "FastSpeech2ConformerModel": Row(
        "input_ids",
        {
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "encoder_linear_units": 80,
            "decoder_linear_units": 80,
            "speech_decoder_postnet_units": 20,
            "duration_predictor_channels": 20,
            "energy_predictor_channels": 20,
            "pitch_predictor_channels": 20,
            "decoder_kernel_size": 5,
        },
    ),
}
CODECS = {
    "EncodecModel": Row(
        "input_values:channels",
        {**CODEC, "codebook_dim": 48, "sampling_rate": 800, "target_bandwidths": [3.0], "zoo_length": 160},
    ),
    "MimiModel": Row(
        "input_values:channels",
        {
            **CODEC,
            "codebook_dim": 24,
            "vector_quantization_hidden_dimension": 24,
            "num_quantizers": 3,
            "upsample_groups": 48,
            "zoo_length": 160,
            "sampling_rate": 160,
            "frame_rate": 10.0,
        },
    ),
    "DacModel": Row(
        "input_values:channels",
        {
            "encoder_hidden_size": 8,
            "decoder_hidden_size": 32,
            "downsampling_ratios": [2, 4],
            "n_codebooks": 3,
            "codebook_size": 16,
            "upsampling_ratios": [4, 2],
            "zoo_length": 160,
        },
    ),
    "VitsModel": Row(
        "input_ids attention_mask", {"spectrogram_bins": 20, "flow_size": 24, "upsample_initial_channel": 32}
    ),
}
SERIES = {
    "PatchTSTForPrediction": Row("past_values", FORECAST),
    "PatchTSTForClassification": Row("past_values", FORECAST),
    "PatchTSMixerForPrediction": Row("past_values", {**FORECAST, "d_model": 24}),
    "PatchTSMixerForTimeSeriesClassification": Row("past_values", {**FORECAST, "d_model": 24}),
    "DecisionTransformerModel": Row(
        "states actions rewards returns_to_go timesteps", {"n_positions": 64, "max_ep_len": 40, "n_inner": 80}
    ),
}
AUDIO: dict[str, Row] = batch_only({**WAVES, **SPECTROGRAMS, **CODECS, **SERIES})
