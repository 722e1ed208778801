"""What must hold of every module: captured, analysed, cut by random plans, proven, and the same in ONNX Runtime."""

from __future__ import annotations

import copy
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import CaptureError, FxslimError
from fxslim.graph.evaluate import Evaluator, MaskedEvaluator
from fxslim.graph.program import Program
from fxslim.passes.bases import change_bases
from fxslim.passes.factorise import Factorise, factorisable
from fxslim.passes.fold_norms import FoldNorms
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prepare import ALWAYS, SPLIT, prepare
from fxslim.passes.prune import Prune
from fxslim.passes.subspaces import find_subspaces
from fxslim.passes.survey import survey
from tests.fuzz.grammar import Built, Example, Text, build, seeded
from tests.fuzz.onnx_check import check_export
from tests.fuzz.zeroed import by_weights, zeroed_outputs
from tests.plans import plan_of, random_cut

__all__ = ["Failure", "Outcome", "examine", "examine_module", "examine_program", "random_plan"]

EXACT = 1e-9  # float64 rounding, relative to an output's largest magnitude


class Failure(Exception):
    """Something that must hold does not."""

    def __init__(self, stage: str, what: str, detail: str = "") -> None:
        super().__init__(f"{stage}: {what} {detail}")
        self.stage, self.what, self.detail = stage, what, detail

    @property
    def kind(self) -> str:
        """The same for failures of one cause: without names and numbers."""
        plain = re.sub(r"`[^`]*`|[0-9.e+-]*[0-9]|%?[a-z_]+_[0-9]+", "_", self.what)
        return f"{self.stage}: {' '.join(plain.split())[:90]}"


@dataclass
class Outcome:
    """What was seen of one module. `failure` is None where everything held."""

    seed: int
    features: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    failure: Failure | None = None
    captured: str = ""  # why it was not, where it was not
    groups: int = 0
    exact_groups: int = 0
    cuts: int = 0
    plans: int = 0
    zeroed: int = 0  # plans that the second oracle checked
    silent: int = 0  # plans whose removal changed nothing, also not in the eager module
    exported: bool = False
    times: dict[str, float] = field(default_factory=dict)


@contextmanager
def _stage(outcome: Outcome, name: str) -> Iterator[None]:
    """Times a stage (processor time); any error in it is a failure of that stage."""
    start = time.process_time()
    try:
        yield
    except (Failure, CaptureError):
        raise
    except FxslimError as error:
        raise Failure(name, f"{type(error).__name__}: {error.what}", str(error)) from error
    except Exception as error:  # whatever is raised is what is looked for
        raise Failure(name, f"{type(error).__name__}: {error}") from error
    finally:
        outcome.times[name] = outcome.times.get(name, 0.0) + time.process_time() - start


def examine(text: Text, *, onnx: bool = True, thorough: bool = True) -> Outcome:
    """What is asked of one net; stops at the first failure. Not thorough: two plans, not three, and no identity."""
    outcome = Outcome(text.net.seed, tuple(sorted(text.features)))
    try:
        _examine(build(text), outcome, onnx=onnx, thorough=thorough)
    except CaptureError as error:
        outcome.captured = f"{error.what}"[:300]
    except Failure as failure:
        outcome.failure = failure
    return outcome


def examine_module(
    model: nn.Module, example: Example, dynamic: Mapping[str, Mapping[int, str]], seed: int = 0, *, onnx: bool = True,
    thorough: bool = True,
) -> Outcome:  # fmt: skip
    """The same for a module that is there: what a printed finding calls. `dynamic` names dimensions by argument."""
    outcome = Outcome(seed)
    try:
        _examine(Built(model, example, dynamic), outcome, onnx=onnx, thorough=thorough)
    except Failure as failure:
        outcome.failure = failure
    return outcome


def _examine(built: Built, outcome: Outcome, *, onnx: bool, thorough: bool) -> None:
    with _stage(outcome, "build"), torch.no_grad():
        example = built.example()
        eager = _flat(built.model(*example))
    with _stage(outcome, "capture"):
        program = capture(built.model, example, dynamic_shapes=built.dynamic_shapes)
    outcome.operators = tuple(sorted({str(n.target) for n in program.graph.nodes if n.op == "call_function"}))
    with _stage(outcome, "original"):
        _compare("original", eager, Evaluator(program).run(example), 1e-4)
    examine_program(built, program, outcome, onnx=onnx, thorough=thorough)


