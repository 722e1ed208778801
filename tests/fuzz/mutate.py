"""`--mutate`: every broken rule must be noticed by some module that uses the operator."""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import fx

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.registry import REGISTRY
from fxslim.graph.capture import capture
from fxslim.graph.errors import CaptureError, FxslimError
from fxslim.graph.program import Program
from fxslim.passes.prune import Prune
from tests.fuzz.check import Failure, Outcome, examine_program, random_plan
from tests.fuzz.generate import generate
from tests.fuzz.grammar import Built, build
from tests.fuzz.mutants import LITERALS, Mutant, broken, mutants_of, reached
from tests.fuzz.run import Job, Record, run_all
from tests.fuzz.zeroed import positions

__all__ = ["mutate", "try_mutants"]

CAUTIOUS = "fewer groups are prunable or exact than by the right rule"


ENOUGH = 4
"""On so many modules a rule that only makes the analysis more cautious is tried for one where it does worse."""


@dataclass
class Fate:
    """What became of a mutant."""

    caught: str = ""  # by what; an oracle comes before caution
    cautious: int = 0  # modules on which it only made fewer groups prunable
    seen: int = 0  # modules on which the broken rule says something else
    changed: int = 0  # modules on which the analysis came out different
    seeds: list[int] = field(default_factory=list)  # of the latter

    @property
    def settled(self) -> bool:
        """Whether more modules would tell nothing new."""
        return self.caught not in ("", CAUTIOUS) or self.cautious >= ENOUGH

    @property
    def survived(self) -> bool:
        """Whether a module was analysed differently, no less freely, and nothing was noticed on any module."""
        return self.changed > self.cautious and self.caught in ("", CAUTIOUS)


def try_mutants(job: Job) -> Record:
    """One module under every mutant of `job["open"]` that concerns it: how each was noticed, or that it was not."""
    warnings.simplefilter("ignore")
    logging.getLogger("torch").setLevel(logging.CRITICAL)  # shapes that do not fit are what is asked for
    built = build(generate(job["key"]))
    record: Record = {"key": job["key"], "operators": [], "fates": []}
    try:
        program = capture(built.model, built.example(), dynamic_shapes=built.dynamic_shapes)
        right = analyze(program)
        if right.unknown_ops or not right.prunable:
            return record
        examine_program(built, program, Outcome(0), onnx=False, thorough=True)
    except (CaptureError, Failure):
        return record
    operators = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    record["operators"] = sorted(operators)
    moved = _with_new_literals(program, right)
    for operator, change in job["open"]:
        if change == LITERALS and operator not in moved:
            continue
        if operator in operators and reached(program, Mutant(operator, change)):
            caught, changed = _one(built, program, right, Mutant(operator, change))
            record["fates"].append((operator, change, caught, changed))
    return record


def _one(built: Built, program: Program, right: Analysis, mutant: Mutant) -> tuple[str, bool]:
    """How a mutant was noticed (empty: it was not), and whether the analysis came out different at all."""
    with broken(mutant):
        try:
            wrong = analyze(program)
        except FxslimError as error:
            return f"analyze: {type(error).__name__}", True
        except Exception as error:  # a broken rule may break anything; that it does is what is looked for
            return f"analyze: {type(error).__name__}", True
        if wrong.unknown_ops:
            return "analyze: the rule does not fit", True
        if _facts(wrong) == _facts(right) and mutant.change != LITERALS:
            return "", False
        for seed in range(4):
            try:
                examine_program(built, program, Outcome(seed), onnx=False, thorough=True)
            except Failure as failure:
                return failure.stage, True
    return (CAUTIOUS if _chances(wrong) < _chances(right) else ""), True


def _with_new_literals(program: Program, analysis: Analysis) -> set[str]:
    """The operators of which cutting changes an argument that is no tensor."""
    groups = [g for g in analysis.prunable if g.size > 1]
    slim = Prune(random_plan(analysis, 0, groups))(analysis).program if groups else program
    pairs = zip(program.graph.nodes, slim.graph.nodes, strict=True)
    return {str(a.target) for a, b in pairs if a.op == "call_function" and _numbers(a) != _numbers(b)}


