"""Calibration: half of a residual network goes, and least squares bring most of its accuracy back, without training."""

from __future__ import annotations

import argparse

import fxslim
from fxslim.evaluate import evaluate
from fxslim.graph.evaluate import Evaluator


def main(samples: int | None = None) -> None:
    source = fxslim.load_model("bundled:digits-resnet")
    program, analysis = source.program, fxslim.analyze(source.program)
    calibration = fxslim.load_batches(source.calibration, source, limit=samples, batch_size=64)
    evaluation = fxslim.load_batches(source.evaluation, source, batch_size=64)

    def accuracy(which: fxslim.Program) -> float:
        return evaluate(Evaluator(which).run, evaluation, source.task).value

    plan = fxslim.make_plan(analysis, keep=0.5)  # half of the parameters, by magnitude
    sliced = fxslim.apply(analysis, plan)
    applied = fxslim.apply_plan(analysis, plan, "least-squares", calibration)
    assert applied.restoration is not None
    for row in applied.restoration.rows:
        print(f"{row.weight:32} residual {row.before:.4f} -> {row.after:.4f} {row.reason}")
    for warning in applied.restoration.warnings:
        print("warning:", warning)

    before, cut, restored = accuracy(program), accuracy(sliced), accuracy(applied.program)
    print(f"{program.parameters():,} parameters -> {applied.program.parameters():,}")
    print(f"accuracy {before:.3f}, sliced {cut:.3f}, restored {restored:.3f}")
    assert restored > cut


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, help="calibration images (default: all)")
    main(parser.parse_args().samples)
