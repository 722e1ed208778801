"""A LLaMA-shaped model several times larger than the memory that the process may take: captured, exported, checked."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.scale_models import LLAMA, write_llama
from benchmarks.scale_process import Phases, allow_mapping, measured, table

STEPS = ("export", "check")  # a process each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m benchmarks.scale export` is asked."""
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--limit-mib", type=int, default=1070)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/scale"), help="where the files go, three times theirs"
    )


def main(options: argparse.Namespace) -> list[str]:
    """The table, measured under the limit, as lines of Markdown."""
    folder: Path = options.folder / f"llama-{options.layers}x{options.hidden}"
    if not (folder / "model.safetensors.index.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        hidden = {"hidden_size": options.hidden, "intermediate_size": options.hidden * 11 // 4}
        heads = {"num_attention_heads": options.hidden // 64, "num_key_value_heads": 4, "vocab_size": 16000}
        write_llama(folder, options.layers, shape={**LLAMA, **hidden, **heads})
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    out = options.folder / "onnx"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        limit = options.limit_mib
        given = [str(folder), str(out), str(limit)]
        rows = [row for step in STEPS for row in measured("benchmarks.scale_export", [step, *given], limit)]
    finally:
        shutil.rmtree(out)
    return [
        f"LLaMA-shaped, {options.layers} layers, hidden size {options.hidden}, float32: {size >> 20} MiB of weights, "
        f"{size / (limit << 20):.1f} times the memory allowed ({limit} MiB)", "", *table(rows),
    ]  # fmt: skip


def measure(step: str, folder: str, out: str, limit_mib: str) -> None:
    """The phases of one step, printed."""
    phases, path = Phases(int(limit_mib)), Path(out, "model.onnx")
    with phases.phase(f"{step}: import"):
        import transformers  # noqa: F401

        from fxslim.export import check_onnx, export_onnx
        from fxslim.sources import load_model
    with phases.phase(f"{step}: capture") as facts:
        program = load_model(folder, stream=True).program
        facts["nodes"] = len(program.graph.nodes)
    if step == "export":
        with phases.phase("export") as facts:
            made = export_onnx(program, path)
            facts["note"] = f"{made.initializer_bytes >> 20} MiB of weights in {made.external}"
        return
    allow_mapping(path.with_name("model.onnx_data").stat().st_size)  # by ONNX Runtime
    with phases.phase("check") as facts:
        check = check_onnx(program, path, threads=1)
        facts["note"] = f"{'agrees' if check.ok else 'differs'} at {len(check.shapes)} shapes"
    if not check.ok:
        raise SystemExit("\n".join(check.failures))


if __name__ == "__main__":
    measure(*sys.argv[1:])
