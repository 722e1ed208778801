"""The models that the table of loaders is made of: small ones with random weights, two layers, several heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["MODELS", "Model"]


@dataclass(frozen=True)
class Model:
    name: str
    task: str
    architecture: str
    config: str
    options: dict[str, Any]
    noise: float = 0.3  # added to the weights


_TEXT = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
_PAIRS = {**_TEXT, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
_OPT = {**{n: v for n, v in _TEXT.items() if n != "intermediate_size"}, "ffn_dim": 48, "word_embed_proj_dim": 32}
_DISTIL = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}
_VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
_STAGES = {"depths": [1, 2], "hidden_sizes": [16, 32]}
_T5 = {
    "vocab_size": 60,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_BART = {
    "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
_GENERATION, _IMAGES, _PAIR = "text generation", "image classification", "text to text"

MODELS = (
    Model("Llama", _GENERATION, "LlamaForCausalLM", "LlamaConfig", _PAIRS),
    Model("Qwen2", _GENERATION, "Qwen2ForCausalLM", "Qwen2Config", _PAIRS),
    Model("OPT", _GENERATION, "OPTForCausalLM", "OPTConfig", _OPT),
    Model("GPT-2", _GENERATION, "GPT2LMHeadModel", "GPT2Config", _GPT2),
    Model("GPT-NeoX", _GENERATION, "GPTNeoXForCausalLM", "GPTNeoXConfig", {**_TEXT, "rotary_pct": 0.5}),
    Model("BERT", "text classification", "BertForSequenceClassification", "BertConfig", _TEXT),
    Model("RoBERTa", "token classification", "RobertaForTokenClassification", "RobertaConfig", _TEXT),
    Model("DistilBERT", "fill mask", "DistilBertForMaskedLM", "DistilBertConfig", _DISTIL),
    Model(
        "ELECTRA", "question answering", "ElectraForQuestionAnswering", "ElectraConfig", {**_TEXT, "embedding_size": 32}
    ),
    Model("DeBERTa-v2", "feature extraction", "DebertaV2Model", "DebertaV2Config", _TEXT),
    Model("ViT", _IMAGES, "ViTForImageClassification", "ViTConfig", _VIT),
    Model("ResNet", _IMAGES, "ResNetForImageClassification", "ResNetConfig", {**_STAGES, "embedding_size": 16}, 0.05),
    Model("ConvNeXt", _IMAGES, "ConvNextForImageClassification", "ConvNextConfig", {**_STAGES, "num_stages": 2}, 0.05),
    Model("T5", _PAIR, "T5ForConditionalGeneration", "T5Config", _T5),
    Model("BART", _PAIR, "BartForConditionalGeneration", "BartConfig", _BART),
)
