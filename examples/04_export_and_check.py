"""Export: the slim program becomes an ONNX file, is checked against PyTorch, and timed against the original."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import fxslim


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(256, 1024), nn.Linear(1024, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.gelu(self.up(x)))


def main(seconds: float = 3.0) -> None:
    torch.manual_seed(0)
    program = fxslim.capture(Perceptron(), (torch.randn(4, 256),), dynamic_shapes=({0: "batch"},))
    slim = fxslim.apply(program, fxslim.make_plan(program, width=0.5, round_to=16))

    with tempfile.TemporaryDirectory() as scratch:
        before, after = Path(scratch) / "original.onnx", Path(scratch) / "slim.onnx"
        for which, path in ((program, before), (slim, after)):
            file = fxslim.export_onnx(which, path)
            print(f"{path.name}: opset {file.opset}, {file.file_bytes:,} bytes, {dict(file.ops)}")

        check = fxslim.check_onnx(slim, after, threads=1)  # other batch sizes too, judged by float64
        for shape in check.shapes:
            for output in shape.outputs:
                print(f"{shape.sizes}: {output.name} rms error {output.rmse:.1e} of {output.allowed:.1e} allowed")
        print("the file computes what the program computes:", check.ok)
        assert check.ok, check.failures

        latency = fxslim.measure_latency(
            {"original": before, "slim": after}, program.example_inputs, seconds_budget=seconds
        )
        print(latency.verdict)  # it may say "not faster": that is a result too

        fxslim.save(slim, Path(scratch) / "slim")  # graph.json and safetensors, no pickle
        again = fxslim.load(Path(scratch) / "slim")
        assert again.fingerprint() == slim.fingerprint()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time to spend on latency")
    main(parser.parse_args().seconds)
