"""Plug-ins: rules, translations, passes, importances and methods from elsewhere, by a call or by entry points.

    fxslim.register_rule(torch.ops.mine.gate.default, "b s d, d -> b s d")
    fxslim.register_translation(torch.ops.mine.gate.default, gate_in_onnx)
    fxslim.register_pass(MyPass)
    fxslim.register_importance("mine", score)
    fxslim.register_method("mine", Settings(...))

A distribution has its own found wherever the command line runs, by entry points in the groups of `GROUPS`. One that
cannot be loaded, or that registers nothing, is an error that names it: a plan made with half of the plug-ins is another
plan.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from dataclasses import replace as replace_fields
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, overload

from fxslim.graph.errors import FxslimError, InputError

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from fxslim.graph.axes.notation import Symmetry
    from fxslim.graph.axes.registry import Build, Literals
    from fxslim.passes.base import Pass
    from fxslim.passes.methods import Settings
    from fxslim.passes.scores import Score

__all__ = [
    "GROUPS",
    "SWITCH",
    "Plugin",
    "active",
    "facts",
    "load_plugins",
    "register_importance",
    "register_method",
    "register_pass",
    "register_rule",
    "register_translation",
    "switched_off",
]

GROUPS: Mapping[str, str] = {
    "fxslim.rules": "rule",
    "fxslim.passes": "pass",
    "fxslim.importances": "importance",
    "fxslim.methods": "method",
}
"""Groups of entry points, and what an entry point of each has to register at least one of."""

SWITCH = "FXSLIM_PLUGINS"  # environment: 0 leaves all entry points alone


@dataclass(frozen=True)
class Plugin:
    """One thing that was registered, and by whom: a distribution's entry point, or a call in Python (None)."""

    kind: str  # rule, translation, pass, importance or method
    name: str
    module: str
    distribution: str | None = None
    version: str | None = None
    entry_point: str | None = None
    replaces: bool = False  # something that was there before

    def __str__(self) -> str:
        by = f"{self.distribution} {self.version}" if self.distribution else self.module
        return f"plug-in {by}: {self.kind} {self.name}" + (", in the place of another" if self.replaces else "")


_ACTIVE: list[Plugin] = []
_loaded: set[EntryPoint] = set()
_entry: ContextVar[EntryPoint | None] = ContextVar("fxslim_entry_point", default=None)


def active() -> tuple[Plugin, ...]:
    """Everything that was registered in this process, in that order."""
    return tuple(_ACTIVE)


def facts() -> list[dict[str, Any]]:
    """`active()` as JSON values."""
    return [asdict(plugin) for plugin in _ACTIVE]


@overload
def register_rule(
    *ops: OpOverload, literals: Literals | None = None, replace: bool = False
) -> Callable[[Build], Build]: ...
@overload
def register_rule(
    op: OpOverload, line: str, /, *, default: Symmetry | None = None, literals: Literals | None = None,
    replace: bool = False,
) -> None: ...  # fmt: skip
def register_rule(
    *given: Any, default: Symmetry | None = None, literals: Literals | None = None, replace: bool = False
) -> Callable[[Build], Build] | None:
    """Registers the rule of an operator: `register_rule(op, "b s d, d -> b s d")`, or as a decorator of a function
    that returns the rule of one call, `@register_rule(op)` (docs/writing_a_rule.md).

    A line is the rule of calls with that many dimensions; others are declined, so that they fix what they touch.
    `default` is the symmetry of letters without a clause, permutation unless told. Test it: `fxslim.testing`.

    Raises:
        RuleError: the line is malformed, an operator is no `OpOverload`, or it has a rule already (unless `replace`).
    """
    from fxslim.graph.axes import rules as _rules  # noqa: F401  (what is there already)
    from fxslim.graph.axes.registry import REGISTRY, rule

    if len(given) == 2 and isinstance(given[1], str):
        ops, line = given[:1], given[1]
    else:
        ops, line = given, None
    replaced = {op for op in ops if op in REGISTRY}
    build_of = rule(*ops, literals=literals, replace=replace)

    def register(build: Build) -> Build:
        build_of(build)
        for op in ops:
            _note("rule", str(op), build.__module__, replaces=op in replaced)
        return build

    if line is None:
        return register
    register(_by_line(line, default))
    return None


def _by_line(line: str, default: Symmetry | None) -> Build:
    from fxslim.graph.axes.notation import DimRule, Symmetry

    parsed = DimRule.parse(line, default=Symmetry.PERMUTATION if default is None else default)

    def build(call: Any) -> DimRule | None:
        ranks = [len(dims) for dims in (*parsed.operands, *parsed.results)]
        return parsed if ranks == [len(shape) for shape in (*call.shapes, *call.results)] else None

    return build


def register_translation(op: OpOverload, translation: Callable[..., Any], *, replace: bool = False) -> None:
    """Registers what an operator is in ONNX: a function of the operator's arguments that returns ONNX values, written
    with `onnxscript`. Operators of your own need one before they can be exported.

    Raises:
        InputError: the operator is no `OpOverload`, or has a translation already (unless `replace`).
    """
    from fxslim.export.translations import TRANSLATIONS, add_translation

    replaced = op in TRANSLATIONS
    add_translation(op, translation, replace=replace)
    _note("translation", str(op), translation.__module__, replaces=replaced)


