"""What is said of calibration data: where it came from, and whether it was enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fxslim.api import for_plan
from fxslim.data import GENERATED, Batches
from fxslim.graph.axes.groups import Analysis
from fxslim.passes.plan import Plan
from fxslim.passes.restore import FEW_TOKENS, Restoration
from fxslim.passes.sufficiency import Need, expected_needs, refit_needs, scarcest, summarize

__all__ = ["data_facts", "restoration_facts", "shortage", "shortage_of", "shortage_of_plan"]


def data_facts(batches: Batches) -> dict[str, Any]:
    """Batches as JSON values, without the values themselves and without folders."""
    return {
        "description": batches.description, "rows": batches.rows, "tokens": batches.tokens, "sha256": batches.sha256,
        "parts": [{**asdict(part), "source": Path(part.source).name} for part in batches.parts],
    }  # fmt: skip


def restoration_facts(restoration: Restoration, batches: Batches | None) -> dict[str, Any]:
    """A restoration as JSON values: its rows, its warnings, a summary, and a sentence if the data was too little."""
    summary = summarize(restoration)
    return {
        "by": restoration.by,
        "rows": [asdict(row) for row in restoration.rows],
        "norms": [asdict(norm) for norm in restoration.norms],
        "warnings": list(restoration.warnings),
        "summary": None if summary is None else asdict(summary),
        "too_little": shortage_of(restoration, batches),
    }


def shortage_of(restoration: Restoration, batches: Batches | None) -> str | None:
    """The sentence of `shortage` for refits that were made: a mean that a bias takes over needs no such number."""
    return None if restoration.by == "bias" else shortage(refit_needs(restoration), batches)


def shortage_of_plan(analysis: Analysis, plan: Plan, batches: Batches | None) -> str | None:
    """The sentence of `shortage` for the refits that applying a plan will make; None if it will make none."""
    if batches is None or plan.options.get("restore") in ("none", "bias"):
        return None
    target = for_plan(analysis, plan)
    return shortage(expected_needs(target, plan.selection(target), batches.inputs), batches)


def shortage(needs: Sequence[Need], batches: Batches | None) -> str | None:
    """One sentence that says for how many weights the calibration data is too little, and how much would do; None if it
    is enough for all."""
    least, short = scarcest(needs), sum(need.short for need in needs)
    if least is None or not short:
        return None
    had = f"{least.weight} has {least.ratio:.2g} tokens for each of {least.columns} columns, {FEW_TOKENS:g} are wanted"
    return f"too little calibration data for {short} of {len(needs)} refits: {had}. {_remedy(least, batches)}"


def _remedy(least: Need, batches: Batches | None) -> str:
    factor = FEW_TOKENS / least.ratio if least.tokens else math.inf
    if batches is None or not math.isfinite(factor):
        return "Give more data."
    wanted = math.ceil(batches.rows * factor)
    lacking = [
        part for part in batches.parts
        if part.source != GENERATED and part.available is not None and part.available < wanted * part.share
    ]  # fmt: skip
    if not batches.parts or not lacking:
        return f"Give --samples {wanted} (limit=), {factor:.1f} times as many rows as the {batches.rows} here."
    names = ", ".join(f"{Path(p.source).name} holds {p.available}" for p in lacking)
    return f"Give more data: {wanted} rows are wanted, and {names}."
