"""The results as a page: totals, findings by kind, what the grammar covered, and where the time went."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from tests.fuzz.run import Record

__all__ = ["page"]


def page(records: Sequence[Record], *, command: str, wall: float) -> str:
    """The page in Markdown."""
    good = [r for r in records if "crash" not in r]
    lines = [
        "# Fuzzer", "", f"`{command}`", "",
        *_table(("", ""), _totals(records, good, wall)), "",
        "## Findings", "", *_findings(records), "",
        "## Modules that the exporter refuses", "", *_refused(good), "",
        "## Seconds of processor time for a module", "",
        *_table(("stage", "median", "mean", "worst"), _times(good)), "",
        "## Coverage of the grammar", "", *_table(("feature", "modules", "with findings"), _features(good)), "",
        "## Operators", "", *_table(("operator", "modules"), _operators(good)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(map(str, row))} |" for row in rows),
    ]  # fmt: skip


def _totals(records: Sequence[Record], good: Sequence[Record], wall: float) -> list[tuple[str, object]]:
    def total(name: str) -> int:
        return sum(r[name] for r in good)

    return [
        ("modules", len(records)),
        ("captured", sum(not r["captured"] for r in good)),
        ("with a finding", sum(bool(r.get("failure") or r.get("crash")) for r in records)),
        ("processes that died or were late", sum("crash" in r for r in records)),
        ("prunable groups", total("groups")),
        ("of these exact", total("exact_groups")),
        ("plans proven in float64", total("plans")),
        ("groups cut by them", total("cuts")),
        ("plans also checked against zeroed weights in the eager module", total("zeroed")),
        ("plans whose removal changes no output, in the eager module either", total("silent")),
        ("exported and compared in ONNX Runtime, optimisations on and off", total("exported")),
        ("wall seconds of the last run", f"{wall:.0f}"),
    ]


def _findings(records: Sequence[Record]) -> list[str]:
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        kind = record.get("failure") or record.get("crash")
        if kind:
            kinds[kind].append(record)
    if not kinds:
        return ["None."]
    rows = sorted(kinds.items(), key=lambda item: -len(item[1]))
    return _table(
        ("kind", "modules", "seeds"), ((_cell(k), len(v), ", ".join(str(r["key"]) for r in v[:4])) for k, v in rows)
    )


def _refused(good: Sequence[Record]) -> list[str]:
    reasons = Counter(_cell(r["captured"])[:120] for r in good if r["captured"])
    return _table(("reason", "modules"), reasons.most_common()) if reasons else ["None."]


def _times(good: Sequence[Record]) -> list[tuple[str, str, str, str]]:
    stages: dict[str, list[float]] = defaultdict(list)
    for record in good:
        for stage, seconds in record["times"].items():
            stages[stage].append(seconds)
        stages["all"].append(sum(record["times"].values()))
    return [
        (stage, f"{statistics.median(found):.3f}", f"{statistics.fmean(found):.3f}", f"{max(found):.3f}")
        for stage, found in stages.items()
    ]


def _features(good: Sequence[Record]) -> list[tuple[str, int, int]]:
    seen, failed = Counter(), Counter()  # type: Counter[str], Counter[str]
    for record in good:
        seen.update(record["features"])
        failed.update(record["features"] if record["failure"] else ())
    return [(feature, count, failed[feature]) for feature, count in sorted(seen.items())]


def _operators(good: Sequence[Record]) -> list[tuple[str, int]]:
    seen = Counter(operator for r in good for operator in r["operators"])
    return [(f"`{name}`", count) for name, count in sorted(seen.items())]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