def register_pass(kind: type[Pass], *, replace: bool = False) -> type[Pass]:
    """Registers a pass, so that plans and `--prepare` know it by its name; usable as a decorator.

    docs/writing_a_pass.md says what a pass owes.

    Raises:
        InputError: it is no frozen dataclass derived from `Pass`, an option has a type that plans cannot write down, or
            its name is taken (unless `replace`).
    """
    from fxslim.passes.prepare import PREPARATIONS, add_preparation

    replaced = getattr(kind, "name", None) in PREPARATIONS
    add_preparation(kind, replace=replace)
    _note("pass", kind.name, kind.__module__, replaces=replaced)
    return kind


def register_importance(name: str, score: Score, *, needs_data: bool = False, replace: bool = False) -> None:
    """Registers an importance: `score(analysis, group, batches)` returns [*group.shape], larger is more important.
    `batches` are the flat inputs of the calibration data, None without any; `needs_data` has their lack refused early.

    Raises:
        InputError: the name is not in kebab case or is taken (fxslim's own always are), or `score` cannot be called.
    """
    from fxslim.passes.importance import IMPORTANCES
    from fxslim.passes.scores import SCORES, Scored, add_score

    replaced = name in SCORES
    add_score(Scored(name, score, needs_data), taken=IMPORTANCES, replace=replace)
    _note("importance", name, score.__module__, replaces=replaced)


def register_method(name: str, settings: Settings, *, replace: bool = False) -> None:
    """Registers a method: a combination of importance, budget and restoration (`fxslim.passes.methods.Settings`).

    Raises:
        InputError: the settings contradict each other, or the name is taken (unless `replace`).
    """
    from fxslim.passes.methods import METHODS, add_method

    replaced = name in METHODS
    add_method(name, settings, replace=replace)
    entry = _entry.get()
    _note("method", name, "Python" if entry is None else entry.module, replaces=replaced)


def _note(kind: str, name: str, module: str, *, replaces: bool) -> None:
    entry = _entry.get()
    dist = None if entry is None else entry.dist
    found = Plugin(kind, name, module if entry is None else entry.module, replaces=replaces)
    if entry is not None:
        found = replace_fields(found, entry_point=f"{entry.group}: {entry.name}")
    if dist is not None:
        found = replace_fields(found, distribution=dist.name, version=dist.version)
    _ACTIVE.append(found)


def switched_off() -> bool:
    """Whether the environment says that entry points are left alone (FXSLIM_PLUGINS=0)."""
    return os.environ.get(SWITCH, "") in ("0", "off", "no")


def load_plugins() -> tuple[Plugin, ...]:
    """Everything that is registered after all entry points were loaded; each is loaded once in a process.

    The command line does so by itself, a Python program where it wants them.

    Raises:
        InputError: an entry point cannot be loaded or registers nothing; nothing of it stays registered.
    """
    if not switched_off():
        for entry in _found():
            if entry not in _loaded:
                _load(entry)
                _loaded.add(entry)
    return active()


def _found() -> list[EntryPoint]:
    """Rules first: passes and methods may build on them. A folder may be on the path twice."""
    return list(dict.fromkeys(entry for group in GROUPS for entry in sorted(entry_points(group=group))))


def _load(entry: EntryPoint) -> None:
    kind, before = GROUPS[entry.group], len(_ACTIVE)
    token = _entry.set(entry)
    try:
        with _undone_on_error():
            try:
                _register(kind, entry)
            except FxslimError as error:
                raise InputError(
                    f"the plug-in {_names(entry)} cannot be used: {error.what}", at=error.at, rule=error.rule,
                    remedy=f"{error.remedy or 'update or uninstall it'}; {SWITCH}=0 leaves all plug-ins out",
                ) from error  # fmt: skip
            except Exception as error:  # foreign code that is imported raises anything
                raise InputError(
                    f"the plug-in {_names(entry)} cannot be loaded: {type(error).__name__}: {error}",
                    remedy=f"update or uninstall it; {SWITCH}=0 leaves all plug-ins out",
                ) from error
            if not any(plugin.kind == kind for plugin in _ACTIVE[before:]):
                raise InputError(
                    f"the plug-in {_names(entry)} registered no {kind}",
                    remedy=f"its author: call fxslim.register_{kind}(...) in {entry.value}; {SWITCH}=0 leaves all out",
                )
    finally:
        _entry.reset(token)


def _register(kind: str, entry: EntryPoint) -> None:
    """An entry point is a function without arguments that registers; or the pass, or the settings of a method."""
    from fxslim.passes.base import Pass
    from fxslim.passes.methods import Settings

    found = entry.load()
    if kind == "pass" and isinstance(found, type) and issubclass(found, Pass):
        register_pass(found)
    elif kind == "method" and isinstance(found, Settings):
        register_method(entry.name, found)
    elif callable(found) and not isinstance(found, type):
        found()
    else:
        raise InputError(
            f"{entry.value} is {type(found).__name__}",
            remedy="its author: name a function that calls fxslim.register_...",
        )


def _names(entry: EntryPoint) -> str:
    by = "an unknown distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
    return f"{entry.name!r} ({entry.group}: {entry.value}) of {by}"


@contextmanager
def _undone_on_error() -> Iterator[None]:
    """All registries are as before where the block raises."""
    from fxslim.export.translations import TRANSLATIONS
    from fxslim.graph.axes.rules import REGISTRY
    from fxslim.passes.methods import registered_methods
    from fxslim.passes.prepare import PREPARATIONS
    from fxslim.passes.scores import SCORES

    registries: list[dict[Any, Any]] = [REGISTRY, TRANSLATIONS, PREPARATIONS, SCORES, registered_methods()]
    saved, count = [dict(registry) for registry in registries], len(_ACTIVE)
    try:
        yield
    except BaseException:
        for registry, before in zip(registries, saved, strict=True):
            registry.clear()
            registry.update(before)
        del _ACTIVE[count:]
        raise
