"""Speed that is real: models of known shapes, slimmed to a share of their MACs, timed beside the original.

    python -m benchmarks.latency [--models bert-base ...] [--removed 0.3 0.5] [--opt DIRECTORY] [--equal-time]

Weights are random (a time does not depend on them), widths uniform, sizes on the multiple that pays on this machine.
`share of ideal` is the reduction of the time over the reduction of the MACs. With `--equal-time` plans by latency are
compared with plans by MACs and by parameters on the bundled models: quality at the same measured time. Rows are added
to `--out`; those that it holds are measured again.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality import put_row
from fxslim.api import analyze, capture
from fxslim.bench import share_of_ideal
from fxslim.decoders import CachedDecoder, decoder_inputs
from fxslim.evaluate import evaluate
from fxslim.export import export_onnx, measure_latency
from fxslim.export.samples import cache_dims, example_sizes
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.costs import CostModel
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.latency_plans import LatencyPlans
from fxslim.opening import open_model, prepared
from fxslim.passes.methods import settings
from fxslim.passes.planner import make_plan
from fxslim.passes.prune import Prune
from fxslim.subject import calibration_of, read_data
from fxslim.timing import sized_inputs, timed_inputs

COLUMNS = [
    "model", "sizes", "plan", "removed", "multiple", "original_ms", "slim_ms", "speedup", "low", "high", "control_low",
    "control_high", "ideal", "share_of_ideal", "quality_before", "quality", "metric", "threads", "machine",
]  # fmt: skip
REBUILDS = 5


@dataclass(frozen=True)
class Subject:
    """A model and the sizes that it is timed at."""

    make: Callable[[], Program]
    sizes: dict[str, int]


def _of_transformers(architecture: str, config: str, shapes: dict[str, dict[int, str]], **options: Any) -> Program:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, config)(**options)
    model = getattr(transformers, architecture)(made).eval()
    if "pixel_values" in shapes:
        inputs = {"pixel_values": torch.rand(2, 3, 224, 224)}
    else:
        inputs = {name: torch.ones(2, 24, dtype=torch.long) for name in shapes}
    return capture(model, (), inputs, shapes)


TEXT = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
IMAGE = {"pixel_values": {0: "batch"}}


def _subjects(opt: Path | None) -> dict[str, Subject]:
    found = {
        "bert-base": Subject(
            lambda: _of_transformers("BertModel", "BertConfig", TEXT), {"batch": 1, "sequence": 128}
        ),
        "vit-b-16": Subject(lambda: _of_transformers("ViTModel", "ViTConfig", IMAGE), {"batch": 1}),
        "resnet-50": Subject(
            lambda: _of_transformers("ResNetForImageClassification", "ResNetConfig", IMAGE), {"batch": 1}
        ),
        "mobilenet-v2": Subject(
            lambda: _of_transformers("MobileNetV2ForImageClassification", "MobileNetV2Config", IMAGE), {"batch": 1}
        ),
    }  # fmt: skip
    if opt is not None:
        found["opt-12m prefill"] = Subject(lambda: _decoder(opt), {"past": 0, "new": 256})
        found["opt-12m decode"] = Subject(lambda: _decoder(opt), {"past": 64, "new": 1})
    return found


def _decoder(path: Path) -> Program:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    made = decoder_inputs(model, model.config.vocab_size, model.config.max_position_embeddings, str(path))
    return capture(
        CachedDecoder(model).eval(), (), made.kwargs, made.dynamic_shapes, caches=made.caches, names=made.names
    )


def _sizes(program: Program, wanted: dict[str, int]) -> dict[str, int]:
    """`past` and `new` by the names that the program has for them."""
    if "past" not in wanted:
        return wanted
    past, new = cache_dims(program)
    rows = dict.fromkeys(example_sizes(program), 1)
    return {**rows, **dict.fromkeys(past, wanted["past"]), **dict.fromkeys(new, wanted["new"])}


def _uniform(name: str, subject: Subject, removed: float, options: argparse.Namespace) -> dict[str, Any]:
    program = subject.make()
    analysis, sizes = analyze(program), _sizes(program, subject.sizes)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_onnx(program, folder / "original.onnx")
        multiple = options.multiple or _preferred(analysis, folder, program, sizes, options)
        plan = make_plan(analysis, 1 - removed, of="macs", round_to=multiple)
        slim = Prune(plan)(analysis).program
        row = _timed(analysis, program, slim, folder, sizes, options)
    return {"model": name, "plan": "uniform", "removed": removed, "multiple": multiple, **row}


def _preferred(
    analysis: Analysis, folder: Path, program: Program, sizes: dict[str, int], options: argparse.Namespace
) -> int:
    plans = LatencyPlans(
            analysis, folder / "original.onnx",
            lambda p: {"original": sized_inputs(program, sizes), "slim": sized_inputs(p, sizes)},
            provider=options.provider, threads=options.threads, scratch=folder,
        )  # fmt: skip
    return plans.preferred_multiple()


def _timed(
    analysis: Analysis, program: Program, slim: Program, folder: Path, sizes: dict[str, int],
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    paths = {"original": folder / "original.onnx", "slim": folder / "slim.onnx"}
    export_onnx(slim, paths["slim"])
    inputs = {"original": sized_inputs(program, sizes), "slim": sized_inputs(slim, sizes)}
    found = measure_latency(
        paths, inputs, provider=options.provider, threads=options.threads, seconds_budget=options.seconds,
        rebuilds=REBUILDS,
    )  # fmt: skip
    macs = {
        "original": CostModel(analysis.axes, inputs=inputs["original"]).macs(),
        "slim": CostModel(analyze(slim).axes, inputs=inputs["slim"]).macs(),
    }
    return {
        "sizes": " ".join(f"{k}={v}" for k, v in sizes.items()), "original_ms": round(found.median_ms["original"], 3),
        "slim_ms": round(found.median_ms["slim"], 3), "speedup": round(found.ratio.value, 3),
        "low": round(found.ratio.low, 3), "high": round(found.ratio.high, 3),
        "control_low": round(found.control.low, 3), "control_high": round(found.control.high, 3),
        "ideal": round(macs["original"] / macs["slim"], 3),
        "share_of_ideal": round(share_of_ideal(found, macs) or 0.0, 3), "threads": options.threads,
        "machine": platform.machine(),
    }  # fmt: skip


def _equal_time(name: str, keep: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same share of the time by three currencies."""
    source = open_model(name)
    analysis = prepared(source.program)
    calibration = calibration_of(source, None, samples=None, window=None, seed=0)
    evaluation = read_data(source, source.evaluation, window=None)
    assert calibration is not None and evaluation is not None

    def score(program: Program) -> Any:
        return evaluate(Evaluator(program).run, evaluation, source.task, output_names=program.output_names)

    def pair_of(program: Program) -> Any:
        return timed_inputs(source.program, program, calibration)

    before = score(source.program)
    chosen, rows, surveys = settings("best", data=True), [], {}  # type: ignore[var-annotated]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        export_onnx(source.program, folder / "original.onnx")
        plans = LatencyPlans(
            analysis, folder / "original.onnx", pair_of, provider=options.provider, threads=options.threads,
            scratch=folder,
        )  # fmt: skip
        for of in ("latency", "macs", "params"):
            made = plans.compress(
                keep, of=of, restore=chosen.restore, calibration=calibration, surveys=surveys, **chosen.options()
            )
            slim = made.applied.program
            sizes = {n: t.shape[d] for k, t in zip(source.program.input_names, plans.inputs, strict=True)
                     for d, n in source.program.dynamic.get(k, {}).items()}  # fmt: skip
            row = _timed(analysis, source.program, slim, folder, sizes, options)
            found = score(slim)
            rows.append(
                {"model": name, "plan": f"best by {of}", "removed": round(1 - keep, 3), "multiple": made.multiple,
                 "quality_before": round(before.value, 4), "quality": round(found.value, 4), "metric": found.name,
                 **row}
            )  # fmt: skip
    return rows


def main() -> int:
    options = _parser().parse_args()

    def add(row: dict[str, Any]) -> None:
        put_row(options.out, row, ("model", "sizes", "plan", "removed", "threads"), COLUMNS)

    subjects = _subjects(options.opt)
    for name in options.models or list(subjects):
        for removed in options.removed if name in subjects else ():
            add(_uniform(name, subjects[name], removed, options))
    for name in options.equal_time:
        for row in _equal_time(name, options.keep, options):
            add(row)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help="default: all")
    parser.add_argument("--removed", type=float, nargs="+", default=[0.3, 0.5], help="shares of the MACs")
    parser.add_argument("--opt", type=Path, help="a directory with a decoder of transformers, timed with its cache")
    parser.add_argument("--equal-time", nargs="*", default=[], help="models for plans by latency, MACs, parameters")
    parser.add_argument("--keep", type=float, default=0.6, help="share of the time, for --equal-time")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--multiple", type=int, help="of sizes; by default the one that is measured to pay")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency.csv"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
