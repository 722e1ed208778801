"""YAML read as plain values of which the lines are known, so that a mistake can be shown where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from fxslim.graph.errors import InputError

__all__ = ["Document", "Key", "read_yaml"]

Key = tuple[str | int, ...]
"""The way to a value: names of mappings and positions in lists."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
_PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Document:
    """A value made of dictionaries with text keys, lists, text, numbers, truth values and None."""

    name: str
    value: Any
    lines: Mapping[Key, int] = field(default_factory=dict)  # counted from 1

    def at(self, key: Key) -> str:
        """`name:line` of a value, or of the nearest one around it that has a line."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.name}:{self.lines[key]}" if key in self.lines else self.name


def read_yaml(text: str, name: str) -> Document:
    """The document, which must be a mapping. Aliases are refused: a few lines of them can stand for gigabytes.

    Raises:
        InputError: the text is no YAML, says a key twice, or holds other values than those of a Document.
    """
    if len(text.encode()) > MAX_BYTES:
        raise InputError(f"more than {MAX_BYTES:,} bytes are no recipe", at=name)
    try:
        node = _composed(text, name)
        lines: dict[Key, int] = {}
        value = _value(node, (), name, lines) if node is not None else None
    except yaml.YAMLError as error:
        raise _malformed(error, name) from error
    if not isinstance(value, dict):
        raise InputError("a recipe is a mapping of names to values", at=f"{name}:1", remedy="model: bundled:opt-python")
    return Document(name, value, lines)


def _composed(text: str, name: str) -> yaml.Node | None:
    """The document's tree. What it may not hold is refused on the way: deep nesting takes the parser minutes."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        at = name if event.start_mark is None else f"{name}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise InputError("aliases are not read", at=at, remedy="write the value out")
        if (tag := getattr(event, "tag", None)) is not None:
            raise InputError(f"tags such as {tag!r} are not read", at=at, remedy="write the value alone")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise InputError("it is nested too deeply", at=at)
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    return node


def _value(node: yaml.Node, key: Key, name: str, lines: dict[Key, int]) -> Any:
    here = node.start_mark.line + 1
    lines.setdefault(key, here)
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*key, i), name, lines) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, key, name, lines)
    loader = yaml.SafeLoader("")
    try:
        found = loader.construct_object(node)
    except ValueError as error:  # 2020-13-40 looks like a date and is none
        raise InputError(f"{node.value!r} is no value: {error}", at=f"{name}:{here}") from error
    finally:
        loader.dispose()
    if not isinstance(found, _PLAIN):
        raise InputError(
            f"a {type(found).__name__} is no value here", at=f"{name}:{here}", remedy=f'text? Then "{node.value}"'
        )
    return found


def _mapping(node: yaml.MappingNode, key: Key, name: str, lines: dict[Key, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for left, right in node.value:
        here = f"{name}:{left.start_mark.line + 1}"
        if not isinstance(left, yaml.ScalarNode):
            raise InputError("a key must be a name", at=here)
        if left.value in found:
            raise InputError(f"{left.value!r} is said twice", at=here, remedy="keep one")
        lines[*key, left.value] = left.start_mark.line + 1
        found[left.value] = _value(right, (*key, left.value), name, lines)
    return found


def _malformed(error: yaml.YAMLError, name: str) -> InputError:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    at = name if mark is None else f"{name}:{mark.line + 1}"
    return InputError(f"this is no YAML: {problem or str(error).splitlines()[0]}", at=at)
