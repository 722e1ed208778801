"""Slim files in other runtimes, and after other optimizers: is what they return what ONNX Runtime returns on the CPU?

    python -m benchmarks.runtimes [--out FILE.md] [--node DIRECTORY with node_modules] [--case NAME]

Needs openvino, onnxslim and onnxsim on PYTHONPATH, and for JavaScript a directory with the packages of benchmarks/web:
`make bench-runtimes` sees to both. What cannot be run is a row that says so. Times are of one run on one thread: they
say that it works at a usable speed, not which runtime is the best.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from fxslim.api import analyze, apply, capture, make_plan
from fxslim.export import create_session, export_onnx
from fxslim.export.providers import CPU
from fxslim.export.running import run_session
from fxslim.graph.program import Program
from fxslim.opening import open_model

OPSETS = (20, 23)
TOLERANCE = 1e-4  # rms error relative to the output's rms: float32 with sums in another order
RUNS = 20


@dataclass(frozen=True)
class Row:
    """One file in one runtime. Errors are relative to the rms of the output; `ms` is the median time of a run."""

    case: str
    runtime: str
    rms: float | None = None
    max: float | None = None
    ms: float | None = None
    failure: str | None = None

    @property
    def text(self) -> str:
        """The row of the table."""
        if self.failure is not None or self.rms is None:
            return f"| {self.case} | {self.runtime} | - | - | - | FAILED: {(self.failure or '').replace('|', '/')} |"
        verdict = "equal" if self.rms <= TOLERANCE else "DIFFERS"
        time_text = "-" if self.ms is None else f"{self.ms:.2f}"
        return f"| {self.case} | {self.runtime} | {self.rms:.1e} | {self.max:.1e} | {time_text} | {verdict} |"


class Logits(nn.Module):
    """A model of transformers that returns one tensor."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model, self.argument = model, argument

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        more = {} if attention_mask is None else {"attention_mask": attention_mask}
        return self.model(**{self.argument: x}, **more).logits


