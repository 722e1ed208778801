"""The templates of the pages, with everything that comes from a report escaped."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fxslim.wording import count, number, size

__all__ = ["rendered"]

_TEMPLATES = Path(__file__).with_name("templates")


def rendered(template: str, **context: Any) -> str:
    """The page (HTML) or picture (SVG) of a template; a page has the style sheet in it.

    Raises:
        jinja2.UndefinedError: the template asks for something that `context` does not have (a defect).
    """
    return _environment().get_template(template).render(style=_style(), **context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["many"] = count
    environment.filters.update(
        number=number, bytes=size, count="{:,}".format, percent=_percent, short=_short, name=_name
    )
    return environment


def _name(text: str) -> Markup:
    """A name that may be broken behind its dots, and before its brackets."""
    return Markup(re.sub(r"([._/])(?=\w)", r"\1<wbr>", str(escape(text))))


def _percent(share: float | None) -> str:
    return "new" if share is None else f"{100 * share:.1f}%"


def _short(value: int) -> str:
    """A number of scalars in three digits: 65.5k."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return str(value)


@cache
def _style() -> Markup:
    return Markup((_TEMPLATES / "style.css").read_text(encoding="utf-8"))
