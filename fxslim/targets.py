"""Recipes with several targets: one model and one calibration, a result for each target."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fxslim.export import resolve_provider
from fxslim.graph.errors import FxslimError, InputError, LocalError, PlanError, VerifyError
from fxslim.identity import files_digest, key_of
from fxslim.made import help_make, make_slim, plan_key
from fxslim.operator_times import machine_of
from fxslim.outputs import MANIFEST, OutputDirectory, release, verify_manifest, write_json_atomic
from fxslim.passes.team import apart, current_team
from fxslim.pipeline import helper_scratch, refuse_early, refuse_unusable, slim, slim_subject
from fxslim.recipe import Recipe
from fxslim.run_steps import Run, Unwatched, Watcher
from fxslim.slim_options import SlimOptions
from fxslim.stages import Stages
from fxslim.subject import Subject, open_subject

__all__ = ["SUMMARY", "WORK", "Outcome", "run_recipe"]

SUMMARY = "targets.json"
"""Name of the file that says how each target went; it is there once all have been tried."""

WORK = ".work"
"""Name of the folder, beside the targets, in which a run keeps what it has found so far."""

_LOCK = ".lock"
DEFECT = 70


@dataclass(frozen=True)
class Outcome:
    """How a target went: its report, or the error that ended it. `found` says that an earlier run had made it."""

    report: dict[str, Any] | None
    error: Exception | None = None
    found: bool = False

    @property
    def exit_code(self) -> int:
        """0 ok, 1 a check or a gate failed, 2 it could not be made, 70 a defect of fxslim."""
        if self.error is not None:
            return self.error.exit_code if isinstance(self.error, FxslimError) else DEFECT
        return 0 if self.report is not None and self.report["verdict"] == "ok" else 1


def run_recipe(
    recipe: Recipe, out: str | Path, *, overwrite: bool = False, watcher: Watcher | None = None
) -> dict[str, Outcome]:
    """How each target went, by name; a recipe without targets has one without a name, whose result is `out` itself.

    The others are `out`/NAME. They are opened, calibrated and surveyed once, and what only differs in how it is served
    is planned once. A target that is there already, whole and made from the same, is left as it is. What was found out
    stays in `out`/`WORK` as long as a target has not been made.

    Raises:
        InputError: an option, the model or the data cannot be used, or another run is at work in `out`. Nothing was
            written.
        FxslimError: of a recipe without targets, a step could not be done.
    """
    if not recipe.targets:
        report = slim(recipe.options, out, overwrite=overwrite, watcher=watcher, pinned=recipe.pinned)
        return {"": Outcome(report)}
    for options in recipe.targets.values():
        refuse_early(options)
    root, run = Path(out).expanduser(), Run(watcher or Unwatched())
    if not current_team().leads:
        return _help(recipe, root, overwrite)
    stages = Stages(root / WORK)
    with _alone(root), stages.scratch() as scratch:
        subject = open_subject(recipe.options, scratch, run, recipe.pinned)
        (root / SUMMARY).unlink(missing_ok=True)  # of an earlier run: from here on it says nothing
        outcomes = _Targets(subject, root, overwrite, stages, run.watcher).outcomes(recipe.targets)
        write_json_atomic(root / SUMMARY, {"format": 1, "targets": {n: _summary(o) for n, o in outcomes.items()}})
        if all(o.error is None for o in outcomes.values()):
            stages.close()
    return outcomes


def _help(recipe: Recipe, root: Path, overwrite: bool) -> dict[str, Outcome]:
    """What a process does that does not lead: it helps with all plans, and makes some of the targets."""
    with helper_scratch(root, recipe.options) as scratch:
        subject = open_subject(recipe.options, scratch, Run(Unwatched()), recipe.pinned)
        return _Targets(subject, root, overwrite, Stages(root / WORK), Unwatched()).outcomes(recipe.targets)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """The folder for the time of a block, in which no other run may write to it."""
    if (root / MANIFEST).exists():
        raise InputError(
            "this directory is a result itself: it cannot hold those of several targets",
            at=str(root), remedy="choose another",
        )  # fmt: skip
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the results cannot be written here: {error.strerror}", at=str(root)) from error
    lock = FileLock(root / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError("another run is writing to this directory", at=str(root), remedy="wait for it") from None
    try:
        yield
    finally:
        Stages(root / WORK).tidy()
        release(lock)
        if made and not any(root.iterdir()):
            root.rmdir()


@dataclass(frozen=True)
class _Targets:
    subject: Subject
    root: Path
    overwrite: bool
    stages: Stages
    watcher: Watcher

    def outcomes(self, targets: Mapping[str, SlimOptions]) -> dict[str, Outcome]:
        """How all targets went. Several processes plan them together, and then each makes its own; what they learn of
        those of the others are the reports."""
        team = current_team()
        if team.size > 1:
            self._plan(targets)
        mine = {}
        with apart():
            for number, (name, options) in enumerate(targets.items()):
                if team.turn(number):
                    mine[name] = _portable(self.outcome(name, options), team.size)
        found = team.gathered(mine)
        return {name: found[name] for name in targets}

    def _plan(self, targets: Mapping[str, SlimOptions]) -> None:
        """Makes the plans of all targets with all processes; what the first one keeps on disk is found by the others.
        What cannot be planned is told by whoever makes the target."""
        team = current_team()
        for name, options in targets.items():
            there = False
            with suppress(FxslimError):
                there = team.leads and _finished(self.root / name, self._key(options)) is not None
            if team.handed(there):
                continue
            with _told_later():
                run = Run(self.watcher if team.leads else Unwatched())
                analysis, _ = refuse_unusable(self.subject, options, run)
                if team.leads:
                    make_slim(options, self.subject, analysis, self.stages, run)
                else:
                    help_make(options, self.subject, analysis, run)
        team.handed(None)  # the stages are all written before anyone looks for them

    def outcome(self, name: str, options: SlimOptions) -> Outcome:
        """How one target went. Whatever ends it, the others may do better."""
        place = self.root / name
        try:
            key = self._key(options)
            if (report := _finished(place, key)) is not None:
                return Outcome(report, found=True)
            command, run = options.command(place), Run(self.watcher)
            facts = {"command": command, "key": key}
            with OutputDirectory(place, overwrite=self.overwrite, facts=facts) as directory:
                return Outcome(slim_subject(self.subject, options, directory, command, self.stages, run))
        except Exception as error:  # a defect in one target is told, and the others are made
            return Outcome(None, error)

    def _key(self, options: SlimOptions) -> str:
        """A name for all that a result depends on: what it is made from and shipped with, and where it is judged."""
        subject, provider = self.subject, resolve_provider(options.provider)
        evaluation = None if subject.evaluation is None else subject.evaluation.digest()
        return key_of(
            options=vars(options), plan=plan_key(options, subject), evaluation=evaluation,
            files=files_digest(subject.source.companions), provider=provider, machine=machine_of(provider),
        )  # fmt: skip


@contextmanager
def _told_later() -> Iterator[None]:
    """A block whose errors are told by whoever makes the target, where they end all processes alike. What may happen to
    one process alone has to end it, so that the launcher ends the others, who wait for it."""
    try:
        yield
    except LocalError:
        raise
    except (InputError, PlanError, VerifyError):
        return


def _portable(outcome: Outcome, processes: int) -> Outcome:
    """An outcome that another process can be told."""
    error = outcome.error
    if processes == 1 or error is None or isinstance(error, FxslimError):
        return outcome
    return Outcome(None, RuntimeError(f"{type(error).__name__}: {error}"))


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


def _summary(outcome: Outcome) -> Mapping[str, Any]:
    report = outcome.report
    return {
        "verdict": "error" if report is None else report["verdict"],
        "failures": [str(outcome.error)] if report is None else report["failures"],
        "exit_code": outcome.exit_code,
        "found": outcome.found,
    }
