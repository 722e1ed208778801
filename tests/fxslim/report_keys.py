"""The keys of report.json as its schema describes them: `python -m tests.fxslim.report_keys` writes docs/report.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "fxslim" / "report.schema.json"
PAGE = ROOT / "docs" / "report.md"
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->\n"


def schema() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return loaded


def keys(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, type and meaning of everything in a part of the schema, depth first; what it refers to by name."""
    if "anyOf" in part:
        (inner,) = [p for p in part["anyOf"] if p != {"type": "null"}]
        yield path, f"{_type(inner)} or null", part.get("description", "")
        yield from _inside(inner, path)
    else:
        if path:
            yield path, _type(part), part.get("description", "")
        yield from _inside(part, path)


def _inside(part: dict[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    for name, inner in part.get("properties", {}).items():
        yield from keys(inner, f"{path}.{name}" if path else name)
    if "properties" in part.get("items", {}):
        yield from _inside(part["items"], f"{path}[]")


def _type(part: dict[str, Any]) -> str:
    if "$ref" in part:
        return str(part["$ref"]).rpartition("/")[2]
    kind = part.get("type", "object" if "properties" in part else "any")
    values = part.get("items", part.get("additionalProperties"))
    inner = _type(values) if values else ""
    many = {"array": f"array of {inner}" if inner else "array"}
    if kind == "object" and "additionalProperties" in part:
        return f"object of {inner} by name"
    return " or ".join(many.get(k, k) for k in ([kind] if isinstance(kind, str) else kind))


def tables() -> str:
    """All keys as Markdown."""
    whole = schema()
    parts = [("The document", whole), *((f"`{name}`", part) for name, part in whole["$defs"].items())]
    text = ""
    for title, part in parts:
        text += f"### {title}\n\n| key | type | what |\n| --- | --- | --- |\n"
        rows = [row for row in keys(part) if row[0]]
        text += "".join(f"| `{path}` | {kind} | {_cell(said)} |\n" for path, kind, said in rows) + "\n"
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
