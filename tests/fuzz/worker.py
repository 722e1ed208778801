"""What a worker does with one seed: draw, examine, shrink what fails, and write it down."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from tests.fuzz.check import Failure, Outcome, examine
from tests.fuzz.generate import generate
from tests.fuzz.grammar import Text
from tests.fuzz.run import Job, Record
from tests.fuzz.shrink import shrink

__all__ = ["finding", "fuzz_one", "record_of"]

_SHRINK_TRIALS = 60


def fuzz_one(job: Job) -> Record:
    """The record of one seed. `findings`: where a minimal module goes; `onnx`, `thorough`: what is checked."""
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # of a rewrite that goes wrong the error says it all
    text = generate(job["key"])
    outcome = examine(text, onnx=job["onnx"], thorough=job["thorough"])
    record = record_of(job["key"], outcome)
    if outcome.failure is not None:
        record["minimal"] = _minimise(text, outcome.failure, job)
    return record


def record_of(key: int, outcome: Outcome) -> Record:
    """An outcome as JSON values."""
    failure = outcome.failure
    return {
        "key": key, "features": outcome.features, "operators": outcome.operators, "captured": outcome.captured,
        "failure": failure and failure.kind, "detail": failure and f"{failure.what} {failure.detail}"[:1000],
        "groups": outcome.groups, "exact_groups": outcome.exact_groups, "cuts": outcome.cuts, "plans": outcome.plans,
        "zeroed": outcome.zeroed, "silent": outcome.silent, "exported": outcome.exported,
        "times": {k: round(v, 4) for k, v in outcome.times.items()},
    }  # fmt: skip


def _minimise(text: Text, failure: Failure, job: Job) -> str:
    """The file with the smallest module that fails like this; one of each kind is shrunk, the others printed whole."""
    kind = failure.kind
    folder = Path(job["findings"])
    if not any(f"# {kind}\n" in known.read_text(encoding="utf-8") for known in folder.glob("*.py")):
        text = shrink(text, lambda smaller: _kind(smaller, kind, job) == kind, limit=_SHRINK_TRIALS)
    path = folder / f"{job['key']}.py"
    path.write_text(finding(text, kind, job), encoding="utf-8")
    return str(path)


def _kind(text: Text, wanted: str, job: Job) -> str | None:
    failure = examine(text, onnx=wanted.startswith("onnx"), thorough=job["thorough"]).failure
    return failure.kind if failure is not None else None


_FOOTER = """

if __name__ == "__main__":
    from tests.fuzz.check import examine_module

    outcome = examine_module(fill(M(), SEED), example, DYNAMIC, SEED, onnx={onnx}, thorough={thorough})
    raise SystemExit(str(outcome.failure) if outcome.failure else 0)
"""


def finding(text: Text, kind: str, job: Job) -> str:
    """A script that holds the module and shows its failure."""
    return f"# {kind}\n" + text.source + _FOOTER.format(onnx=kind.startswith("onnx"), thorough=job["thorough"])
