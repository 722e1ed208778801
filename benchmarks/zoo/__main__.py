"""The sweep: what fxslim makes of the architectures of torchvision, timm and transformers.

    python -m benchmarks.zoo [--library torchvision timm transformers] [--only swin bert] [--jobs 2] [--limit 300]

Rows come into `<work>/<library>.jsonl` one by one, so that a sweep that was stopped goes on where it was (`--again`
measures anew). The tables in `--out`, the totals and the comparison with the expected status are made of all rows
there, also those of the other major version of transformers. A row that other code measured is measured again, unless
`--old` lets it count, and with it those of the table in `--out`. Exit code 1: a model's status is not the expected one,
in either direction.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.fingerprint import fingerprint
from benchmarks.zoo.measure import Row
from benchmarks.zoo.scaling import plot
from benchmarks.zoo.sweep import LIBRARIES, names_of, read_csv, read_rows, run, write_csv
from benchmarks.zoo.totals import accept, compare, totals

RESULTS = Path("benchmarks/results")
EXPECTED = Path(__file__).with_name("expected.csv")


def main() -> None:
    options = _parser().parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # models run side by side
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows: list[Row] = []
    for library in options.library:
        rows += _sweep(library, options)
    if not options.only:
        swept = [row for path in sorted(options.work.glob("*.jsonl")) for row in _latest(path)]
        earlier = read_csv(options.out / "zoo.csv") if options.old else []
        rows = list({(row.library, row.model): row for row in (*earlier, *swept)}.values())
        _write_tables(rows, options.out)
    print(totals(rows))
    if options.accept:
        accept(rows, EXPECTED)
    changes, unlisted = compare(rows, EXPECTED)
    print("\n".join([*changes, *unlisted]) or "every status is the expected one")
    sys.exit(1 if changes else 0)


def _write_tables(rows: list[Row], out: Path) -> None:
    write_csv(rows, out / "zoo.csv")
    exponents = plot(rows, out / "zoo-time.svg")
    fitted = ", ".join(f"{what} nodes^{p:.2f}" for what, p in exponents.items())
    (out / "zoo.md").write_text(f"{totals(rows)}\nTime against size (zoo-time.svg): {fitted}\n", encoding="utf-8")


def _latest(path: Path) -> list[Row]:
    """The last row of every model in a file."""
    return list({row.model: row for row in read_rows(path)}.values())


def _sweep(library: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one library: those of an earlier run, and the models that are left."""
    key = label(library)
    path = options.work / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [n for n in names_of(library) if not options.only or any(part in n for part in options.only)]
    names = [n for n in names if not options.models or n in options.models]
    current = fingerprint("graph", "passes", "export", "fxslim", "benchmarks/zoo")
    committed = [r for r in read_csv(options.out / "zoo.csv") if options.old and r.library == key]
    old = [] if options.again else [*committed, *(r for r in _latest(path) if options.old or r.code == current)]
    known = {row.model: row for row in old if row.model in names}
    left = [n for n in names if n not in known]
    print(f"{key}: {len(names)} models, {len(names) - len(left)} measured before", flush=True)

    def done(row: Row) -> None:
        row.library, row.code = key, current
        known[row.model] = row
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row.to_dict()) + "\n")
        print(
            f"{sum(n in known for n in names):4}/{len(names)} {row.model}: {row.status} {row.reason}"[:160], flush=True
        )

    run(library, left, options.jobs, options.limit, done, static=options.static)
    return [known[n] for n in names]


def label(library: str) -> str:
    """The library with the major version where that matters: `transformers-4`."""
    from importlib.metadata import version

    return f"{library}-{version(library).split('.')[0]}" if library == "transformers" else library


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", nargs="*", default=list(LIBRARIES), choices=list(LIBRARIES))
    parser.add_argument("--only", nargs="*", default=[], help="parts of model names")
    parser.add_argument("--models", nargs="*", default=[], help="these models alone, by their full names")
    parser.add_argument("--old", action="store_true", help="rows that other code measured, or --out holds, count too")
    parser.add_argument("--static", action="store_true", help="without dynamic dimensions: half the time, one shape")
    parser.add_argument("--accept", action="store_true", help="write what was found as the expected status")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="seconds for one model")
    parser.add_argument("--work", type=Path, default=Path("build/zoo"), help="where rows are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where tables are written")
    return parser


if __name__ == "__main__":
    main()
