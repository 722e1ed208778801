"""Figures by matplotlib as SVG that belongs to a page: its text, its colours in light and dark, a title and a text for
those who do not see it, and the same bytes for the same numbers."""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

__all__ = ["ACCENT", "BAD", "BEFORE", "HEIGHT", "LINE", "MUTED", "TEXT", "WIDTH", "figure", "powers", "shortened"]

WIDTH, HEIGHT = 340, 210  # px at which text is as large as the page's: what a phone shows without scaling

# Colours that no figure has otherwise: each becomes a variable of the page, which has two schemes.
TEXT, MUTED, LINE, ACCENT, BEFORE, BAD = "#010101", "#010102", "#010103", "#010104", "#010105", "#010106"
_VARIABLES = {TEXT: "text", MUTED: "muted", LINE: "line", ACCENT: "accent", BEFORE: "before-mark", BAD: "bad"}

_SVG = "http://www.w3.org/2000/svg"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 11, "font.family": "sans-serif",
    "text.parse_math": False, "text.color": TEXT, "axes.labelcolor": MUTED, "axes.edgecolor": LINE,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 1.0, "axes.labelsize": 11,
    "xtick.labelsize": 10.5, "ytick.labelsize": 10.5, "figure.facecolor": "none", "axes.facecolor": "none",
    "lines.linewidth": 1.6, "axes.unicode_minus": True,
}  # fmt: skip


def figure(draw: Callable[[Axes], None], title: str, about: str, *, width: int = WIDTH, height: int = HEIGHT) -> Markup:
    """The SVG of what `draw` puts on one pair of axes, `width` x `height` px, to be set into a page.

    `title` names it and `about` says what it shows; both are text, as is everything that is drawn.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    salt = hashlib.sha256(f"{title}\n{about}".encode()).hexdigest()[:8]
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # The layout measures text in matplotlib's own font; the page shows it in the reader's, which has more letters.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        made = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(made)
        axes = made.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        made.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue(), title, about, salt, width, height)


def powers(axis: Axis) -> None:
    """Labels a logarithmic axis with powers of ten, as text."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
    axis.set_minor_formatter(NullFormatter())


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {0: "1", 1: "10", -1: "0.1", -2: "0.01", 2: "100"}.get(exponent, f"10{digits}")


def shortened(text: str, length: int) -> str:
    """A text that is too long with its middle left out: names differ at their ends."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[half + 1 - length :]}"


def _themed(svg: str, title: str, about: str, salt: str, width: int, height: int) -> Markup:
    """The drawing without its header, with the page's colours and font, and with ids that no other figure has."""
    root = ElementTree.fromstring(svg.encode())
    for child in [c for c in root if c.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}title")]:
        root.remove(child)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', text))
    for element in root.iter():
        if (name := element.get("id")) is not None and name not in used:
            del element.attrib["id"]
        style = element.get("style")
        if style is not None:
            element.set("style", _recoloured(re.sub(r"font: *[^;]+;?", _font, style)))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("viewBox", f"0 0 {width} {height}")
    root.set("role", "img")
    root.set("aria-labelledby", f"t{salt} d{salt}")
    root.set("class", "figure")
    root.set("style", f"max-width:{width}px")
    for place, (tag, name, content) in enumerate((("title", "t", title), ("desc", "d", about))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}{salt}"})
        element.text = content
        root.insert(place, element)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    drawn = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    return Markup(_prefixed(drawn, used, salt))


def _font(found: re.Match[str]) -> str:
    """The size of a font alone: what is left of `font: 11px 'DejaVu Sans', ...`."""
    size = re.search(r"([\d.]+)px", found.group())
    return f"font-size: {size.group(1)}px;" if size else ""


def _recoloured(style: str) -> str:
    for colour, name in _VARIABLES.items():
        style = style.replace(colour, f"var(--{name})")
    return style


def _prefixed(text: str, used: set[str], salt: str) -> str:
    """References and what they refer to, made unique: two figures may have equal clip paths."""
    for name in used:
        text = re.sub(rf'(id="|href="#|url\(#){re.escape(name)}(?=["\)])', rf"\g<1>{salt}{name}", text)
    return text
