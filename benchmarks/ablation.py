"""What single choices are worth: one budget for all or a divided one, the refit and its constant, the size and the kind
of the calibration data, streams.

    python -m benchmarks.ablation MODEL [--removed 0.43] [--out FILE.csv]

MODEL is a Hugging Face directory with `calib.txt` and `valid.txt`; the protocol is that of `benchmarks.quality`:
`windows` of the file are of calibration, `evaluated` are held-out ones. Rows that the file holds already are not
repeated.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from benchmarks.fingerprint import fingerprint
from benchmarks.quality import WINDOW, valid_windows, write_rows
from fxslim.api import compress
from fxslim.data import Batches, load_batches
from fxslim.evaluate import evaluate
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.opening import prepared
from fxslim.passes.consumers import Consumer
from fxslim.passes.methods import settings
from fxslim.sources import Source, load_model

COLUMNS = [
    "model", "removed", "evaluated", "data", "windows", "budget", "restore", "centred", "streams", "seed",
    "perplexity", "code",
]  # fmt: skip
SIZES = (8, 16, 32, 64, 128, 256)
DOCUMENTS = Path(__file__).parents[1] / "docs"

Row = dict[str, Any]


def main() -> int:
    options = _parser().parse_args()
    source = load_model(options.model)
    analysis = prepared(source.program)
    valid = valid_windows(options.model, source, options.windows)
    outside = [n for n in analysis.program.info if not fnmatch.fnmatchcase(n, options.blocks)]
    known: list[Row] = list(csv.DictReader(options.out.open(encoding="utf-8"))) if options.out.exists() else []
    data: dict[tuple[str, int, int], Batches] = {}
    for row in _rows(Path(options.model).name, options.removed, options.seeds):
        row["evaluated"] = valid.rows
        if any(all(str(row[c]) == old.get(c) for c in COLUMNS[:-2]) for old in known):
            continue
        key = (row["data"], row["windows"], row["seed"])
        if key not in data:
            data[key] = _load(options, source, *key)
        chosen = settings("best", budget=row["budget"], restore=row["restore"], data=True).options()
        chosen["streams"] = row["streams"]
        with nullcontext() if row["centred"] else _without_constants():
            _, applied = compress(
                analysis, 1 - row["removed"], restore=row["restore"], uncounted=outside, calibration=data[key],
                seed=row["seed"], **chosen,
            )  # fmt: skip
        slim = applied.program
        score = evaluate(Evaluator(slim).run, valid, source.task, output_names=slim.output_names)
        known.append({**row, "perplexity": round(score.value, 4), "code": fingerprint("graph", "passes")})
        write_rows(options.out, known, COLUMNS)
        print(" ".join(f"{k}={v}" for k, v in known[-1].items()), flush=True)
    return 0


def _rows(model: str, removed: float, seeds: list[int]) -> Iterator[Row]:
    """The recommended settings, and each with one choice changed."""
    for seed in seeds:
        base: Row = {
            "model": model, "removed": removed, "data": "training text", "windows": 64, "budget": "global",
            "restore": "least-squares", "centred": True, "streams": True, "seed": seed,
        }  # fmt: skip
        yield base
        yield {**base, "streams": False}
        yield {**base, "streams": False, "budget": "uniform"}
        yield {**base, "centred": False}
        yield {**base, "restore": "none"}
        yield {**base, "streams": False, "budget": "uniform", "restore": "none"}
        yield from ({**base, "windows": size} for size in SIZES if size != base["windows"])
        yield from ({**base, "data": kind} for kind in ("self", "documentation"))


@contextmanager
def _without_constants() -> Iterator[None]:
    """Biases stay as they are: selection and refits know of no constant beside the columns."""

    def parameters(self: Consumer, program: Program) -> tuple[Tensor, None]:
        return whole(self, program)[0], None

    whole = Consumer.parameters
    with (
        mock.patch.object(Consumer, "parameters", parameters),
        mock.patch.object(Consumer, "shifted", property(lambda self: False)),
    ):
        yield


def _load(options: argparse.Namespace, source: Source, kind: str, windows: int, seed: int) -> Batches:
    def load(data: str | Path) -> Batches:
        return load_batches(data, source, window=WINDOW, limit=windows, batch_size=8, seed=seed)

    kinds: dict[str, Callable[[], Batches]] = {
        "training text": lambda: load(Path(options.model) / "calib.txt"),
        "self": lambda: load("self"),
        "documentation": lambda: load(_english(options.out.with_suffix(".text.txt"))),
    }
    return kinds[kind]()


def _english(path: Path) -> Path:
    """This project's own pages in one file: English, of which a model of source text knows little."""
    pages = sorted((*DOCUMENTS.glob("*.md"), *DOCUMENTS.parent.glob("*.md")))
    text = "\n\n".join(page.read_text(encoding="utf-8") for page in pages)
    path.write_text(text, encoding="utf-8")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--removed", type=float, default=0.43)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--windows", type=int, default=96, help="evaluation windows, from the start; 0: all")
    parser.add_argument("--blocks", default="*.layers.*", help="the weights that the share counts")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.csv"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
