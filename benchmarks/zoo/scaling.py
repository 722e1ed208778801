"""Time of analysis and rewriting against the size of the graph over the whole sweep: a plot and an exponent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.zoo.measure import Row

__all__ = ["exponent", "plot"]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The exponent p and factor c of seconds = c·size^p, by least squares of the logarithms."""
    p, intercept = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(p), float(np.exp(intercept))


def plot(rows: Sequence[Row], path: Path, *, clock: str = "seconds (wall clock)") -> dict[str, float]:
    """Writes the plot; returns the exponents of analysis and of rewriting.

    A graph's size is its number of nodes. Rewriting is making and applying a plan, shapes derived and verified anew.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fxslim"  # the same rows give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    found = {}
    measured = [r for r in rows if r.nodes and r.analysis_s > 0 and r.rewrite_s > 0]
    if not measured:
        return {}
    for name, label, marker in (("analysis_s", "analysis", "o"), ("rewrite_s", "planning and rewriting", "^")):
        sizes = np.array([float(r.nodes) for r in measured])
        seconds = np.array([float(getattr(r, name)) for r in measured])
        p, factor = exponent(sizes.tolist(), seconds.tolist())
        found[label] = p
        (points,) = axes.loglog(sizes, seconds, marker, markersize=3, alpha=0.6, label=f"{label}: nodes^{p:.2f}")
        line = np.array([sizes.min(), sizes.max()])
        axes.loglog(line, factor * line**p, "-", color=points.get_color(), linewidth=1)
    axes.set_xlabel("nodes of the graph")
    axes.set_ylabel(clock)
    axes.legend(frameon=False)
    axes.grid(visible=True, which="major", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return found
