"""What the oracle says of the calls that OpInfo's samples make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from fxslim.graph.axes.notation import DimRule, Kind, letters_of
from fxslim.graph.axes.oracle import BadRule, Sample, check, letter_sizes
from fxslim.graph.errors import RuleError
from tests.graph.axes.opinfo_batch import batch_violations

__all__ = ["Finding", "Verdict", "judge"]

_MISSED = "a missed chance"
# Moving integers leaves any basis, vacuously: what makes numbers of them (a cast, a lookup) permits permutations only.
_INTEGRAL = "but lies on integers"
_AGAIN = 4  # other numbers that a missed chance is tried with
# What the analysis reports by name as a rule that does not fit, instead of failing.
_REFUSALS = (RuleError, TypeError, ValueError, KeyError, IndexError, AttributeError)


@dataclass(frozen=True)
class Finding:
    """One claim of a rule that its operator refutes on a sample."""

    sample: Sample
    rule: str
    text: str

    def __str__(self) -> str:
        shapes = ", ".join(str(list(t.shape)) for t in self.sample.operands)
        literals = {k: v for k, v in self.sample.call.arguments.items() if not _holds_node(v)}
        return f"{self.sample.op} {shapes} {literals}: {self.rule}: {self.text}"


def _holds_node(value: object) -> bool:
    return any(isinstance(v, fx.Node) for v in (value if isinstance(value, list | tuple) else (value,)))


@dataclass
class Verdict:
    """The oracle's findings over many samples."""

    run: Counter[str] = field(default_factory=Counter)  # samples tried, by overload
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    refused: Counter[str] = field(default_factory=Counter)  # the rule raises what the analysis reports, by overload
    declined: Counter[str] = field(default_factory=Counter)  # the rule returns None, by overload
    findings: list[Finding] = field(default_factory=list)
    batched: int = 0  # selections that differ along a batch axis
    missed: dict[tuple[str, str], list[Finding]] = field(default_factory=dict)  # (overload, letter)
    cautious: Counter[tuple[str, str]] = field(default_factory=Counter)  # samples that could have missed a chance

    def cautions(self) -> dict[tuple[str, str], Finding]:
        """Chances that are missed on every sample, with other numbers too."""
        return {key: found[0] for key, found in self.missed.items() if len(found) == self.cautious[key]}


def judge(samples: Iterable[Sample]) -> Verdict:
    """The verdict of the oracle over all samples."""
    verdict = Verdict()
    for sample in samples:
        reason = _unfit(sample)
        if reason is not None:
            verdict.skipped[reason] += 1
            continue
        try:
            rule = sample.rule
        except _REFUSALS:
            verdict.refused[str(sample.op)] += 1
        except Exception as error:  # the analysis would fail with it: that is the finding
            verdict.findings.append(Finding(sample, "no rule", f"{type(error).__name__}: {error}"))
        else:
            if rule is None:
                verdict.declined[str(sample.op)] += 1
            else:
                _one(sample, rule, verdict)
    return verdict


def _one(sample: Sample, rule: DimRule, verdict: Verdict) -> None:
    op = str(sample.op)
    verdict.run[op] += 1
    for letter in _cautious_letters(sample, rule):
        verdict.cautious[(op, letter)] += 1
    for text in check(sample, rule):
        finding = Finding(sample, str(rule), text)
        if _MISSED in text:
            if _missed_again(sample, rule, text):
                verdict.missed.setdefault((op, text.split("`")[1]), []).append(finding)
        elif _INTEGRAL not in text or _both_kinds(sample, rule, text.split("`")[1]):
            verdict.findings.append(finding)
    tried, found = batch_violations(sample, rule)
    verdict.batched += tried
    verdict.findings += [Finding(sample, str(rule), text) for text in found]


def _missed_again(sample: Sample, rule: DimRule, text: str) -> bool:
    """Whether a chance is missed with other numbers too: what removes a small number from a maximum proves nothing."""
    for seed in range(_AGAIN):
        generator = torch.Generator().manual_seed(seed)
        shift = 3.0 * (-1) ** seed  # a maximum of positive numbers does not notice a zero, a minimum of negative ones
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda t, g=generator, s=shift: _redrawn(t, g, s), (sample.args, sample.kwargs)
        )
        other = Sample(sample.op, args, kwargs, floor=sample.floor)
        try:
            if text not in check(other, rule):
                return False
        except RuntimeError:  # the operator does not take such numbers
            return True
    return True


def _redrawn(tensor: Tensor, generator: torch.Generator, shift: float) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) + shift


def _both_kinds(sample: Sample, rule: DimRule, letter: str) -> bool:
    """Whether the letter lies on integers and on others."""
    values = zip((*sample.operands, *sample.run(sample.operands)), (*rule.operands, *rule.results), strict=True)
    return len({t.is_floating_point() for t, dims in values if letter in letters_of(dims)}) > 1


def _cautious_letters(sample: Sample, rule: DimRule) -> list[str]:
    results = [t.shape for t in sample.run(sample.operands)]
    try:
        sizes = letter_sizes(rule, [t.shape for t in sample.operands], results)
    except BadRule:
        return []  # `check` reports it
    return [x for x, n in sizes.items() if n > 1 and rule.kind(x) in (Kind.TIED, Kind.FIXED)]


def _unfit(sample: Sample) -> str | None:
    """Why a sample cannot be tried."""
    value = sample.call.node.meta["val"]
    results = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(r, Tensor) for r in results):
        return "the result is not a tensor"
    if any(r.is_complex() for r in results):
        return "complex numbers"
    if any(t.is_floating_point() and t.dtype is not torch.float64 for t in (*sample.operands, *results)):
        return "numbers of less than 64 bits"
    if any(r.numel() == 0 for r in results):
        return "a tensor without elements"
    if sample.undefined:
        return None
    return "random" if torch.Tag.nondeterministic_seeded in sample.op.tags and _varies(sample, results) else None


def _varies(sample: Sample, results: list[Tensor]) -> bool:
    """Whether a dropout drops: the tag stands on inactive ones too. A coin that falls twice alike is thrown again."""
    runs = [sample.run(sample.operands) for _ in range(8)]
    return any(
        not torch.equal(a.nan_to_num(), b.nan_to_num()) for run in runs for a, b in zip(results, run, strict=True)
    )
