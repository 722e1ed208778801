"""Recipes: what `fxslim slim` can be told, as YAML; each mistake is shown with its line and what is allowed there."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fxslim.graph.errors import InputError
from fxslim.slim_options import SlimOptions
from fxslim.yaml_lines import MAX_BYTES, Document, Key, read_yaml

__all__ = ["FORMAT", "SHARED", "Pinned", "Recipe", "load_recipe", "parse_recipe", "recipe_text"]

FORMAT = 1
SHARED = (
    "model", "task", "dtype", "trust_pt2", "trust_remote_code", "calibration", "evaluation", "samples", "window",
    "text_field", "seed", "stream", "offload_activations", "device",
)  # fmt: skip
"""What all targets have in common: the model and its data."""

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{i}" for name in ("com", "lpt") for i in range(10))}  # of Windows
_TAKEN = {"targets.json", "manifest.json"}
_WORD = re.compile(r"[a-z][a-z_-]*[a-z]")
_ADAPTER = TypeAdapter(SlimOptions)
_WANTED = {  # what pydantic calls a mistake, and what is wanted there
    "string_type": "text", "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "tuple_type": "a list", "finite_number": "a finite number",
}  # fmt: skip


@dataclass(frozen=True)
class Pinned:
    """What a result depended on: hashes of the model and the data, and versions. None and nothing: not said."""

    model: str | None = None
    calibration: str | None = None
    evaluation: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What to make. Without `targets` the options alone say it; else each target does, by its name."""

    options: SlimOptions
    targets: Mapping[str, SlimOptions] = field(default_factory=dict)
    pinned: Pinned = field(default_factory=Pinned)


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `changes` such as `keep=0.5` on top.

    Raises:
        InputError: the file cannot be read, or says what no recipe can say.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")  # never more than that: it may be a device
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"the recipe cannot be read: {reason}", at=str(path)) from error
    return parse_recipe(text, str(path), changes)


def parse_recipe(text: str, name: str = "recipe", changes: Sequence[str] = ()) -> Recipe:
    """The recipe that YAML text says; `name` is how messages call it.

    Raises:
        InputError: it says what no recipe can say; the message has a line for each mistake.
    """
    document = read_yaml(text, name)
    said = dict(document.value)
    version, targets, pinned = said.pop("recipe", None), said.pop("targets", None), said.pop("pinned", None)
    if version != FORMAT or isinstance(version, bool):
        what = "it does not say `recipe: 1`" if version is None else f"this is a recipe of the format {version!r}"
        raise InputError(what, at=document.at(("recipe",)), remedy=f"this version of fxslim reads `recipe: {FORMAT}`")
    changed = _changes(changes)
    said |= changed
    lines = {key: line for key, line in document.lines.items() if not (key and key[0] in changed)}
    document = Document(name, document.value, lines)
    pins = _pinned(pinned, document)
    if targets is None:
        return Recipe(_options(said, document, ()), {}, pins)
    made = dict(_targets(said, targets, document, changed))
    base = next(iter(made.values()))
    shared = {name: getattr(base, name) for name in SHARED}
    return Recipe(SlimOptions(**shared, keep=1.0), made, pins)


def recipe_text(options: SlimOptions, pinned: Pinned) -> str:
    """The recipe that repeats a run, as YAML: every option that has a value, also where it is the default."""
    said: dict[str, Any] = {"recipe": FORMAT}
    for option in dataclasses.fields(options):
        value = getattr(options, option.name)
        if value is None or value is False or value == ():
            continue
        said[option.name] = list(value) if isinstance(value, tuple) else value
    pins = {k: dict(v) if isinstance(v, Mapping) else v for k, v in vars(pinned).items() if v}
    if pins:
        said["pinned"] = pins
    text: str = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=120)
    return text


def _changes(changes: Sequence[str]) -> dict[str, Any]:
    """The values that `--set` gives, by name."""
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, value = (part.strip() for part in change.partition("="))
        if not equals or not name:
            raise InputError(f"{change!r} is no change of a recipe", remedy="--set keep=0.5")
        found |= read_yaml(f"{json.dumps(name)}: {value}", f"--set {change}").value
    return found


