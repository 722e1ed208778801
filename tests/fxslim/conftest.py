"""Tiny Hugging Face models, made once: a causal language model with its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from tests.fxslim.samples import POSITIONS, TEXT, VOCABULARY


@pytest.fixture(scope="session")
def pristine_opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that no test writes to."""
    directory = tmp_path_factory.mktemp("models") / "opt"
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


@pytest.fixture
def tiny_opt(pristine_opt: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine_opt, tmp_path / "opt"))
