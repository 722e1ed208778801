"""The verdict in four tiles: smaller by, faster by, quality, proven; and one sentence that says all of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fxslim.wording import count, number, runs, size
from fxslim.wording import smaller as in_words

__all__ = ["Tile", "lead", "tiles"]


@dataclass(frozen=True)
class Tile:
    """One finding in big words. `state` is good, plain or bad; a bad one says so in its words as well."""

    name: str
    value: str
    unit: str
    details: tuple[str, ...]
    state: str


def tiles(report: dict[str, Any]) -> list[Tile]:
    """What a reader wants to know first. Where the verdict is FAILED nothing looks good."""
    found = [_smaller(report["costs"]), _faster(report["latency"]), _quality(report["quality"]), _proven(report)]
    if report["verdict"] == "ok":
        return found
    return [replace(tile, state="plain") if tile.state == "good" else tile for tile in found]


def lead(report: dict[str, Any]) -> str:
    """The verdict as a sentence."""
    _, faster, quality, proven = tiles(report)
    parts = [in_words(report["costs"]["params"], "parameters"), f"{faster.value} {faster.unit}".strip()]
    if report["quality"] is not None:
        parts.append(f"{report['quality']['name']} {quality.value}")
    return ", ".join([*parts, proven.value.lower() if proven.state != "bad" else proven.value]) + "."


def _change(pair: list[int]) -> str:
    """What became of a size: −30.0%."""
    before, after = pair
    if not before or before == after:
        return "±0%"
    return f"{'−' if after < before else '+'}{abs(1 - after / before):.1%}"


def _smaller(costs: dict[str, list[int]]) -> Tile:
    before, after = costs["params"]
    files = costs["file_bytes"]
    return Tile(
        "Size", _change(costs["params"]), "parameters",
        (
            f"{before:,} → {after:,} parameters",
            f"multiply-accumulates {_change(costs['macs'])}",
            f"ONNX file {_change(files)}: {size(files[0])} → {size(files[1])}",
        ),
        "good" if after < before else "bad" if after > before else "plain",
    )  # fmt: skip


def _faster(latency: dict[str, Any]) -> Tile:
    ratio, control, times = latency["ratio"], latency["control"], latency["median_ms"]
    if not latency["rounds"]:
        return Tile("Speed", "not measured", "", (latency["verdict"],), "plain")
    if None in (*ratio.values(), *control.values()):
        return Tile("Speed", "not measured", "", ("the ratio of the times is not a number",), "bad")
    before, after = times[latency["baseline"]], times[latency["candidate"]]
    slower = ratio["high"] < min(1.0, control["low"])
    factor = f"{ratio['value']:.2f}×"
    if latency["faster"]:
        value, unit, state = factor, "as fast", "good"
    elif slower:
        value, unit, state = f"{1 / ratio['value']:.2f}×", "SLOWER", "bad"
    else:
        value, unit, state = factor, "as fast, within noise", "plain"
    return Tile(
        "Speed", value, unit,
        (
            f"{'times as fast, ' if slower else ''}95% interval {ratio['low']:.2f} to {ratio['high']:.2f}",
            f"original against itself {control['low']:.2f} to {control['high']:.2f}",
            f"{number(before)} ms → {number(after)} ms for one run",
            f"on {latency['provider']}, {count(latency['threads'], 'thread')}",
        ),
        state,
    )  # fmt: skip


def _quality(quality: dict[str, Any] | None) -> Tile:
    if quality is None:
        return Tile("Quality", "not measured", "", ("there was no evaluation data",), "plain")
    before, after = quality["before"], quality["after"]
    better = "higher" if quality["higher_is_better"] else "lower"
    details = [f"{better} is better; over {quality['count']:,} predictions"]
    if before and after is not None:
        change = after / before - 1
        side = "above" if change > 0 else "below"
        details.insert(0, f"{abs(change):.1%} {side} the original" if change else "the same as the original")
    value = f"{number(before)} → {number(after)}"
    return Tile(f"Quality: {quality['name']}", value, "", tuple(details), "plain")


def _proven(report: dict[str, Any]) -> Tile:
    proof, parity = report["proof"], report["parity"]
    if not proof.get("cuts", 1):
        proven, details = "Nothing cut", ["what prepares the model was checked as it was made"]
    elif proof["ok"]:
        proven = "Proven" if proof["exact"] else "Proven, inexact"
        scope = "exact" if proof["exact"] else f"crosses {count(len(proof['inexact']), 'tied place')}"
        details = [f"equal to the masked original before restoration: error {number(proof['error'])} ({scope})"]
    else:
        proven, details = "NOT PROVEN", [f"differs from the masked original: error {number(proof['error'])}"]
    checked = f"ONNX file {'agrees' if parity['ok'] else 'FAILED its check'} at {count(runs(parity), 'run')}"
    return Tile(
        "Proof", proven, "", (*details, f"{checked} on {parity['provider']}"),
        "good" if proof["ok"] and parity["ok"] else "bad",
    )  # fmt: skip
