"""The pictures of the documentation: `python docs/pictures/draw.py` writes them beside this file.

Plain SVG with a background of its own, in two palettes: readable on a light page and on a dark one, and on paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

STYLE = """
  .card{fill:#fbfbfd;stroke:#d5d8de} .ink{fill:#1d2430} .soft{fill:#5b6472} .line{stroke:#5b6472;fill:none}
  .kept{fill:#bcd4f2;stroke:#4676b0} .other{fill:#e6e8ee;stroke:#9aa3b2} .gone{fill:#f6cfc4;stroke:#c2553a}
  .good{fill:#cfe8d2;stroke:#3d8a4c} .head{fill:#5b6472}
  text{font-family:system-ui,-apple-system,"Segoe UI",sans-serif;font-size:14px}
  .mono{font-family:ui-monospace,"SF Mono",Consolas,monospace;font-size:13px} .small{font-size:12px}
  .bold{font-weight:600}
  @media (prefers-color-scheme:dark){
    .card{fill:#1f242d;stroke:#3a424f} .ink{fill:#e8ebf0} .soft{fill:#aab3c0} .line{stroke:#aab3c0}
    .kept{fill:#2f4d75;stroke:#86aee3} .other{fill:#333b47;stroke:#7b8594} .gone{fill:#6b3022;stroke:#f09a80}
    .good{fill:#27502f;stroke:#7ccb8a} .head{fill:#aab3c0}
  }
"""


def picture(width: int, height: int, title: str, description: str, parts: Sequence[str]) -> str:
    """A whole SVG. `title` and `description` are what a screen reader says."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="t d"><title id="t">{escape(title)}</title>'
        f'<desc id="d">{escape(description)}</desc><style>{STYLE}</style>'
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    return "\n".join([head, box(0.5, 0.5, width - 1, height - 1, "card", 10), *parts, "</svg>", ""])


def box(x: float, y: float, width: float, height: float, kind: str, round_by: float = 3) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_by:g}"/>'


def text(x: float, y: float, said: str, kind: str = "ink", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(said)}</text>'


def arrow(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False, both: bool = False) -> str:
    extra = ' stroke-dasharray="5 4"' if dashed else ""
    start = ' marker-start="url(#a)"' if both else ""
    return f'<path class="line" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"{extra}{start} marker-end="url(#a)"/>'


def grid(
    x: float, y: float, rows: int, columns: int, gone: Sequence[int], *, by_row: bool, cell: int = 14
) -> Iterator[str]:
    """A weight as a grid; the rows or columns in `gone` are those that are removed."""
    for row in range(rows):
        for column in range(columns):
            kind = "gone" if (row if by_row else column) in gone else "kept"
            yield box(x + column * cell, y + row * cell, cell - 2, cell - 2, kind, 2)


def coupled_group() -> str:
    gone, size, cell = (1, 4, 5), 8, 14
    inner = size * cell
    parts = [
        text(24, 32, "One group: what must shrink together", "ink bold"),
        text(38, 66, "up.weight [8, 5]", "ink mono"), *grid(38, 78, size, 5, gone, by_row=True),
        text(190, 66, "up.bias [8]", "ink mono"), *grid(216, 78, size, 1, gone, by_row=True),
        arrow(244, 78 + inner / 2, 304, 78 + inner / 2),
        text(304, 66, "GELU", "ink mono"), *grid(316, 78, size, 1, gone, by_row=True),
        arrow(344, 78 + inner / 2, 404, 78 + inner / 2),
        text(412, 66, "down.weight [4, 8]", "ink mono"), *grid(412, 92, 4, size, gone, by_row=False),
        text(412, 172, "columns 1, 4, 5 go", "soft small"), text(38, 212, "rows 1, 4, 5 go", "soft small"),
        text(24, 246, "up.weight[0] = up.bias[0] = GELU[1] = down.weight[1]", "ink mono"),
        text(24, 268, "the same letter in every rule on the way, so the same axis", "soft small"),
    ]  # fmt: skip
    return picture(
        600, 288, "A coupled group", "Rows 1, 4 and 5 of a weight, the same entries of its bias and of the activation, "
        "and columns 1, 4 and 5 of the next weight are removed together.", parts,
    )  # fmt: skip


def axis_terms() -> str:
    parts = [text(24, 32, "A dimension is an expression, not a number", "ink bold")]
    parts.append(text(24, 60, "qkv.weight[0] = [q: h·d | k: h·d | v: h·d]", "ink mono"))
    x, width = 24.0, 12.0
    for part, kind in (("q", "other"), ("k", "other"), ("v", "kept")):
        parts.append(text(x, 88, f"{part}: 3 heads of 4", "soft small"))
        for _head in range(3):
            for position in range(4):
                gone = part == "v" and position in (1, 3)
                parts.append(box(x, 96, width - 2, 26, "gone" if gone else kind, 2))
                x += width
            x += 5
        x += 12
    lines = [
        "The parts of a concatenation stay apart: v can lose positions that q and k keep.",
        "h·d is a product: the same share of every head goes, so that shapes stay rectangular.",
        "c·(y·x) is a flattened picture: a channel goes with all its pixels.",
        "[p | p] under a rotary embedding: both halves of a pair go, or none.",
        "Unifying two expressions finds their common refinement: 64 becomes 4·16 where heads meet.",
    ]
    parts += [text(24, 154 + 24 * i, line, "ink") for i, line in enumerate(lines)]
    return picture(740, 274, "Dimensions as expressions", " ".join(lines), parts)


def symmetries() -> str:
    rows = [
        ("general", "any invertible matrix", "only linear maps touch it", "best subspace by SVD, no node added"),
        ("orthogonal", "rotations", "RMSNorm without its weight", "principal axes, then slicing"),
        ("scaling", "positive diagonal × order", "ReLU", "choose positions, refit what reads them"),
        ("permutation", "any order", "GELU, BatchNorm, heads", "choose positions, refit what reads them"),
        ("paired", "one order for both halves", "rotary embeddings", "choose pairs, refit what reads them"),
        ("fixed", "nothing", "an input, an output, a sequence", "stays whole, with the reason"),
    ]
    parts = [text(24, 32, "Symmetry: which changes of basis does an axis allow?", "ink bold")]
    for x, name in ((24, "symmetry"), (136, "may be"), (322, "because of"), (570, "so cutting means")):
        parts.append(text(x, 60, name, "soft small"))
    for index, (name, group, why, cut) in enumerate(rows):
        y = 70 + 32 * index
        kind = "good" if index == 0 else "gone" if index == len(rows) - 1 else "kept"
        parts += [box(24, y, 96, 24, kind, 5), text(72, y + 17, name, "ink mono", "middle")]
        parts += [text(136, y + 17, group), text(322, y + 17, why), text(570, y + 17, cut)]
    parts.append(
        text(
            24,
            286,
            "An axis has the least of what it flows through: that decides, whatever the model is called.",
            "soft",
        )
    )
    said = "; ".join(f"{name}: {group}, {cut}" for name, group, _why, cut in rows)
    return picture(880, 306, "The symmetries of an axis", said, parts)


def proof() -> str:
    def station(x: int, y: int, first: str, second: str, kind: str = "other") -> list[str]:
        return [
            box(x, y, 176, 54, kind, 6), text(x + 88, y + 23, first, "ink bold", "middle"),
            text(x + 88, y + 42, second, "soft small", "middle"),
        ]  # fmt: skip

    parts = [
        text(24, 32, "Three comparisons, never mixed up", "ink bold"),
        *station(24, 60, "original", "as it was captured"),
        *station(24, 210, "masked original", "removed units are zero"),
        *station(312, 210, "slim, as sliced", "before restoration", "kept"),
        *station(312, 60, "slim, restored", "refitted to the data", "kept"),
        *station(600, 60, "model.onnx", "in ONNX Runtime", "good"),
        arrow(112, 114, 112, 208), text(122, 166, "zero what goes", "soft small"),
        arrow(202, 237, 310, 237, both=True), text(256, 226, "proof", "ink bold", "middle"),
        text(256, 258, "float64, rounding", "soft small", "middle"),
        arrow(400, 208, 400, 116), text(410, 166, "least squares", "soft small"),
        arrow(202, 87, 310, 87, both=True, dashed=True), text(256, 76, "quality", "ink bold", "middle"),
        text(256, 106, "measured", "soft small", "middle"),
        arrow(490, 87, 598, 87, both=True), text(544, 76, "check", "ink bold", "middle"),
        text(544, 106, "bound by float64", "soft small", "middle"),
        text(24, 296, "A failed proof or check fails the run. Quality and speed are results, good or bad.", "soft"),
    ]  # fmt: skip
    return picture(
        800, 318, "What is proven, checked and measured", "The slim program as sliced is proven equal to the masked "
        "original in float64. The ONNX file is checked against the restored slim program. The quality of the restored "
        "program is measured against the original.", parts,
    )  # fmt: skip


PICTURES = {
    "coupled_group.svg": coupled_group, "axis_terms.svg": axis_terms, "symmetries.svg": symmetries, "proof.svg": proof,
}  # fmt: skip


def main() -> None:
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