def _targets(
    said: dict[str, Any], targets: Any, document: Document, changed: Mapping[str, Any]
) -> Iterator[tuple[str, SlimOptions]]:
    if not isinstance(targets, dict) or not targets:
        raise InputError(
            "`targets` are names with what differs in each", at=document.at(("targets",)), remedy="half: {keep: 0.5}"
        )
    for name, own in targets.items():
        key: Key = ("targets", name)
        if not _NAME.fullmatch(name) or name.casefold().partition(".")[0] in _DEVICES or name.casefold() in _TAKEN:
            raise InputError(
                f"{name!r} cannot be the name of a directory", at=document.at(key), remedy="letters, digits, - and _"
            )
        if [n.casefold() for n in targets].count(name.casefold()) > 1:
            raise InputError(
                f"{name!r} is one directory with another target where case does not count", at=document.at(key)
            )
        if not isinstance(own, dict):
            raise InputError(f"the target {name!r} is no mapping", at=document.at(key), remedy="half: {keep: 0.5}")
        if common := [k for k in own if k in SHARED]:
            raise InputError(
                f"{common[0]!r} is the same for all targets: one calibration serves them",
                at=document.at((*key, common[0])), remedy="say it outside of `targets`",
            )  # fmt: skip
        # One of the three says how much remains: that of a target takes the place of a common one.
        amount = {"keep", "width", "plan"}
        base = {k: v for k, v in said.items() if not (k in amount and amount & own.keys())}
        if any(k in amount for k in changed):  # a change is on top of everything
            own = {k: v for k, v in own.items() if k not in amount}
            base |= {k: v for k, v in changed.items() if k in amount}
        yield name, _options({**base, **own, **changed}, document, key)


def _options(said: dict[str, Any], document: Document, key: Key) -> SlimOptions:
    """The options; `key` is where a target's own ones stand."""

    def line(name: str) -> str:
        own = (*key, name)
        return document.at(own if own in document.lines else (name,) if (name,) in document.lines else key)

    try:
        # As JSON: there a list may stand for a tuple, and nothing else is converted.
        made = _ADAPTER.validate_json(json.dumps(said), strict=True)
    except ValidationError as error:
        mistakes = list(_mistakes(error.errors(include_url=False), said, line))
        raise InputError("\n".join(["the recipe cannot be used", *mistakes]), at=document.name) from error
    try:
        made.refuse_contradictions()
    except InputError as error:
        named = (word.replace("-", "_") for word in _WORD.findall(error.what))
        first = next((word for word in named if word in said), None)  # the option that the message is about
        raise InputError(
            error.what, at=document.at(key) if first is None else line(first), remedy=error.remedy
        ) from error
    return made


def _mistakes(errors: Sequence[ErrorDetails], said: Mapping[str, Any], line: Any) -> Iterator[str]:
    """One line for each key that has a mistake."""
    known = [f.name for f in dataclasses.fields(SlimOptions)]
    by_key: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        by_key.setdefault(str(error["loc"][0]) if error["loc"] else "", []).append(error)
    for name, found in by_key.items():
        kinds = {e["type"] for e in found}
        if kinds & {"unexpected_keyword_argument", "extra_forbidden"}:
            near = difflib.get_close_matches(name.replace("-", "_"), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(known)}"
            yield f"  {line(name)}: there is no {name!r}; {hint}"
        elif kinds & {"missing", "missing_argument"}:
            yield f"  {line(name)}: {name!r} is missing"
        else:
            wanted = " or ".join(dict.fromkeys(filter(None, map(_wanted, found))))
            yield f"  {line(name)}: {name} is {said.get(name)!r}; {wanted} is wanted"


def _wanted(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error.get("ctx", {}).get("expected", ""))
    return _WANTED.get(error["type"], error["msg"])


def _pinned(value: Any, document: Document) -> Pinned:
    known = [f.name for f in dataclasses.fields(Pinned)]
    hashes = {} if value is None else value
    versions = hashes.get("versions", {}) if isinstance(hashes, dict) else None
    if isinstance(versions, dict) and set(hashes) <= set(known):
        texts = [*versions.values(), *(v for k, v in hashes.items() if k != "versions")]
        if all(isinstance(text, str) for text in texts):
            return Pinned(**hashes)
    raise InputError(
        "`pinned` holds texts: hashes and versions", at=document.at(("pinned",)),
        remedy=f"choose among {', '.join(known)}; a number in quotes",
    )  # fmt: skip
