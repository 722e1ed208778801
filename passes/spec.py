"""Passes as text, `name{option=value,option=value}`: how a history and a plan name what a program went through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints
from urllib.parse import unquote

from fxslim.graph.errors import InputError

if TYPE_CHECKING:
    from fxslim.passes.base import Pass

__all__ = ["OPTION_TYPES", "named_in", "option_types", "parse_pass", "printed", "spec_name"]

P = TypeVar("P", bound="Pass")

_SPEC = re.compile(r"(?P<name>[a-z0-9_-]+)(?:\{(?P<options>[^{}]*)\})?")
_SPECIAL = re.compile(r"[%+,={}]")  # in names these stand as %2B and the like: `+` separates names
_NAMES = tuple[str, ...]
OPTION_TYPES: tuple[Any, ...] = (str, int, float, bool, _NAMES)
"""The types of options that a pass's text can hold."""


def printed(value: Any) -> str | None:
    """The value of an option as text, or None for a type that has no short one. Names are joined by `+`."""
    if isinstance(value, str):
        return _SPECIAL.sub(lambda found: f"%{ord(found[0]):02X}", value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple) and all(isinstance(v, str) for v in value):
        return "+".join(str(printed(v)) for v in value)
    return None


def option_types(kind: type[Pass]) -> dict[str, Any]:
    """The types of a pass's options, by name.

    Raises:
        InputError: one is written in a way that cannot be resolved where the pass is defined.
    """
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    try:
        found = get_type_hints(kind) if names else {}
    except NameError as error:
        raise InputError(
            f"the types of the options of the pass {kind.__name__} cannot be resolved: {error}",
            remedy="define the pass in a module that is imported",
        ) from error
    return {name: found[name] for name in names}


def spec_name(text: str) -> str:
    """The name of the pass in its text."""
    return text.partition("{")[0]


def named_in(text: str) -> tuple[str, ...]:
    """The names in the only option of a pass's text: `change-basis{groups=a+b}` names a and b."""
    found = _SPEC.fullmatch(text)
    value = (found["options"] or "").partition("=")[2] if found is not None else ""
    return tuple(unquote(name) for name in value.split("+")) if value else ()


def parse_pass(text: str, known: Mapping[str, type[P]]) -> P:
    """The pass that `Pass.spec()` printed as `text`.

    Raises:
        InputError: the text is malformed, `known` has no such pass, or the pass no such options.
    """
    if spec_name(text) not in known:
        raise InputError(
            f"there is no preparation {spec_name(text)!r}",
            remedy=f"there are {', '.join(known)}; a pass of your own has to be registered before (docs/plugins.md)",
        )
    found = _SPEC.fullmatch(text)
    if found is None:
        raise InputError(f"malformed preparation {text!r}", remedy="write it as name{option=value,option=value}")
    kind = known[found["name"]]
    return kind(**_options(kind, found["options"], text))


def _options(kind: type[Pass], options: str | None, text: str) -> dict[str, Any]:
    """The options of a pass by name, each of its field's type."""
    types, made = option_types(kind), dict[str, Any]()
    wanted = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for option in options.split(",") if options else ():
        name, equals, value = option.partition("=")
        if not equals or name not in wanted or name in made:
            has = f"its options are {', '.join(wanted)}, each once" if wanted else "it has no options"
            raise InputError(f"{kind.name}: {option!r} cannot be used", at=text, remedy=has)
        made[name] = _value(types[name], value, f"{kind.name}: {name}={value!r}", text)
    missing = [n for n, f in wanted.items() if n not in made and f.default is f.default_factory is MISSING]
    if missing:
        raise InputError(
            f"{kind.name} needs {', '.join(missing)}", at=text, remedy=f"write {kind.name}{{{missing[0]}=...}}"
        )
    return made


def _value(wanted: Any, value: str, what: str, text: str) -> Any:
    if wanted == _NAMES:
        return tuple(unquote(name) for name in value.split("+")) if value else ()
    if wanted is str:
        return unquote(value)
    if wanted is bool and value in ("True", "False"):
        return value == "True"
    if wanted in (int, float):
        try:
            return wanted(value)
        except ValueError:
            pass
    raise InputError(f"{what} is not a {getattr(wanted, '__name__', wanted)}", at=text)
