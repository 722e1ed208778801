"""The page of several runs side by side, and their Pareto fronts as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from fxslim.compare import Family, Run
from fxslim.page.environment import rendered
from fxslim.page.figures import ACCENT, BAD, BEFORE, MUTED, TEXT, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["render_comparison"]


def render_comparison(families: Sequence[Family]) -> str:
    """One HTML page that needs nothing else, as the page of a report."""
    shown = [(family, _fronts(family)) for family in families]
    count = sum(len(family.runs) for family in families)
    return rendered("compare.html", families=shown, count=count)


def _fronts(family: Family) -> list[Markup]:
    if not family.scored:
        return []
    figures = [_front(family, "parameters that remain", lambda r: 100 * r.params, lambda r: r.by_size, "%", 100.0)]
    if family.timed and any(r.ratio for r in family.runs):
        time = "time of one run, of the original's"
        figures.append(
            _front(family, time, lambda r: 100 / r.ratio if r.ratio else None, lambda r: r.by_time, "%", 100.0)
        )
    return figures


def _time(run: Run) -> float | None:
    return 100 / run.ratio if run.ratio else None


def _front(
    family: Family, label: str, value: Callable[[Run], float | None], on_front: Callable[[Run], bool], unit: str,
    whole: float,
) -> Markup:  # fmt: skip
    """Quality against a cost: less is better on the axis below. The original stands at `whole`."""
    runs = [
        (run, x, run.quality) for run in family.runs if (x := value(run)) is not None and run.quality is not None
    ]  # fmt: skip
    first = family.runs[0]
    better = "higher" if first.higher_is_better else "lower"

    def draw(axes: Axes) -> None:
        front = sorted((x, y) for run, x, y in runs if on_front(run))
        axes.plot([x for x, _ in front], [y for _, y in front], color=ACCENT, linewidth=1.4, alpha=0.6)
        if first.original_quality is not None:
            axes.plot([whole], [first.original_quality], "s", color=BEFORE, markersize=8)
            axes.annotate("original", (whole, first.original_quality), (-8, 6), textcoords="offset points", color=MUTED,
                          ha="right")  # fmt: skip
        for run, x, y in runs:
            colour = ACCENT if run.ok else BAD
            inside = colour if on_front(run) or not run.ok else "none"
            axes.plot([x], [y], "o" if run.ok else "X", color=colour, markerfacecolor=inside, markersize=8)
            axes.annotate(run.label, (x, y), (7, 5), textcoords="offset points", color=TEXT)
        axes.set(xlabel=f"{label}, {unit}", ylabel=f"{first.quality_name} ({better} is better)")
        axes.margins(0.14)
        axes.set_title(f"{first.quality_name} against {label.split(' ')[0]}", loc="left", fontsize=12, color=TEXT)

    said = "; ".join(
        f"{run.label}: {x:.1f} {unit}, {y:.4g}{', on the front' if on_front(run) else ''}"
        f"{'' if run.ok else ', FAILED'}" for run, x, y in runs
    )  # fmt: skip
    about = f"{first.quality_name} ({better} is better) against {label}. {said}."
    return figure(draw, f"{first.quality_name} against {label}", about, width=420, height=300)