def examine_program(built: Built, program: Program, outcome: Outcome, *, onnx: bool, thorough: bool) -> None:
    """All that follows capture.

    Raises:
        Failure: what does not hold.
    """
    with _stage(outcome, "analyze"):
        analysis = analyze(program)
        if analysis.unknown_ops:
            raise Failure("unknown", f"operator without a rule: {sorted(analysis.unknown_ops)}")
    prunable = [g for g in analysis.prunable if g.size > 1]
    outcome.groups, outcome.exact_groups = len(prunable), sum(g.exact for g in prunable)
    inputs = _input_sets(built)
    if thorough:
        with _stage(outcome, "identity"):
            _identity(analysis, program.example_inputs)
        with _stage(outcome, "prepare"):
            _prepared(analysis, inputs, outcome.seed)
        with _stage(outcome, "bases"):
            _based(analysis, inputs, outcome.seed)
        with _stage(outcome, "norms"):
            _plain_norms(analysis, inputs, outcome.seed)
    slim = _plans(built, analysis, inputs, outcome, 3 if thorough else 2) or program
    if onnx:
        with _stage(outcome, "onnx"):
            problem = check_export(slim, inputs)
            if problem:
                raise Failure("onnx", *problem)
        outcome.exported = True


def _prepared(analysis: Analysis, inputs: list[tuple[Tensor, ...]], seed: int) -> None:
    """The prepared program computes the same (the passes raise where it does not) and is cut rightly."""
    prepared = prepare(analysis, (*ALWAYS, SPLIT))
    weights = random.Random(seed).sample(found := factorisable(prepared), min(2, len(found)))
    if weights:
        prepared = prepare(prepared, [Factorise(tuple(weights)).spec()])
    if prepared is not analysis:
        _cut(prepared, inputs, seed)


def _plain_norms(analysis: Analysis, inputs: list[tuple[Tensor, ...]], seed: int) -> None:
    """With plain norms the program computes the same (the pass raises where it does not), is cut rightly, and in
    rotated streams as well."""
    plain = prepare(analysis, [FoldNorms.name])
    if plain is not analysis:
        _cut(plain, inputs, seed)
        _based(plain, inputs, seed)


def _based(analysis: Analysis, inputs: list[tuple[Tensor, ...]], seed: int) -> None:
    """The program in other bases computes the same (the pass raises where it does not) and is cut rightly."""
    subspaces, _ = find_subspaces(analysis, analysis.prunable)
    if subspaces:
        found = survey(analysis, [], subspaces, inputs)
        _cut(change_bases(analysis, found, tuple(found.bases)), inputs, seed)


def _cut(analysis: Analysis, inputs: list[tuple[Tensor, ...]], seed: int) -> None:
    """A random plan is proven."""
    if groups := [g for g in analysis.prunable if g.size > 1]:
        plan = random_plan(analysis, seed, groups)
        _proof(analysis, plan, Prune(plan)(analysis).program, inputs)


def _plans(
    built: Built, analysis: Analysis, inputs: list[tuple[Tensor, ...]], outcome: Outcome, plans: int
) -> Program | None:
    """Random plans of three kinds, each proven; the slim program of the last."""
    slim = None
    seed = outcome.seed
    weights = {g.name for g in by_weights(analysis)}
    chosen: list[Callable[[Group], bool]] = [
        lambda g: g.name in weights, lambda g: True, lambda g: g.exact,
    ]  # fmt: skip
    for number, wanted in enumerate(chosen[:plans]):
        groups = [g for g in analysis.prunable if g.size > 1 and wanted(g)]
        if not groups:
            continue
        plan = random_plan(analysis, seed + number, groups)
        outcome.plans, outcome.cuts = outcome.plans + 1, outcome.cuts + len(plan.cuts)
        with _stage(outcome, "prune"):
            slim = Prune(plan)(analysis).program
        with _stage(outcome, "prove"):
            effect = _proof(analysis, plan, slim, inputs)
        with _stage(outcome, "module"):
            _module_agrees(slim, inputs[-1])
        if number == 0:
            with _stage(outcome, "zeroed"):
                _second_oracle(built, analysis, plan, slim, inputs, effect, outcome)
        elif not effect:
            outcome.silent += 1
    return slim


