"""Preparation: passes that come before the cuts of a plan. All preserve the numerics and open a program to more cuts,
but for two, which leave residual branches out and let them share weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.errors import FxslimError, InputError, VerifyError
from fxslim.graph.program import Program
from fxslim.graph.verify import verify
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.drop_branches import DropBranches
from fxslim.passes.factorise import Factorise
from fxslim.passes.fold import FoldConstants
from fxslim.passes.fold_norms import FoldNorms
from fxslim.passes.same import verify_same_function
from fxslim.passes.share_branches import ShareBranches
from fxslim.passes.spec import OPTION_TYPES, option_types, parse_pass, spec_name
from fxslim.passes.split import SplitFused

__all__ = [
    "ALWAYS",
    "PREPARATIONS",
    "SPLIT",
    "add_preparation",
    "left_to_repeat",
    "on_trial",
    "preparations_of",
    "prepare",
]

_PASSES: tuple[type[Pass], ...] = (FoldConstants, SplitFused, FoldNorms, Factorise, DropBranches, ShareBranches)
PREPARATIONS: dict[str, type[Pass]] = {kind.name: kind for kind in _PASSES}
ALWAYS, SPLIT = (FoldConstants.name,), SplitFused.name
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def add_preparation(kind: type[Pass], *, replace: bool = False) -> None:
    """Makes a pass from elsewhere known by its name, so that plans can ask for it.

    Raises:
        InputError: it is no frozen dataclass derived from `Pass`, its name is not in kebab case or is taken (unless
            `replace`), or an option is of a type that has no text.
    """
    if not (isinstance(kind, type) and issubclass(kind, Pass) and is_dataclass(kind) and kind is not Pass):
        raise InputError(f"{kind!r} is no dataclass derived from fxslim.passes.base.Pass")
    if not kind.__dataclass_params__.frozen:
        raise InputError(f"the pass {kind.__name__} can be changed after it was made", remedy="@dataclass(frozen=True)")
    name: Any = getattr(kind, "name", None)
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InputError(
            f"the pass {kind.__name__} is called {name!r}",
            remedy='write `name: ClassVar[str] = "my-pass"`: lower case, words joined by hyphens',
        )
    for option, hint in option_types(kind).items():
        if hint not in OPTION_TYPES:
            raise InputError(
                f"the option {option!r} of the pass {name!r} has a type that plans cannot write down",
                remedy="use str, int, float, bool or tuple[str, ...]",
            )
    if name in PREPARATIONS and not replace:
        raise InputError(
            f"there is a pass {name!r} already", at=PREPARATIONS[name].__module__,
            remedy="choose another name, or say replace=True if yours is to be used instead",
        )  # fmt: skip
    PREPARATIONS[name] = kind


def prepare(program: Program | Analysis, names: Sequence[str] = ALWAYS) -> Analysis:
    """The analysis of the prepared program; of the program itself where the passes change nothing.

    `names` are passes as text, options included: `factorise{weights=a.weight+b.weight}`. One with options that the
    program has gone through already is not repeated: the weights that it names are gone.

    Raises:
        InputError: there is no such preparation, its text is malformed, or it cannot be applied to this program.
    """
    analysis = program if isinstance(program, Analysis) else analyze(program)
    done = {text for text in analysis.program.history if text != spec_name(text)}
    steps = [parse_pass(name, PREPARATIONS) for name in names]
    for step in steps:
        if step.spec() in done:
            continue
        result = step(analysis) if type(step) in _PASSES else on_trial(step, analysis)
        if result.modified:
            analysis = analyze(result.program)
    return analysis


def on_trial(step: Pass, analysis: Analysis) -> PassResult:
    """The result of a pass from elsewhere. What its author promises is checked here, whatever its `ensures` looks at.

    Raises:
        VerifyError: it failed, or changed the program that it was given, or its result is malformed, has another
            interface, or (where the pass says that it preserves the numerics) computes something else.
    """
    store = analysis.program.weights
    before, weights = analysis.program.fingerprint(), {name: store.entry(name) for name in store}
    try:
        result = step(analysis)
    except FxslimError:
        raise
    except Exception as error:  # foreign code raises anything
        raise VerifyError(
            f"the pass {step.name!r} failed: {type(error).__name__}: {error}", at=type(step).__module__,
            remedy="this is a defect of the pass, not of the model",
        ) from error  # fmt: skip
    same = weights.keys() == store.keys() and all(store.entry(name) is entry for name, entry in weights.items())
    if analysis.program.fingerprint() != before or not same:
        raise VerifyError(f"the pass {step.name!r} changed the program that it was given", remedy="edit by a Rewriter")
    if result.modified:
        check = verify_same_function if step.preserves else verify
        try:
            check(result.program, analysis.program)
        except VerifyError as error:
            raise VerifyError(
                f"the pass {step.name!r} broke its promise: {error.what}", at=error.at, rule=error.rule,
                remedy=error.remedy or "this is a defect of the pass, not of the model",
            ) from error  # fmt: skip
    return result


def preparations_of(program: Program) -> tuple[str, ...]:
    """The preparations that a program went through, in order and with their options: those that a plan for it has to
    repeat."""
    return tuple(text for text in program.history if spec_name(text) in PREPARATIONS)


def left_to_repeat(program: Program, names: Sequence[str]) -> list[str]:
    """The passes from elsewhere among `names` that a program has not gone through. They may change values alone, which
    no fingerprint shows."""
    return [n for n in names if PREPARATIONS[spec_name(n)] not in _PASSES and n not in program.history]
