"""Tiny language models of the tests, and what they are made of."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

TEXT = "the quick brown fox jumps over the lazy dog and runs away from it. " * 40
VOCABULARY = 300
POSITIONS = 32


def save_opt(directory: Path) -> Path:
    """One layer, with its tokenizer, in `directory`."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=POSITIONS, dropout=0.0, pad_token_id=0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(directory)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT], vocab_size=VOCABULARY, special_tokens=["<eos>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eos>", pad_token="<eos>")
    tokenizer.save_pretrained(directory)
    return directory


def save_untrained_opt(directory: Path) -> Path:
    """Two layers and no tokenizer, with no two logits nearly the same."""
    config = OPTConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=32, word_embed_proj_dim=16,
        max_position_embeddings=48,
    )  # fmt: skip
    torch.manual_seed(0)
    made = OPTForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    made.save_pretrained(directory)
    return directory
