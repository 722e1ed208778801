"""Perplexity of a causal language model when a share of every FFN and of every value/output dimension is removed.

    python benchmarks/quality.py MODEL_DIR --widths 0.8 0.7 0.5 [--windows 96] [--out FILE]

MODEL_DIR is a Hugging Face directory with `calib.txt` and `valid.txt`. Protocol: non-overlapping windows of 256
tokens, mean cross-entropy over all predicted tokens; 64 calibration windows of calib.txt drawn without replacement.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from fxslim.api import analyze, apply, make_plan
from fxslim.data import load_batches
from fxslim.evaluate import evaluate
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.sources import load_model

WINDOW = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.8, 0.7, 0.5])
    parser.add_argument("--windows", type=int, default=96, help="evaluation windows, from the start")
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    source = load_model(str(options.model))
    analysis = analyze(source.program)
    everything = load_batches(options.model / "valid.txt", source, window=WINDOW, batch_size=8)
    valid = replace(everything, inputs=everything.inputs[: options.windows // 8], rows=options.windows // 8 * 8)

    def perplexity(program: Program) -> float:
        score = evaluate(Evaluator(program).run, valid, "causal-lm", output_names=program.output_names)
        return score.value

    lines = [f"dense: {perplexity(source.program):.2f} on {valid.rows} windows of {WINDOW} tokens", ""]
    lines += ["| width | seed | parameters | sliced | restored | plan s | restore s |", "|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for width in options.widths:
        for seed in options.seeds:
            calibration = load_batches(
                options.model / "calib.txt",
                source,
                window=WINDOW,
                limit=options.calibration_windows,
                batch_size=8,
                seed=seed,
            )
            start = time.perf_counter()
            plan = make_plan(analysis, width=width, importance="fasp", calibration=calibration)
            planned = time.perf_counter()
            sliced = perplexity(apply(analysis, plan))
            begun = time.perf_counter()
            slim = apply(analysis, plan, "least-squares", calibration)
            done = time.perf_counter()
            lines.append(
                f"| {width} | {seed} | {slim.parameters():,} | {sliced:.2f} | {perplexity(slim):.2f} "
                f"| {planned - start:.1f} | {done - begun:.1f} |"
            )
            print(lines[-1], flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
