"""How numbers and findings are worded, the same in the Markdown report, on the page and in comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

__all__ = [
    "count",
    "each",
    "loader_line",
    "moved",
    "number",
    "proof_line",
    "quality_line",
    "runs",
    "shortage",
    "size",
    "smaller",
    "where",
]

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def smaller(pair: Sequence[int], what: str) -> str:
    """How a size changed, before and after: `30.0% fewer parameters`."""
    before, after = pair
    if before == after or not before:
        return f"as many {what}"
    change = abs(1 - after / before)
    return f"{change:.1%} {'fewer' if after < before else 'MORE'} {what}"


def count(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def runs(parity: dict[str, Any]) -> int:
    """How many runs of the ONNX file were compared."""
    return sum(1 for s in parity["shapes"] if s["outputs"])


def quality_line(quality: dict[str, Any] | None) -> str:
    """The quality before and after, or that it was not measured."""
    if quality is None:
        return "quality was not measured: no evaluation data"
    change = f"{number(quality['before'])} -> {number(quality['after'])}"
    return f"{quality['name']} {change} over {quality['count']:,} predictions"


def loader_line(loader: dict[str, Any] | None) -> list[str]:
    """Whether optimum's loader takes the result, as one line; none where that was not asked."""
    if loader is None:
        return []
    said = "takes the result as it is" if not loader["config"] else "takes the result with its own config.json"
    if not loader["ok"]:
        said = "DOES NOT TAKE the result"
    return [f"optimum's {loader['loader']} {said}"]


def proof_line(proof: dict[str, Any]) -> str:
    """What was proven, how exactly, or that it was not."""
    if not proof.get("cuts", 1):
        return f"no group is cut; what prepares the model was checked as it was made: error {number(proof['error'])}"
    verdict = "proven equal to the masked original" if proof["ok"] else "NOT PROVEN equal to the masked original"
    places = len(proof["inexact"])
    scope = "exact" if proof["exact"] else f"inexact: crosses {count(places, 'tied place')}"
    return f"{verdict} before restoration: relative error {number(proof['error'])} ({scope})"


def number(value: float | None) -> str:
    """A number in four digits; `not finite` for None."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:.4g}" if abs(value) < 1e5 and (abs(value) >= 1e-3 or value == 0) else f"{value:.1e}"


def size(value: int) -> str:
    """Bytes in the unit that fits."""
    return next((f"{value / scale:.2f} {unit}" for unit, scale in _UNITS if value >= scale), f"{value} B")


def where(provider: dict[str, Any]) -> str:
    """The execution provider; that it is the CPU for want of another is said where nobody asked for it."""
    used: str = provider["used"]
    if provider["asked"] == "auto" and used == "cpu":
        return "cpu: no other execution provider works here"
    if provider["tf32"]:
        return f"{used} (TF32 {provider['tf32']['check']} in the check, {provider['tf32']['latency']} in the timing)"
    return used


def shortage(restoration: dict[str, Any] | None) -> list[str]:
    """What is said of too little calibration data; empty where it was enough."""
    said = None if restoration is None else restoration["too_little"]
    return [] if said is None else [said]


def each(batch: list[int]) -> str:
    """The sizes for each position of which a group is cut differently."""
    return f" in each of {' x '.join(map(str, batch))}" if batch else ""


def moved(quality: dict[str, Any]) -> str:
    """How far an output moved, or why it cannot be said."""
    return quality["not_comparable"] or f"rms distance {number(quality['relative'])} of the original's rms"
