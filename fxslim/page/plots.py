"""The figures of a report: curves behind the budget, latency, errors."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fxslim.page.figures import ACCENT, BAD, BEFORE, LINE, MUTED, TEXT, figure, powers, shortened
from fxslim.wording import count, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curve_figures", "error_figures", "latency_figures"]

_ROWS = 10  # of a figure with one line of text each
_FLOOR = 1e-6  # of the largest loss: what is less is drawn there
_NAMES = {"control": "original, again"}


def curve_figures(curves: dict[str, Any] | None) -> list[Markup]:
    """One figure for each kind of group: the loss against the share that is kept, with what was chosen."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in [] if curves is None else curves["rows"]:
        if len(row["sizes"]) > 1 and any(loss is not None and loss > 0 for loss in row["losses"]):
            by_kind[row["kind"]].append(row)
    return [_curves(kind, rows) for kind, rows in by_kind.items()]


def _curves(kind: str, rows: list[dict[str, Any]]) -> Markup:
    top = max(loss for row in rows for loss in row["losses"] if loss is not None)
    cut = [row for row in rows if row["kept"] < row["size"]]

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            points = [(n / row["size"], loss) for n, loss in zip(row["sizes"], row["losses"], strict=True)
                      if loss is not None]  # fmt: skip
            strength = 0.35 + 0.65 * (place + 1) / len(rows)
            shares, losses = zip(*points, strict=True)
            axes.plot(shares, [max(v, _FLOOR * top) for v in losses], color=ACCENT, alpha=strength, linewidth=1.3)
            at = dict(points).get(row["kept"] / row["size"])
            if at is not None and row["kept"] < row["size"]:
                axes.plot([row["kept"] / row["size"]], [max(at, _FLOOR * top)], "o", color=ACCENT, markersize=5)
        axes.set(yscale="log", xlim=(0, 1.02), xlabel="share kept", ylabel="loss")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
        powers(axes.yaxis)
        axes.minorticks_off()
        _title(axes, f"{kind}: {len(cut)} of {len(rows)} cut")

    chosen = ", ".join(f"{row['name']} keeps {row['kept']} of {row['size']}" for row in cut[:12])
    about = (
        f"Loss against the share that is kept, one line for each of {count(len(rows), 'curve')}; a dot marks what was "
        f"chosen. {chosen or 'None was cut'}."
    )
    return figure(draw, f"What {kind} lose at each size", about)


def latency_figures(latency: dict[str, Any]) -> list[Markup]:
    """The distributions of times, where they were recorded, and the ratio beside its control."""
    figures = []
    if latency.get("quantiles_ms"):
        figures.append(_distributions(latency["quantiles_ms"]))
    if latency["ratio"]["value"] is not None:
        figures.append(_ratios(latency))
    return figures


def _distributions(quantiles: dict[str, list[float]]) -> Markup:
    roles = ("original", "control", "slim")
    order: list[str] = [role for role in roles if role in quantiles] or list(quantiles)

    def draw(axes: Axes) -> None:
        for place, role in enumerate(order):
            q, y = quantiles[role], -place
            colour = BEFORE if role in ("original", "control") else ACCENT
            axes.plot([_at(q, 0.05), _at(q, 0.95)], [y, y], color=colour, linewidth=1.5)
            axes.plot([_at(q, 0.25), _at(q, 0.75)], [y, y], color=colour, linewidth=9, solid_capstyle="butt")
            axes.plot([_at(q, 0.5)], [y], "|", color=TEXT, markersize=17, markeredgewidth=2)
            _label(axes, y, _NAMES.get(role, role), f"{number(_at(q, 0.5))} ms")
        most = max(_at(quantiles[role], 0.95) for role in order)
        axes.set(xlim=(0, 1.05 * most or 1), ylim=(0.4 - len(order), 0.75), xlabel="ms for one run")
        _bare(axes)
        _title(axes, "Time for one run")

    said = "; ".join(
        f"{_NAMES.get(role, role)}: median {number(_at(quantiles[role], 0.5))} ms, half of the runs between "
        f"{number(_at(quantiles[role], 0.25))} and {number(_at(quantiles[role], 0.75))} ms" for role in order
    )  # fmt: skip
    about = f"Thick: half of the rounds; thin: 90% of them; the line: the median. {said}."
    return figure(draw, "Time for one run", about)


