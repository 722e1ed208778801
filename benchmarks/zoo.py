"""What fxslim makes of well-known architectures: groups by kind, unknown operators, proof at a width, ONNX parity.

    python benchmarks/zoo.py [--width 0.5] [--only opt llama] [--out benchmarks/results/zoo.md]

Small configurations with random weights; torchvision and timm are used where they are installed and named as missing
where not.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxslim.api import analyze, apply, capture, make_plan, prove
from fxslim.export import check_onnx, export_onnx

SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]


def _text(model: nn.Module, *, decoder: bool = False) -> Case:
    ids = torch.randint(1, 100, (2, 9))
    kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dims: dict[str, Any] = {name: {0: "batch", 1: "sequence"} for name in kwargs}
    if decoder:
        kwargs["decoder_input_ids"] = ids[:, :7].clone()
        dims["decoder_input_ids"] = {0: "batch", 1: "target_sequence"}
    return model, (), kwargs, dims


def _image(model: nn.Module, size: int = 64) -> Case:
    return model, (torch.randn(2, 3, size, size),), {}, ({0: "batch"},)


def _hf(name: str, config: str, layers: int = 2, **options: Any) -> Callable[[], Case]:
    def make() -> Case:
        import transformers

        settings = {**SMALL, "num_hidden_layers": layers, "use_cache": False, **options}
        model = getattr(transformers, name)(getattr(transformers, config)(**settings))
        return _text(model, decoder=name.startswith("T5"))

    return make


def _torchvision(name: str) -> Callable[[], Case]:
    def make() -> Case:
        shim_torchvision()
        import torchvision

        return _image(getattr(torchvision.models, name)(weights=None))

    return make


def _timm(name: str) -> Callable[[], Case]:
    def make() -> Case:
        shim_torchvision()
        import timm

        return _image(timm.create_model(name, img_size=64, depth=2))

    return make


def shim_torchvision() -> None:
    """Names the two operators without which a torchvision build for another torch does not import."""
    if importlib.util.find_spec("torchvision") is None:
        raise ModuleNotFoundError("torchvision is not installed")
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)


_KEEP: list[Any] = []


def _bundled(name: str) -> Callable[[], Any]:
    def make() -> Any:
        from fxslim.sources import load_model

        return load_model(name)

    return make


GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
OPT = {"ffn_dim": 128, "word_embed_proj_dim": 64}
ZOO: dict[str, Callable[[], Any]] = {
    "bundled:opt-python": _bundled("bundled:opt-python"),
    "bundled:digits-resnet": _bundled("bundled:digits-resnet"),
    "torchvision resnet18": _torchvision("resnet18"),
    "torchvision densenet121": _torchvision("densenet121"),
    "timm vit_tiny": _timm("vit_tiny_patch16_224"),
    "timm deit_tiny_distilled": _timm("deit_tiny_distilled_patch16_224"),
    "HF BERT": _hf("BertModel", "BertConfig"),
    "HF GPT-2": _hf("GPT2LMHeadModel", "GPT2Config", **GPT2),
    "HF OPT": _hf("OPTForCausalLM", "OPTConfig", **OPT),
    "HF LLaMA GQA": _hf("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2),
    "HF Qwen3": _hf("Qwen3ForCausalLM", "Qwen3Config", num_key_value_heads=2, head_dim=16),
    "HF GPT-NeoX": _hf("GPTNeoXForCausalLM", "GPTNeoXConfig"),
    "HF T5": _hf("T5ForConditionalGeneration", "T5Config", **T5),
}


def measure(name: str, width: float) -> dict[str, str]:
    """One row of the table. A shortfall is a sentence, not an absence."""
    torch.manual_seed(0)
    start = time.perf_counter()
    made = ZOO[name]()
    if isinstance(made, tuple):
        model, args, kwargs, dims = made
        with torch.no_grad():
            for parameter in model.parameters():  # zero-initialised biases and heads would let errors pass unseen
                if parameter.dim() == 1 or not bool(parameter.any()):
                    parameter.add_(torch.randn_like(parameter) * 0.05)
        program = capture(model, args, kwargs, dims)
    else:
        program = made.program
    analysis = analyze(program)
    kinds = Counter(g.kind + ("" if g.exact else " (inexact)") for g in analysis.prunable)
    plan = make_plan(analysis, width=width)
    proof = prove(analysis, plan)
    slim = apply(analysis, plan)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(slim, path)
        check = check_onnx(slim, path)
    return {
        "model": name,
        "groups": ", ".join(f"{n} {k}" for k, n in sorted(kinds.items())),
        "unknown operators": ", ".join(analysis.unknown_ops) or "none",
        "parameters": f"{program.parameters():,} → {slim.parameters():,}",
        "proof (relative)": f"{proof.max_error:.1e}" + ("" if proof.ok else " FAILED"),
        "effect of masks": f"{proof.effect:.1e}",
        "ONNX parity": "ok" if check.ok else "FAILED: " + "; ".join(check.failures),
        "seconds": f"{time.perf_counter() - start:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--only", nargs="*", default=[], help="parts of model names")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with suppress(ModuleNotFoundError):
        shim_torchvision()  # before anything imports it: transformers looks for it too
    rows: list[dict[str, str]] = []
    for name in ZOO:
        if options.only and not any(part in name for part in options.only):
            continue
        try:
            rows.append(measure(name, options.width))
        except Exception as error:
            rows.append({"model": name, "groups": f"FAILED: {type(error).__name__}: {str(error).splitlines()[0]}"})
            traceback.print_exc()
        print(rows[-1], flush=True)
    columns = list(max(rows, key=len))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(c, "") for c in columns) + " |" for row in rows]
    table = f"Width {options.width}, torch {torch.__version__}\n\n" + "\n".join(lines) + "\n"
    print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
