"""Recipes with several targets: one model and one calibration, a result for each target."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxslim.graph.errors import FxslimError, InputError
from fxslim.identity import key_of
from fxslim.made import plan_key
from fxslim.outputs import MANIFEST, OutputDirectory, verify_manifest, write_json_atomic
from fxslim.pipeline import refuse_early, slim, slim_subject
from fxslim.recipe import Recipe
from fxslim.run_steps import Run, Unwatched, Watcher
from fxslim.slim_options import SlimOptions
from fxslim.stages import Stages
from fxslim.subject import Subject, open_subject

__all__ = ["SUMMARY", "Outcome", "run_recipe"]

SUMMARY = "targets.json"
"""Name of the file that says how each target went."""

_WORK = ".work"


@dataclass(frozen=True)
class Outcome:
    """How a target went: its report, or the error that ended it. `found` says that an earlier run had made it."""

    report: dict[str, Any] | None
    error: FxslimError | None = None
    found: bool = False

    @property
    def exit_code(self) -> int:
        """0 ok, 1 a check or a gate failed, 2 it could not be made."""
        if self.error is not None:
            return self.error.exit_code
        return 0 if self.report is not None and self.report["verdict"] == "ok" else 1


def run_recipe(
    recipe: Recipe, out: str | Path, *, overwrite: bool = False, watcher: Watcher | None = None
) -> dict[str, Outcome]:
    """How each target went, by name; a recipe without targets has one without a name, whose result is `out` itself.

    The others are `out`/NAME. They are opened, calibrated and surveyed once, and what only differs in how it is served
    is planned once. A target that is there already, whole and made from the same, is left as it is.

    Raises:
        InputError: an option, the model or the data cannot be used. Nothing was written.
        FxslimError: of a recipe without targets, a step could not be done.
    """
    if not recipe.targets:
        report = slim(recipe.options, out, overwrite=overwrite, watcher=watcher, pinned=recipe.pinned)
        return {"": Outcome(report)}
    for options in recipe.targets.values():
        refuse_early(options)
    root, run = Path(out).expanduser(), Run(watcher or Unwatched())
    _refuse_result(root)
    stages = Stages(root / _WORK)
    with tempfile.TemporaryDirectory(prefix="fxslim-") as scratch:
        subject = open_subject(recipe.options, Path(scratch), run, recipe.pinned)
        work = _Targets(subject, root, overwrite, stages, run.watcher)
        try:
            outcomes = {name: work.outcome(name, options) for name, options in recipe.targets.items()}
        finally:
            stages.tidy()
    write_json_atomic(root / SUMMARY, {"format": 1, "targets": {n: _summary(o) for n, o in outcomes.items()}})
    stages.close()
    return outcomes


@dataclass(frozen=True)
class _Targets:
    subject: Subject
    root: Path
    overwrite: bool
    stages: Stages
    watcher: Watcher

    def outcome(self, name: str, options: SlimOptions) -> Outcome:
        place = self.root / name
        key = key_of(options=vars(options), plan=plan_key(options, self.subject), data=self.subject.pinned.evaluation)
        if (report := _finished(place, key)) is not None:
            return Outcome(report, found=True)
        command, run = options.command(place), Run(self.watcher)
        try:
            with OutputDirectory(place, overwrite=self.overwrite, facts={"command": command, "key": key}) as directory:
                return Outcome(slim_subject(self.subject, options, directory, command, self.stages, run))
        except FxslimError as error:  # the other targets may do better
            return Outcome(None, error)


def _finished(place: Path, key: str) -> dict[str, Any] | None:
    """The report of a target that was made from the same, and is whole; else None."""
    try:
        facts = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        if facts.get("key") != key or verify_manifest(place):
            return None
        report: dict[str, Any] = json.loads((place / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError):
        return None
    return report


def _refuse_result(root: Path) -> None:
    if (root / MANIFEST).exists():
        raise InputError(
            "this directory is a result itself: it cannot hold those of several targets",
            at=str(root), remedy="choose another",
        )  # fmt: skip


def _summary(outcome: Outcome) -> Mapping[str, Any]:
    report = outcome.report
    return {
        "verdict": "error" if report is None else report["verdict"],
        "failures": [str(outcome.error)] if report is None else report["failures"],
        "exit_code": outcome.exit_code,
        "found": outcome.found,
    }