def _ratios(latency: dict[str, Any]) -> Markup:
    rows = [("original / slim", latency["ratio"], ACCENT), ("control: original / original", latency["control"], BEFORE)]

    def draw(axes: Axes) -> None:
        axes.axvline(1, color=LINE, linewidth=1.2)
        for place, (name, ratio, colour) in enumerate(rows):
            axes.plot([ratio["low"], ratio["high"]], [-place, -place], color=colour, linewidth=3)
            axes.plot([ratio["value"]], [-place], "o", color=colour, markersize=8)
            interval = f"{ratio['value']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"
            _label(axes, -place, name, interval)
        ends = [1.0] + [r[k] for _, r, _ in rows for k in ("low", "high")]
        margin = 0.08 * (max(ends) - min(ends)) + 0.02
        axes.set(xlim=(min(ends) - margin, max(ends) + margin), ylim=(0.4 - len(rows), 0.75), xlabel="times as fast")
        _bare(axes)
        _title(axes, "How many times as fast")

    about = "Ratios of times with intervals of 95%; the control compares the original with itself and should hold 1. "
    about += "; ".join(f"{name}: {r['value']:.3f}, from {r['low']:.3f} to {r['high']:.3f}" for name, r, _ in rows) + "."
    return figure(draw, "How many times as fast", about, height=180)


def error_figures(proof: dict[str, Any], parity: dict[str, Any]) -> list[Markup]:
    """The error of each output in the proof, and of each output at each shape of the ONNX file, beside their bounds."""
    outputs = [(o["name"], o["error"]) for o in proof["outputs"]]
    named = len({o["name"] for shape in parity["shapes"] for o in shape["outputs"]}) > 1
    runs = [
        (_run(shape["sizes"], o["name"] if named else None), _of(o["rmse"], o["allowed"]))
        for shape in parity["shapes"] for o in shape["outputs"]
    ]  # fmt: skip
    figures = []
    if outputs:
        bars = [_Bar(name, error, number(error)) for name, error in outputs]
        title = "Proof: error of each output"
        figures.append(_bounded(title, bars, proof["tolerance"], "allowed", "relative error, float64"))
    if runs:
        bars = [_Bar(name, share, "not finite" if share is None else f"{share:.0%} of it") for name, share in runs]
        title = "ONNX file: share of the allowed error"
        figures.append(_bounded(title, bars, 1.0, "allowed", "rms error / allowed"))
    return figures


@dataclass(frozen=True)
class _Bar:
    """One value; None where it is not finite."""

    name: str
    value: float | None
    said: str


def _run(sizes: dict[str, int], output: str | None) -> str:
    """What a run is called: its output, where there are several, and its sizes."""
    said = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "fixed sizes"
    return said if output is None else f"{output} at {said}"


def _of(error: float | None, allowed: float | None) -> float | None:
    """An error as a share of the allowed one: 0 where none is allowed and there is none."""
    if error is None or allowed is None:
        return None
    return error / allowed if allowed else (0.0 if not error else None)


def _bounded(title: str, bars: Sequence[_Bar], bound: float, bound_name: str, label: str) -> Markup:
    """Values on a logarithmic axis beside what bounds them; the worst ones where there are many."""
    worst = sorted(bars, key=lambda b: -(math.inf if b.value is None else b.value))[:_ROWS]
    shown = [b for b in bars if b in worst][:_ROWS]
    values = [b.value for b in shown if b.value]
    low, high = min([bound, *values]) / 30, max([bound, *values]) * 30

    def draw(axes: Axes) -> None:
        axes.axvline(bound, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.text(bound, 0.95, f"{bound_name} ", color=MUTED, fontsize=10, va="bottom", ha="right")
        for place, bar in enumerate(shown):
            fine = bar.value is not None and bar.value <= bound
            at = high if bar.value is None else max(bar.value, low)
            axes.plot([low, at], [-place, -place], color=ACCENT if fine else BAD, linewidth=2)
            axes.plot([at], [-place], "o" if fine else "X", color=ACCENT if fine else BAD, markersize=7)
            _label(axes, -place, shortened(bar.name, 38), bar.said)
        axes.set(xscale="log", xlim=(low, high), ylim=(0.4 - len(shown), 1.5), xlabel=label)
        _bare(axes)
        powers(axes.xaxis)
        axes.minorticks_off()
        _title(axes, title)

    left = "" if len(shown) == len(bars) else f" The worst {len(shown)} of {len(bars)}."
    about = "; ".join(f"{b.name}: {b.said}" for b in shown) + f". Allowed: {number(bound)}.{left}"
    return figure(draw, title, about, height=110 + 34 * len(shown))


def _at(quantiles: Sequence[float], level: float) -> float:
    return quantiles[round(level * (len(quantiles) - 1))]


def _label(axes: Axes, y: float, name: str, value: str) -> None:
    """A line of text above a row: what it is at the left, its value at the right."""
    where = axes.get_yaxis_transform()
    axes.text(0, y + 0.3, name, transform=where, color=TEXT, va="bottom", ha="left")
    axes.text(1, y + 0.3, value, transform=where, color=MUTED, va="bottom", ha="right")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=12, color=TEXT)


def _bare(axes: Axes) -> None:
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
