"""`python -m tests.fuzz`: random modules, or with `--mutate` wrong rules that random modules must catch."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz.report import page
from tests.fuzz.run import Job, done_already, run_all
from tests.fuzz.worker import fuzz_one


def main() -> int:
    """Exit code 1 where anything was found."""
    options = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # workers are ended on the way out
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.mutate:
        from tests.fuzz.mutate import mutate

        return mutate(options)
    return _fuzz(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="number of modules (of modules to draw from, mutating)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz/fuzz.md"), help="the page; results lie beside it")
    parser.add_argument("--work", type=Path, default=Path("out/fuzz"), help="where results and findings are kept")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--onnx-every", type=int, default=1, help="export every N-th module, 0: none")
    parser.add_argument("--thorough-every", type=int, default=3, help="a third plan and identity for every N-th")
    parser.add_argument("--time-limit", type=float, default=180.0, help="seconds for one module")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long (0: never); results stay")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results instead of resuming")
    parser.add_argument("--mutate", action="store_true", help="break rules on purpose; every break must be noticed")
    return parser.parse_args()


def _fuzz(options: argparse.Namespace) -> int:
    findings, results = options.work / "findings", options.work / "results.jsonl"
    findings.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        results.unlink(missing_ok=True)
    known = done_already(results)
    jobs = [_job(seed, options, findings) for seed in range(options.seed, options.seed + options.count)]
    todo = [job for job in jobs if job["key"] not in known]
    console = Console(stderr=True)
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with results.open("a", encoding="utf-8") as file, Progress(*columns, console=console) as progress:
        task = progress.add_task("modules", total=len(jobs), completed=len(jobs) - len(todo))
        for record in run_all(todo, fuzz_one, workers=options.jobs, seconds=options.time_limit):
            known[record["key"]] = record
            file.write(json.dumps(record) + "\n")
            file.flush()
            progress.advance(task)
            if record.get("failure") or record.get("crash"):
                progress.console.print(f"{record['key']}: {record.get('failure') or record.get('crash')}", markup=False)
            if options.minutes and time.monotonic() - started > 60 * options.minutes:
                progress.console.print("stopped: the time is over")
                break
    records = [known[job["key"]] for job in jobs if job["key"] in known]
    options.out.write_text(page(records, command=_command(), wall=time.monotonic() - started), encoding="utf-8")
    found = sum(bool(r.get("failure") or r.get("crash")) for r in records)
    console.print(f"{len(records)} modules, {found} with a finding: {options.out}")
    return 1 if found else 0


def _job(seed: int, options: argparse.Namespace, findings: Path) -> Job:
    def every(n: int) -> bool:
        return bool(n) and seed % n == 0

    return {
        "key": seed, "findings": str(findings), "onnx": every(options.onnx_every),
        "thorough": every(options.thorough_every),
    }  # fmt: skip


def _command() -> str:
    return f"python -m tests.fuzz {' '.join(sys.argv[1:])}"


if __name__ == "__main__":
    sys.exit(main())
