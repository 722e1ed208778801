"""Proof: the slim program equals the original with the removed units masked, in float64, before any restoration."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.select import Selection
from fxslim.graph.errors import CheckError
from fxslim.graph.evaluate import Evaluator, MaskedEvaluator
from fxslim.graph.program import Program, bind_symbols
from fxslim.passes.plan import Plan
from fxslim.passes.prune import Prune

__all__ = ["TOLERANCE", "OutputError", "Proof", "prove"]

# The largest error of an output, relative to its largest magnitude, that float64 rounding explains.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class OutputError:
    """One output: masked original against slim program."""

    name: str
    error: float  # largest difference, relative to the largest magnitude of the masked original
    effect: float  # largest difference that masking makes to the original, relative: 0 means nothing was tested
    inputs: int  # which set of inputs


@dataclass(frozen=True)
class Proof:
    """The result of `prove`."""

    outputs: tuple[OutputError, ...]
    tolerance: float
    cuts: int  # groups that the plan cuts
    inexact: tuple[str, ...]  # places at which removing a unit changes values that stay, by group
    shaken: bool = False  # masking changed nothing: the comparison was repeated with random weights

    @property
    def max_error(self) -> float:
        """The largest relative error over all outputs."""
        return max(o.error for o in self.outputs)

    @property
    def effect(self) -> float:
        """The largest relative change that masking makes."""
        return max(o.effect for o in self.outputs)

    @property
    def ok(self) -> bool:
        """Whether every output agrees. For inexact groups the agreement is with the original whose tied operators
        (listed in `inexact`) see the kept units alone: the rewrite is right, but pruned is not the same as masked."""
        return self.conclusive and all(o.error <= self.tolerance for o in self.outputs)

    @property
    def conclusive(self) -> bool:
        """Whether masking changed more than rounding does (or the plan cuts nothing): else agreement says nothing."""
        return not self.cuts or self.effect > self.tolerance

    @property
    def exact(self) -> bool:
        """Whether no group of the plan crosses a tied operator."""
        return not self.inexact

    def __str__(self) -> str:
        if not self.cuts:
            return f"nothing is cut; both programs agree to {self.max_error:.1e}"
        verdict = "proven" if self.ok else "NOT proven" if self.conclusive else "NOT proven (masking had no effect)"
        scope = "exact" if self.exact else f"up to {len(self.inexact)} tied places"
        scope += ", on random weights: what is cut was dead" if self.shaken else ""
        return f"{verdict} ({scope}): relative error {self.max_error:.1e}, masking changes outputs by {self.effect:.1e}"


def prove(
    analysis: Analysis, plan: Plan, inputs: Sequence[Sequence[Tensor]] | None = None, tolerance: float = TOLERANCE
) -> Proof:
    """Compares the masked original with the slim program (both in float64) on `inputs`, by default the example inputs.

    Where masking changes nothing (what is cut was dead), agreement would say nothing of the rewriting: both are
    compared once more with random weights of the same spread.

    Raises:
        CheckError: there are no inputs, or an output is not finite, so that nothing can be compared.
        PlanError: the plan does not fit the program.
    """
    sets = list(inputs) if inputs is not None else [analysis.program.example_inputs]
    if not sets:
        raise CheckError("there are no inputs: nothing can be compared", remedy="give at least one set of inputs")
    errors = _errors(analysis, plan, sets)
    cuts, shaken = sum(c.count < c.size for c in plan.cuts), False
    if cuts and not any(o.effect > tolerance for o in errors):  # zero, or rounding
        with suppress(CheckError):  # random weights may overflow: then the proof stays inconclusive
            errors, shaken = errors + _errors(_shaken(analysis), plan, sets), True
    return Proof(tuple(errors), tolerance, cuts, inexact_places(analysis, plan), shaken)


def _shaken(analysis: Analysis) -> Analysis:
    """The same program with random numbers of the same spread for every trainable weight: dead units come to life."""
    program = analysis.program.clone()
    generator = torch.Generator().manual_seed(0)
    for name in analysis.program.weights:
        info = program.info[name]
        if info.dtype.is_floating_point and info.trainable:
            tensor = analysis.program.weights[name]
            spread = float(tensor.detach().double().std(correction=0)) or 0.1
            program.weights[name] = (torch.randn(tensor.shape, generator=generator) * spread).to(tensor)
    return analyze(program)


def _errors(analysis: Analysis, plan: Plan, sets: Sequence[Sequence[Tensor]]) -> list[OutputError]:
    selection = plan.selection(analysis)
    slim = Prune(plan)(analysis).program
    masked = MaskedEvaluator(analysis.axes, selection, dtype=torch.float64)
    whole = Evaluator(analysis.program, dtype=torch.float64)
    small = Evaluator(slim, dtype=torch.float64)
    errors: list[OutputError] = []
    for number, tensors in enumerate(sets):
        wanted = masked.run(tensors)
        original = whole.run(tensors)
        got = small.run(_cut_inputs(analysis, selection, tensors))
        errors += _compare(analysis, selection, tensors, wanted, original, got, number)
    if not errors:
        raise CheckError("the program returns no tensor: there is nothing to compare")
    return errors


def inexact_places(analysis: Analysis, plan: Plan) -> tuple[str, ...]:
    """The tied places that the cut groups of a plan cross."""
    cut = {c.group for c in plan.cuts if c.count < c.size}
    return tuple(f"{g.name}: {reason}" for g in analysis.groups if g.name in cut for reason in g.inexact)


def _cut_inputs(analysis: Analysis, selection: Selection, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Cache inputs lose the positions that the plan removes; all others are as they were."""
    symbols = bind_symbols(analysis.program, tensors)
    nodes = analysis.program.graph.find_nodes(op="placeholder")
    return [selection.take(t, analysis.axes.dims(n), symbols) for n, t in zip(nodes, tensors, strict=True)]


def _compare(
    analysis: Analysis, selection: Selection, tensors: Sequence[Tensor], wanted: list[Tensor], original: list[Tensor],
    got: list[Tensor], number: int,
) -> list[OutputError]:  # fmt: skip
    symbols = bind_symbols(analysis.program, tensors)
    program: Program = analysis.program
    errors = []
    for name, node, a, o, b in zip(program.output_names, program.output_nodes, wanted, original, got, strict=True):
        if not isinstance(a, Tensor):
            continue
        if isinstance(node, fx.Node) and node in analysis.axes.values:
            dims = analysis.axes.dims(node)
            a, o = selection.take(a, dims, symbols), selection.take(o, dims, symbols)
        errors.append(OutputError(name, _relative(a, b, name), _relative(a, o, name), number))
    return errors


def _relative(reference: Tensor, other: Tensor, name: str) -> float:
    if reference.shape != other.shape:
        return float("inf")
    if not reference.numel():
        return 0.0
    a, b = reference.double(), other.double()
    if not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(b).all()):
        raise CheckError(f"the output {name!r} is not finite: nothing can be compared", remedy="choose other inputs")
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
