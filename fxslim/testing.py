"""For the tests of plug-ins: is a rule right, does a pass keep its promises?

check_rule(torch.ops.mine.gate.default, (torch.randn(2, 3, 5), torch.randn(5)))
check_pass(MyPass(), program)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.oracle import Sample, check
from fxslim.graph.errors import CheckError
from fxslim.graph.program import Program
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.prepare import on_trial

__all__ = ["Sample", "check_pass", "check_rule"]


def check_rule(
    op: Callable[..., Any],
    *samples: Sequence[Any] | Sample,
    cautious: Mapping[str, str] | None = None,
    seed: int = 0,
) -> None:
    """Returns if the rule of `op` holds for every sample call: the arguments as a tuple, or a `Sample` with keywords.

    Floating tensors are taken in float64. Positions of every letter are removed from the operands, the operator runs,
    and the result has to be what removing them from the result gives; a random member of the symmetry that is claimed
    is applied likewise. Give unequal sizes, at least 3, and a sample for every case that the rule distinguishes. A
    letter that is *tied* or *fixed* although slicing it is exact is refused too, unless `cautious` says why, by letter.

    Raises:
        CheckError: there is no sample, no rule, the rule declines a sample, or a claim does not hold.
    """
    if not samples:
        raise CheckError(
            f"no sample call of {op}: nothing was checked", remedy="give arguments: check_rule(op, (x, w))"
        )
    for given in samples:
        sample = given if isinstance(given, Sample) else Sample(op, tuple(given))
        if sample.op is not op:
            raise CheckError(f"a sample is a call of {sample.op}, not of {op}")
        args, kwargs = pytree.tree_map_only(torch.Tensor, _wide, (sample.args, dict(sample.kwargs)))
        _check(Sample(op, args, kwargs, sample.note, sample.undefined, sample.floor), cautious or {}, seed)


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.detach().double() if value.is_floating_point() else value


def _check(sample: Sample, cautious: Mapping[str, str], seed: int) -> None:
    shapes = ", ".join(str(tuple(t.shape)) for t in sample.operands)
    rule = sample.rule
    if rule is None:
        raise CheckError(
            f"{sample.name} has no rule for operands of shape {shapes}", remedy="register one, or leave this sample out"
        )
    missed = "a missed chance"
    found = [f for f in check(sample, rule, seed) if not (missed in f and f.split("`")[1] in cautious)]
    if found:
        raise CheckError(
            f"the rule of {sample.name} does not hold: {'; '.join(found)}", at=f"operands {shapes}", rule=str(rule),
            remedy="mend the rule; for a missed chance that is on purpose, say why: cautious={letter: reason}",
        )  # fmt: skip


def check_pass(step: Pass, program: Program | Analysis) -> PassResult:
    """What `step` makes of a program, if it keeps its promises.

    The program that it was given is as before; the result is well formed, has the same interface, and (where
    `step.preserves`) computes the same; applied to its own result the pass changes nothing more; its text is read back
    as the same pass.

    Raises:
        VerifyError: the pass changed its input, or its result is malformed or computes something else.
        CheckError: another promise does not hold, or the pass changed nothing, so that nothing was checked.
    """
    from fxslim.passes.spec import parse_pass

    result = on_trial(step, program if isinstance(program, Analysis) else analyze(program))
    if not result.modified:
        raise CheckError(f"the pass {step.name!r} changes nothing of this program", remedy="give one that it changes")
    if parse_pass(step.spec(), {step.name: type(step)}) != step:
        raise CheckError(f"{step.spec()!r} is read back as another pass", remedy="use options of short types")
    if step(analyze(result.program)).modified:
        raise CheckError(f"the pass {step.name!r} changes its own result again", remedy="look for what is left to do")
    return result
