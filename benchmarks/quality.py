"""Quality of every method at equal budgets: perplexity of a causal language model, or accuracy of a classifier, when a
share of the parameters (or MACs) is removed, without any training.

    python -m benchmarks.quality MODEL [--removed 0.1 0.2 ...] [--methods best fasp ...] [--out FILE.csv]

MODEL is a Hugging Face directory with `calib.txt` and `valid.txt`, a saved program with `calib.npz` and `valid.npz`, or
`bundled:digits-resnet`. For language models the
share is of the parameters under `--blocks`; protocol: non-overlapping windows of 256 tokens, mean cross-entropy over
all predicted tokens; calibration windows drawn without replacement. Rows that the file holds already are not repeated,
whichever code measured them (`code` is a hash of it), unless `--again`. A method that cannot cut the model has a row
without a score, `refused`. `seconds`, and `forward_s` of one run over the calibration data, are of the processor, so
that a busy machine says the same; `peak_mib` is that of the process so far.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.fingerprint import fingerprint
from fxslim.api import analyze, compress, prove
from fxslim.data import Batches, load_batches
from fxslim.evaluate import evaluate
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.costs import CostModel
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.opening import open_model, prepared
from fxslim.passes.methods import METHODS, settings
from fxslim.passes.survey import Survey
from fxslim.sources import Source

WINDOW = 256
_ROWS = 8  # windows in a batch
COLUMNS = [
    "model", "method", "removed", "of", "blocks", "seed", "calibration", "windows", "score", "metric", "kept",
    "params_kept", "macs_kept", "seconds", "forward_s", "peak_mib", "proof", "code",
]  # fmt: skip


def main() -> int:
    options = _parser().parse_args()
    source = open_model(options.model)
    analysis = prepared(source.program)
    text = (Path(options.model) / "calib.txt").exists()
    valid = [_valid(options, source, text, windows) for windows in (options.windows if text else [0])]
    surveys: dict[str, Survey] = {}  # one serves all shares: `seconds` of the first of them counts it
    known = list(csv.DictReader(options.out.open(encoding="utf-8"))) if options.out.exists() else []
    done = {_key(row) for row in known}
    name = Path(options.model).name.removeprefix("bundled:")
    wanted = [("dense", 0.0)] + [(m, r) for r in options.removed for m in options.methods]
    for method, removed in wanted:
        for seed in options.seeds if method != "dense" else options.seeds[:1]:
            shared = (name, method, removed, options.of, options.blocks, seed, options.calibration)
            keys = {(*shared, data.rows) for data in valid}
            if keys <= done and not options.again:
                continue
            rows = _measure(options, source, analysis, valid, method, removed, seed, text, surveys)
            own = {"model": name, "of": options.of, "blocks": options.blocks}
            known = [r for r in known if _key(r) not in keys] + [{**row, **own} for row in rows]
            write_rows(options.out, known, COLUMNS)
            for row in known[-len(rows) :]:
                print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
    return int(any(str(r["proof"]).startswith("NOT") for r in known))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a row is the answer to."""
    numbers = (int(row["seed"]), int(row["calibration"]), int(row["windows"]))
    return (row["model"], row["method"], float(row["removed"]), row["of"], row["blocks"], *numbers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--removed", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--calibration", type=int, default=64, help="windows, or rows of arrays")
    parser.add_argument(
        "--windows",
        type=int,
        nargs="+",
        default=[96],
        help="held-out windows, from the start; 0: all; a row for each",
    )
    parser.add_argument("--again", action="store_true", help="measure anew what the file holds")
    parser.add_argument("--blocks", default="*.layers.*", help="the weights that the share counts")
    parser.add_argument("--of", default="params", choices=["params", "macs"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality.csv"))
    return parser


def _valid(options: argparse.Namespace, source: Source, text: bool, windows: int) -> Batches:
    if not text:
        return load_batches(source.evaluation or Path(options.model) / "valid.npz", source)
    return valid_windows(options.model, source, windows)


def valid_windows(model: str, source: Source, windows: int) -> Batches:
    """The first held-out windows, in batches of eight, or all of them for 0."""
    if windows % _ROWS:
        raise SystemExit(f"--windows {windows}: give a multiple of {_ROWS}, or 0 for all")
    every = load_batches(Path(model) / "valid.txt", source, window=WINDOW, batch_size=_ROWS)
    count = windows // _ROWS or len(every.inputs)
    inputs = every.inputs[:count]
    return replace(every, inputs=inputs, rows=sum(len(batch[0]) for batch in inputs))


def _measure(
    options: argparse.Namespace, source: Source, analysis: Analysis, valid: Sequence[Batches], method: str,
    removed: float, seed: int, text: bool, surveys: dict[str, Survey],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each set of held-out data."""
    program = analysis.program
    outside = [n for n in program.info if text and not fnmatch.fnmatchcase(n, options.blocks)]
    whole = program.parameters()
    row: dict[str, Any] = {"method": method, "removed": removed, "seed": seed, "calibration": options.calibration}
    row["code"] = fingerprint("graph", "passes")
    slim, proof = program, ""
    if method != "dense":
        calibration = _calibration(options, source, seed, text)
        start = time.process_time()
        for batch in calibration:
            Evaluator(program).run(batch)
        row["forward_s"] = round(time.process_time() - start, 1)
        chosen = settings(method, data=True)
        start = time.process_time()
        try:
            plan, applied = compress(
                analysis, 1 - removed, of=options.of, restore=chosen.restore, uncounted=outside,
                calibration=calibration, seed=seed, surveys=surveys, **chosen.options(),
            )  # fmt: skip
        except (InputError, PlanError) as error:  # no stream to cut, nothing that saves MACs
            print(f"{method}: {error}", flush=True)
            return [{**row, "windows": d.rows, "proof": "refused"} for d in valid]
        row["seconds"] = round(time.process_time() - start, 1)
        slim = applied.program
        found = prove(applied.analysis, plan)
        proof = f"{'' if found.ok else 'NOT '}{found.max_error:.0e}"
    share = _parameters(slim, outside) / _parameters(program, outside)
    macs = CostModel(analyze(slim).axes).macs() / CostModel(analysis.axes).macs()
    row |= {
        "kept": round(share, 4), "params_kept": round(slim.parameters() / whole, 4), "macs_kept": round(macs, 4),
        "proof": proof,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip
    scores = [(d.rows, evaluate(Evaluator(slim).run, d, source.task, output_names=slim.output_names)) for d in valid]
    return [{**row, "windows": rows, "score": round(score.value, 4), "metric": score.name} for rows, score in scores]


def _parameters(program: Program, outside: Sequence[str]) -> int:
    """Trainable scalars but for the weights `outside`; what was added counts."""
    return sum(w.numel for name, w in program.info.items() if w.trainable and name not in outside)


def _calibration(options: argparse.Namespace, source: Source, seed: int, text: bool) -> Batches:
    if text:
        path = Path(options.model) / "calib.txt"
        return load_batches(path, source, window=WINDOW, limit=options.calibration, batch_size=_ROWS, seed=seed)
    return load_batches(
        source.calibration or Path(options.model) / "calib.npz", source, limit=options.calibration, seed=seed
    )


def put_row(path: Path, row: dict[str, Any], key: Sequence[str], columns: list[str]) -> None:
    """Adds a row to a file, in the place of those that have the same under `key`, and prints it."""
    known = list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []
    write_rows(path, [*(r for r in known if any(str(r[k]) != str(row[k]) for k in key)), row], columns)
    print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)


def write_rows(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """The rows as a file that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
