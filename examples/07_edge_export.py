"""Edge export: files in float16 and 8 bits are made here; where they are served, ONNX Runtime and numpy are enough."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

KINDS = {"float16": "model_fp16.onnx", "dynamic": "model_quantized.onnx"}

# What runs on the device: no torch, no fxslim.
EDGE = """
import sys
import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
shape = [size if isinstance(size, int) else 2 for size in given.shape]
image = np.random.default_rng(0).random(shape, dtype=np.float32)
(logits, *_) = session.run(None, {given.name: image})
loaded = {"torch", "fxslim"} & set(sys.modules)
print(f"classes {logits.argmax(-1).tolist()}, loaded: {sorted(loaded) or 'neither torch nor fxslim'}")
"""


def make(model: str, out: Path, seconds: float) -> dict[str, object]:
    """The report of one run that writes both further files; each was checked, scored and timed."""
    words = ["slim", model, "--keep", "0.6", "--of", "macs", "--round-to", "8"]
    kinds = ["--onnx-dtype", "float16", "--quantize", "dynamic", "--latency-seconds", str(seconds)]
    subprocess.run([sys.executable, "-m", "fxslim", *words, *kinds, "--quiet", "-o", str(out)], check=True)
    report: dict[str, object] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def main(model: str, out: Path, seconds: float = 3.0) -> None:
    report = make(model, out, seconds)
    quality = report["quality"]
    assert isinstance(quality, dict) and isinstance(report["variants"], list)
    print(f"float32: {(out / 'model.onnx').stat().st_size:,} bytes, {quality['name']} {quality['after']:.4f}")
    for variant in report["variants"]:
        file = out / KINDS[variant["kind"]]
        said = f"{variant['kind']}: {file.stat().st_size:,} bytes, {quality['name']} {variant['quality']['value']:.4f}"
        assert variant["ok"], variant["failures"]
        print(said)
        subprocess.run([sys.executable, "-c", EDGE, str(file)], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled:digits-resnet")
    parser.add_argument("--out", type=Path, default=Path("out/edge"))
    main(**vars(parser.parse_args()))