def _numbers(node: fx.Node) -> object:
    return fx.map_arg((node.args, node.kwargs), lambda _: None)


def _facts(analysis: Analysis) -> list[object]:
    """What a plan can see."""
    return [
        (g.size, g.exact, [a.size for a in g.batch], [(s.weight, s.dim, positions(s.layout, g.size)) for s in g.sites])
        for g in analysis.prunable
        if g.size > 1
    ]


def _chances(analysis: Analysis) -> tuple[int, int, int]:
    """Positions that may be removed, those exactly, and those apart for every batch position."""
    free = analysis.prunable
    return sum(g.size for g in free), sum(g.size for g in free if g.exact), sum(len(g.batch) for g in free)


def mutate(options: argparse.Namespace) -> int:
    """Runs modules until every mutant is caught or the modules are used up. Exit code 1 where one survived."""
    fates = {mutant: Fate() for op in REGISTRY for mutant in mutants_of(op)}
    open_list = [(m.operator, m.change) for m in fates]
    seeds = range(options.seed, options.seed + options.count)
    static = [s for s in seeds if generate(s).net.dynamic == "none" or s % 4 == 0]  # the others take twice as long
    jobs: list[Job] = [{"key": s, "open": open_list} for s in static]
    out = options.out.with_name("fuzz_mutants.md")
    used: Counter[str] = Counter()
    console, started = Console(stderr=True), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("modules", total=len(jobs))
        for record in run_all(jobs, try_mutants, workers=options.jobs, seconds=4 * options.time_limit):
            progress.advance(task)
            _note(record, fates, used)
            # The list is shared by the jobs that are still to be handed over.
            open_list[:] = [(m.operator, m.change) for m, f in fates.items() if not f.settled]
            out.write_text(_page(fates, used, time.monotonic() - started), encoding="utf-8")
            if options.minutes and time.monotonic() - started > 60 * options.minutes:
                break
    survived = [m for m, f in fates.items() if f.survived]
    console.print(f"{len(survived)} mutants survived: {out}")
    return 1 if survived else 0


def _note(record: Record, fates: dict[Mutant, Fate], used: Counter[str]) -> None:
    if "crash" in record:
        return  # which of the mutants it was is not known: another module will tell
    used.update(record["operators"])
    for operator, change, caught, changed in record["fates"]:
        fate = fates[Mutant(operator, change)]
        fate.seen += 1
        fate.cautious += caught == CAUTIOUS
        fate.caught = fate.caught if fate.caught not in ("", CAUTIOUS) else caught or fate.caught
        if changed:
            fate.changed += 1
            fate.seeds.append(record["key"])


def _page(fates: dict[Mutant, Fate], used: Counter[str], wall: float) -> str:
    caught = [f for f in fates.values() if f.caught and not f.survived]
    survived = [(m, f) for m, f in fates.items() if f.survived]
    silent = [(m, f) for m, f in fates.items() if f.seen and not f.changed and not f.caught]
    ways = Counter(f.caught for f in caught)
    unused = sorted({m.operator for m in fates} - set(used))
    lines = [
        "# Broken rules", "",
        f"{len(caught)} of {len(caught) + len(survived)} broken rules were noticed ({wall:.0f} s).", "",
        "A broken rule counts where it says something else than the right rule of a call of some module, and the "
        "analysis of that module comes out different. Changes of the claimed symmetry alone are not made: no plan "
        "depends on them.", "",
        "| noticed by | broken rules |", "|---|---|", *(f"| {way} | {n} |" for way, n in ways.most_common()), "",
        "## Not noticed", "", *(_rows(survived) or ["None."]), "",
        "## Without any effect on the modules that have such calls", "",
        "The letter lies on dimensions that are fixed by something else as well (inputs and outputs of the user, "
        "windows), so that both rules say the same of every weight.", "", *(_rows(silent) or ["None."]), "",
        f"## Operators with a rule that no module used ({len(unused)})", "", ", ".join(f"`{u}`" for u in unused),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _rows(pairs: Sequence[tuple[Mutant, Fate]]) -> list[str]:
    return [f"- `{m.operator}`: {m.change} ({f.seen} modules, e.g. seeds {f.seeds[:3]})" for m, f in pairs]