def bert() -> Program:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    ids, mask = torch.randint(0, 500, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[0, 6:] = 0
    dims = {0: "batch", 1: "sequence"}
    model = Logits(BertForSequenceClassification(config), "input_ids").eval()
    return capture(model, (ids, mask), {}, (dims, dims))


def vit() -> Program:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = Logits(ViTForImageClassification(config), "pixel_values").eval()
    return capture(model, (torch.randn(2, 3, 32, 32),), {}, ({0: "batch"},))


CASES: dict[str, Callable[[], Program]] = {
    "opt-python": lambda: open_model("bundled:opt-python").program,
    "opt-python, cached": lambda: open_model("bundled:opt-python", task="text-generation").program,
    "digits-resnet": lambda: open_model("bundled:digits-resnet").program,
    "bert": bert,
    "vit": vit,
}


def write_case(program: Program, opset: int, folder: Path) -> None:
    """The file, its example inputs, and what ONNX Runtime returns for them."""
    folder.mkdir(parents=True)
    export_onnx(program, folder / "model.onnx", opset=opset)
    inputs = program.example_inputs
    session = create_session(folder / "model.onnx", CPU, threads=1)
    outputs = run_session(session, inputs)
    meta: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    named = [("inputs", program.outside_names, inputs), ("outputs", [o.name for o in session.get_outputs()], outputs)]
    for kind, names, tensors in named:
        for i, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
            file = f"{kind}_{i}.bin"
            tensor.contiguous().numpy().tofile(folder / file)
            dtype = str(tensor.dtype).removeprefix("torch.")
            meta[kind].append({"name": name, "file": file, "type": dtype, "shape": list(tensor.shape)})
    folder.joinpath("meta.json").write_text(json.dumps(meta), encoding="utf-8")


def read(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """The inputs or outputs of a case by name."""
    meta = json.loads(folder.joinpath("meta.json").read_text(encoding="utf-8"))
    return {m["name"]: np.fromfile(folder / m["file"], m["type"]).reshape(m["shape"]) for m in meta[kind]}


def errors(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> tuple[float, float]:
    """The worst rms and largest error over the outputs, relative to the rms of each."""
    rms, largest = 0.0, 0.0
    for name, want in wanted.items():
        if found[name].shape != want.shape:
            raise ValueError(f"{name} has the shape {found[name].shape}, not {want.shape}")
        error = found[name].astype(np.float64) - want
        scale = float(np.sqrt(np.square(want, dtype=np.float64).mean())) or 1.0
        rms = max(rms, float(np.sqrt(np.square(error).mean())) / scale)
        largest = max(largest, float(np.abs(error).max()) / scale)
    if not np.isfinite(rms):
        raise ValueError("outputs are not finite")
    return rms, largest


def timed(run: Callable[[], Any]) -> float:
    """The median of RUNS runs, milliseconds."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def ort(folder: Path, file: Path) -> tuple[float, float, float]:
    """Errors and time of a file in ONNX Runtime, on the CPU; its interface must be that of the case."""
    session = create_session(file, CPU, threads=1)
    inputs, wanted = read(folder, "inputs"), read(folder, "outputs")
    before, after = (onnx.load(str(f), load_external_data=False).graph for f in (folder / "model.onnx", file))
    for a, b in ((before.input, after.input), (before.output, after.output)):
        if [(v.name, v.type) for v in a] != [(v.name, v.type) for v in b]:
            raise ValueError("the interface changed")
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))
    return *errors(found, wanted), timed(lambda: session.run(None, inputs))


def openvino(folder: Path, scratch: Path) -> tuple[float, float, float]:
    import openvino as ov

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = ov.Core().compile_model(str(folder / "model.onnx"), "CPU", hints)
    inputs, wanted = read(folder, "inputs"), read(folder, "outputs")
    found = {output.get_any_name(): value for output, value in model(inputs).items()}
    return *errors(found, wanted), timed(lambda: model(inputs))


def onnxslim(folder: Path, scratch: Path) -> tuple[float, float, float]:
    import onnxslim as tool

    onnx.save(tool.slim(str(folder / "model.onnx")), str(scratch / "slim.onnx"))
    return ort(folder, scratch / "slim.onnx")


def onnxsim(folder: Path, scratch: Path) -> tuple[float, float, float]:
    import onnxsim as tool

    model, ok = tool.simplify(str(folder / "model.onnx"))
    if not ok:
        raise ValueError("its own check failed")
    onnx.save(model, str(scratch / "simple.onnx"))
    return ort(folder, scratch / "simple.onnx")


def ort_optimizer(folder: Path, scratch: Path) -> tuple[float, float, float]:
    from onnxruntime.transformers.optimizer import optimize_model

    kind = next((k for k in ("bert", "vit") if k in folder.name), "gpt2" if "opt" in folder.name else "bert")
    optimize_model(str(folder / "model.onnx"), model_type=kind, num_heads=0, hidden_size=0).save_model_to_file(
        str(scratch / "optimized.onnx")
    )
    return ort(folder, scratch / "optimized.onnx")


RUNTIMES: dict[str, Callable[[Path, Path], tuple[float, float, float]]] = {
    "onnxruntime": lambda folder, _: ort(folder, folder / "model.onnx"),
    "openvino": openvino,
    "onnxslim, then onnxruntime": onnxslim,
    "onnxsim, then onnxruntime": onnxsim,
    "onnxruntime.transformers.optimizer": ort_optimizer,
}


def rows_of(folder: Path) -> Iterator[Row]:
    """The file in every Python runtime."""
    for name, run in RUNTIMES.items():
        with tempfile.TemporaryDirectory() as scratch:
            try:
                yield Row(folder.name, name, *run(folder, Path(scratch)))
            except Exception as error:  # foreign tools raise anything: the row says what
                yield Row(folder.name, name, failure=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def javascript(script: str, cases: Path, node: Path) -> Iterator[Row]:
    """All files in a build of ONNX Runtime for JavaScript."""
    name = {"node.mjs": "onnxruntime-node", "web.mjs": "onnxruntime-web, Chromium"}[script]
    done = subprocess.run(["node", str(node / script), str(cases)], capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        yield Row("all", name, failure=" ".join(done.stderr.split())[-200:] or "it printed nothing")
    for row in found:
        case = row.pop("name")
        yield Row(case, name, **row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--node", type=Path)
    parser.add_argument("--case", choices=list(CASES), action="append", help="may be given again; default: all")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        cases = Path(scratch) / "cases"
        for name in options.case or CASES:
            torch.manual_seed(0)
            analysis = analyze(CASES[name]())
            small = apply(analysis, make_plan(analysis, width=0.75))
            for opset in OPSETS:
                folder = cases / f"{name}, opset {opset}"
                write_case(small, opset, folder)
                for row in rows_of(folder):
                    rows.append(row)
                    print(row.text, flush=True)
        if options.node is not None and shutil.which("node"):
            for script in ("node.mjs", "web.mjs"):
                for row in javascript(script, cases, options.node):
                    rows.append(row)
                    print(row.text, flush=True)
        else:
            rows.append(Row("all", "onnxruntime-node, -web", failure="not run: no node, or no --node"))
    table = ["| file | runtime | rms error | largest error | ms | |", "| --- | --- | --- | --- | --- | --- |"]
    text = "\n".join([*table, *(row.text for row in rows)]) + "\n"
    if options.out:
        options.out.write_text(f"# Slim files in other runtimes\n\n{__doc__.split(chr(10))[0]}\n\n{text}", "utf-8")
    if any(row.failure is not None or (row.rms or 0) > TOLERANCE for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
