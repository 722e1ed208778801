"""Captured from a configuration alone and analysed: the shapes of LLaMA-70B and Mixtral 8x7B."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.scale_process import Phases, measured, table

SHAPES: dict[str, dict[str, Any]] = {
    "LLaMA-70B": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 32000,
        "max_position_embeddings": 4096, "dtype": "bfloat16",
    },
    "Mixtral-8x7B": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
        "num_local_experts": 8, "max_position_embeddings": 32768, "dtype": "bfloat16",
    },
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m benchmarks.scale capture` is asked."""
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--layers", type=int, help="instead of all")


def main(options: argparse.Namespace) -> list[str]:
    """A table for every shape, measured in a process of its own, as lines of Markdown."""
    lines = []
    for name in options.models:
        shape = {**SHAPES[name], **({"num_hidden_layers": options.layers} if options.layers else {})}
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(shape), encoding="utf-8")
            rows = measured("benchmarks.scale_capture", [folder])
        seconds, busy = (sum(row[column] for row in rows) for column in ("seconds", "CPU seconds"))
        depth = shape["num_hidden_layers"]
        lines += [
            f"{name}, {depth} layers, one thread: {seconds:.0f} s together, {busy:.0f} s of them computing",
            "",
            *table(rows),
            "",
        ]
    return lines


def measure(folder: str) -> None:
    """The phases of one shape, printed."""
    phases = Phases()
    with phases.phase("import"):
        import transformers  # noqa: F401

        from fxslim.graph.costs import CostModel
        from fxslim.opening import prepared
        from fxslim.sources import load_model
    with phases.phase("load"):
        source = load_model(folder, stream=True)
    with phases.phase("capture") as facts:
        program = source.program
        facts["nodes"] = len(program.graph.nodes)
        size = sum(w.numel * w.dtype.itemsize for w in program.info.values())
        facts["note"] = f"{size / 2**30:.0f} GiB of weights that are not there"
    with phases.phase("analyze") as facts:
        analysis = prepared(program)
        facts["groups"] = len(analysis.groups)
    with phases.phase("costs"):
        CostModel(analysis.axes).params()


if __name__ == "__main__":
    measure(sys.argv[1])
