"""A LLaMA-shaped model several times larger than the memory that the process may take: captured, exported, checked."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.scale_process import Phases, allow_mapping, measured, record

SHARD = 1 << 30  # bytes of a file of weights


def add_to(commands: Any) -> argparse.ArgumentParser:
    """The sub-command of this part."""
    parser: argparse.ArgumentParser = commands.add_parser("export", help=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=16000)
    parser.add_argument("--limit-mib", type=int, default=1100)
    parser.add_argument("--folder", type=Path, default=Path("build/scale"))
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace) -> None:
    """Writes the model, then measures under the limit."""
    folder: Path = options.folder / f"llama-{options.layers}x{options.hidden}"
    if not (folder / "model.safetensors.index.json").is_file():
        write_model(folder, options.layers, options.hidden, options.vocabulary)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    out = options.folder / "onnx"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows = measured("benchmarks.scale_export", [str(folder), str(out), str(options.limit_mib)], options.limit_mib)
    name = f"LLaMA-shaped, {options.layers} layers, hidden {options.hidden}, float32"
    record(options.out, "export", name, rows, limit_mib=options.limit_mib, weights_mib=size >> 20)
    shutil.rmtree(out)


def write_model(folder: Path, layers: int, hidden: int, vocabulary: int) -> None:
    """Random weights in shards, drawn one by one, and config.json."""
    import torch
    import transformers

    from fxslim.graph.stores import FileTensor, WeightStore, write_safetensors
    from fxslim.lazy_model import absent_weights

    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=hidden // 64, num_key_value_heads=4,
        intermediate_size=hidden * 11 // 4, vocab_size=vocabulary, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    (folder / "config.json").write_text(config.to_json_string(), encoding="utf-8")
    absent = absent_weights(transformers.LlamaForCausalLM, config, folder, torch.float32)
    generator = torch.Generator().manual_seed(0)

    class Drawn(FileTensor):
        def read(self) -> torch.Tensor:
            if len(self.shape) == 1:
                return torch.ones(self.shape)
            return torch.randn(self.shape, generator=generator) * self.shape[-1] ** -0.5

    shards: list[dict[str, FileTensor]] = [{}]
    for name, entry in absent.items():
        if sum(e.nbytes for e in shards[-1].values()) > SHARD:
            shards.append({})
        shards[-1][name] = Drawn(entry.path, 0, entry.shape, entry.dtype)
    places = {}
    for number, entries in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, WeightStore(entries))
        places |= dict.fromkeys(entries, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def measure(folder: str, out: str, limit_mib: str) -> None:
    """The phases of one export, printed."""
    phases = Phases(int(limit_mib))
    with phases.phase("import"):
        import transformers  # noqa: F401

        from fxslim.export import check_onnx, export_onnx
        from fxslim.sources import load_model
    with phases.phase("capture") as facts:
        program = load_model(folder, stream=True).program
        facts["nodes"] = len(program.graph.nodes)
    with phases.phase("export") as facts:
        made = export_onnx(program, Path(out, "model.onnx"))
        facts["note"] = f"{made.initializer_bytes >> 20} MiB of weights in {made.external}"
    allow_mapping(made.file_bytes)  # by ONNX Runtime
    with phases.phase("check") as facts:
        check = check_onnx(program, Path(out, "model.onnx"), threads=1)
        facts["note"] = f"{'agrees' if check.ok else 'differs'} at {len(check.shapes)} shapes"
    if not check.ok:
        raise SystemExit("\n".join(check.failures))


if __name__ == "__main__":
    measure(*sys.argv[1:])