def _proof(analysis: Analysis, plan: Plan, slim: Program, inputs: Sequence[tuple[Tensor, ...]]) -> float:
    """Like `prove` for a slim program that is there already; returns the effect of masking. There are no caches."""
    masked = MaskedEvaluator(analysis.axes, plan.selection(analysis), dtype=torch.float64)
    whole, small = (Evaluator(p, dtype=torch.float64) for p in (analysis.program, slim))
    effect = 0.0
    for args in inputs:
        wanted = masked.run(args)
        _compare("prove", wanted, small.run(args), EXACT, _list(plan))
        effect = max([effect, *map(_error, wanted, whole.run(args))])
    return effect


def _list(plan: Plan) -> str:
    return "; ".join(f"{c.group} {c.count}/{c.size}{' batched' if c.batch else ''}" for c in plan.cuts)


def _second_oracle(
    built: Built, analysis: Analysis, plan: Plan, slim: Program, inputs: Sequence[tuple[Tensor, ...]], effect: float,
    outcome: Outcome,
) -> None:  # fmt: skip
    """The original module with columns of its consuming weights zeroed: no rule takes part in that arithmetic."""
    changed = False
    for args in inputs:
        masked, original = zeroed_outputs(built.model, analysis, plan, args)
        got = Evaluator(slim, dtype=torch.float64).run(args)
        _compare("zeroed", masked, got, EXACT, f"{_list(plan)}")
        changed |= any(_error(a, b) > EXACT for a, b in zip(original, masked, strict=True))
    outcome.zeroed += 1
    if changed and not effect:
        raise Failure("zeroed", "masking had no effect, zeroed weights have one", _list(plan))
    outcome.silent += not effect


def random_plan(analysis: Analysis, seed: int, groups: Sequence[Group]) -> Plan:
    """Random counts of random positions for most of the groups, others for every batch position where that may be."""
    rng, generator = random.Random(seed), seeded(seed)
    taken = [g for g in groups if rng.random() < 0.8] or [rng.choice(list(groups))]
    batched: dict[object, tuple[object, ...]] = {}
    cuts = []
    for group in taken:
        count = rng.randint(1, group.size - 1)
        apart = rng.random() < 0.7 and not any(group.axis in batched.get(b, ()) for b in group.batch)
        batched[group.axis] = group.batch if apart else ()
        cuts.append(random_cut(group, count, generator, alike=not apart))
    return plan_of(analysis, cuts)


def _input_sets(built: Built) -> list[tuple[Tensor, ...]]:
    """The example, and other values at other sizes where they may differ."""
    names = {name for dims in built.dynamic.values() for name in dims.values()}
    if not names:
        return [built.example()]
    sizes = {name: size for name, size in (("batch", 4), ("s", 5), ("t", 3)) if name in names}
    return [built.example(), built.example(**sizes, seed=5)]


def _identity(analysis: Analysis, example: Sequence[Tensor]) -> None:
    """A plan that keeps everything changes nothing, not even rounding."""
    cuts = tuple(Cut(g.name, g.kind, g.size, g.size, (), tuple(range(g.size))) for g in analysis.prunable if g.size > 1)
    slim = Prune(Plan(analysis.program.fingerprint(), cuts))(analysis).program
    for a, b in zip(Evaluator(analysis.program).run(example), Evaluator(slim).run(example), strict=True):
        if not torch.equal(a, b):
            raise Failure("identity", "keeping everything changes the result")


def _module_agrees(slim: Program, args: Sequence[Tensor]) -> None:
    """The module that a user gets computes what the evaluator does."""
    module = copy.deepcopy(slim.module()).double()
    with torch.no_grad():
        got = _flat(module(*(a.double() if a.is_floating_point() else a for a in args)))
    _compare("module", Evaluator(slim, dtype=torch.float64).run(args), got, EXACT)


def _flat(outputs: object) -> list[Tensor]:
    return [v.detach() for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor)]


def _compare(
    stage: str, wanted: Sequence[Tensor], got: Sequence[Tensor], tolerance: float, detail: str = ""
) -> None:  # fmt: skip
    for a, b in zip(wanted, got, strict=True):
        if a.shape != b.shape:
            raise Failure(stage, f"the shape is {list(b.shape)} instead of {list(a.shape)}", detail)
        if not bool(torch.isfinite(a).all()):
            raise Failure(stage, "an output is not finite", detail)
        if _error(a, b) > tolerance:
            raise Failure(stage, "values differ", f"by {_error(a, b):.1e}; {detail}")


def _error(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    return float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-30))
