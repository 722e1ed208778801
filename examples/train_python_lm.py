"""Train a small language model on Python's own source text: the bundled one (OPT), or a LLaMA for benchmarks.

The text is the standard library of the running interpreter, split by a hash of the file's path, so that the held-out
files never depend on order. A byte-level BPE with 1,024 entries is trained on the training files first.

    python examples/train_python_lm.py --out fxslim/models/opt-python --minutes 25
    python examples/train_python_lm.py --architecture llama --out build/llama-python --minutes 40

Leaves a Hugging Face directory (float16 weights, tokenizer, `calib.txt`, `valid.txt`) and `training.json`, which states
the held-out perplexity and how it was measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import random
import sysconfig
import time
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WINDOW = 256  # tokens in a window, for training, calibration and evaluation alike
HELD_OUT_SHARE = 0.05
CALIBRATION_BYTES = 220_000
VALIDATION_BYTES = 90_000
SEED = 0


def source_files() -> tuple[list[Path], list[Path]]:
    """The standard library's files: (training, held out)."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(f for f in root.rglob("*.py") if "site-packages" not in f.parts and f.stat().st_size < 300_000)
    training, held_out = [], []
    for file in files:
        digest = hashlib.sha256(str(file.relative_to(root)).encode()).digest()
        (held_out if digest[0] < 256 * HELD_OUT_SHARE else training).append(file)
    return training, held_out


def read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")


def sample_text(files: list[Path], size: int, seed: int) -> str:
    """About `size` bytes: one slice of at most 6 KB of each file, in a random order."""
    rng = random.Random(seed)
    files = files[:]
    rng.shuffle(files)
    parts: list[str] = []
    total = 0
    for file in files:
        lines = read(file).splitlines(keepends=True)
        if len(lines) < 40:
            continue
        start = rng.randrange(0, max(1, len(lines) - 150))
        part = "".join(lines[start : start + 150])[:6000]
        parts.append(part if part.isascii() else "")
        total += len(parts[-1])
        if total >= size:
            break
    return "".join(parts)


def train_tokenizer(files: list[Path]) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    texts = (read(f) for f in files)
    bpe.train_from_iterator(texts, vocab_size=1024, min_frequency=2, special_tokens=["<eos>"], show_progress=False)
    names = ["input_ids", "attention_mask"]  # segments, which a tokenizer tells by default, a decoder does not take
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<eos>", pad_token="<eos>", model_input_names=names
    )


def opt(vocabulary: int) -> tuple[PreTrainedModel, str]:
    config = OPTConfig(
        vocab_size=vocabulary, hidden_size=160, word_embed_proj_dim=160, ffn_dim=640, num_hidden_layers=4,
        num_attention_heads=5, max_position_embeddings=WINDOW, dropout=0.0, attention_dropout=0.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, activation_function="relu",
    )  # fmt: skip
    return OPTForCausalLM(config), "OPT, 4 layers, hidden 160, ffn 640, 5 heads"


def llama(vocabulary: int) -> tuple[PreTrainedModel, str]:
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=WINDOW, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config), "LLaMA, 4 layers, hidden 192, ffn 512, 6 heads, 2 key-value heads"


ARCHITECTURES = {"opt": opt, "llama": llama}


def windows(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Token windows: [n, WINDOW] int64; the rest of the text is dropped."""
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
    return ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)


@torch.no_grad()
def perplexity(model: PreTrainedModel, data: torch.Tensor) -> float:
    """exp of the mean cross-entropy over all predicted tokens of the windows."""
    model.eval()
    total = 0.0
    for batch in data.split(16):
        total += float(model(input_ids=batch, labels=batch).loss) * len(batch)
    model.train()
    return math.exp(total / len(data))


def train(model: PreTrainedModel, data: torch.Tensor, valid: torch.Tensor, minutes: float) -> int:
    """Trains for `minutes` of wall time and returns the number of tokens seen."""
    peak, batch = 3e-3, 16
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(SEED)
    start, step, seen = time.monotonic(), 0, 0
    while (share := (time.monotonic() - start) / (minutes * 60)) < 1.0:
        rate = peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(0, len(data) - WINDOW - 1, (batch,), generator=generator)
        ids = torch.stack([data[i : i + WINDOW] for i in index])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + ids.numel()
        if step % 100 == 0:
            print(
                f"{share:6.1%} step {step} loss {float(loss):.3f} valid {perplexity(model, valid[:16]):.2f}", flush=True
            )
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--architecture", choices=list(ARCHITECTURES), default="opt")
    parser.add_argument("--minutes", type=float, default=25.0)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    training, held_out = source_files()
    tokenizer = train_tokenizer(training)
    data = torch.cat([torch.tensor(tokenizer(read(f), verbose=False)["input_ids"], dtype=torch.long) for f in training])
    valid_text = sample_text(held_out, VALIDATION_BYTES, SEED)
    valid = windows(tokenizer, valid_text)
    model, described = ARCHITECTURES[options.architecture](len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(data):,} training tokens", flush=True)
    seen = train(model, data, valid, options.minutes)
    model = model.half().float()  # what is stored is what is measured
    facts = {
        "architecture": f"{described}, byte-level BPE of 1,024 entries",
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_text": f"standard library of CPython {platform.python_version()}, "
        f"{len(data):,} tokens, {seen:,} seen",
        "held_out_perplexity": round(perplexity(model, valid), 3),
        "protocol": f"{len(valid)} non-overlapping windows of {WINDOW} tokens of valid.txt, all predicted tokens",
    }
    model.half().save_pretrained(options.out, safe_serialization=True)
    tokenizer.save_pretrained(options.out)
    (options.out / "calib.txt").write_text(sample_text(training, CALIBRATION_BYTES, SEED + 1), encoding="utf-8")
    (options.out / "valid.txt").write_text(valid_text, encoding="utf-8")
    (options.out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
