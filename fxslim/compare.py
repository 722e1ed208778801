"""Several runs side by side: which are comparable, what each came to, and which no other beats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["Family", "Run", "compared", "compared_document"]


@dataclass(frozen=True)
class Run:
    """One report as a row. Shares are of the original; `quality` is None where it was not measured."""

    label: str  # A, B, ...
    name: str  # as it was given
    model: str
    method: str
    verdict: str
    params: float
    macs: float
    bytes: float
    ratio: float | None  # times as fast
    low: float | None
    high: float | None
    faster: bool
    quality: float | None
    original_quality: float | None
    quality_name: str | None
    higher_is_better: bool
    by_size: bool = False  # no run of its family has better quality at as few parameters
    by_time: bool = False  # nor at as much speed

    @property
    def ok(self) -> bool:
        """Whether its checks passed: else it is not ranked."""
        return self.verdict == "ok"


@dataclass(frozen=True)
class Family:
    """Runs of one original, scored on the same data. `timed` says whether they were timed in the same way."""

    model: str
    data: str  # what it was scored on, or that it was not
    timed_on: str
    timed: bool
    runs: tuple[Run, ...]

    @property
    def scored(self) -> bool:
        """Whether there is a quality to rank by: a run whose own is not finite is not ranked."""
        return any(run.quality is not None for run in self.runs)


def compared(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Family]:
    """The families of reports, each given with its name, in the order given. Within each the runs are marked that lie
    on the Pareto front: quality against parameters, and against time where all were timed in the same way."""
    families: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
    for place, (name, report) in enumerate(reports):
        families.setdefault(_key(report), []).append((_run(_letters(place), name, report), report))
    return [_family(members) for members in families.values()]


def compared_document(families: Sequence[Family]) -> dict[str, Any]:
    """The comparison as JSON values."""
    return {"format": 1, "families": [{**asdict(f), "scored": f.scored} for f in families]}


def _letters(place: int) -> str:
    """A, B, ... Z, AA, ..."""
    text = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        text = chr(ord("A") + rest) + text
    return text


def _key(report: Mapping[str, Any]) -> str:
    """What two runs have in common if they may be ranked against each other: the original with its weights, and the
    data and measure of its quality. Reports that do not say the weights have the original's sizes and score instead."""
    model, quality, data = report["model"], report["quality"] or {}, report["data"]["evaluation"] or {}
    original: Any = [model.get("fingerprint"), model.get("weights_sha256")]
    if None in original:
        original = [model["name"], report["costs"]["params"][0], report["costs"]["macs"][0], quality.get("before")]
    scored = [data.get("sha256"), data.get("rows"), quality.get("name"), quality.get("count")]
    return json.dumps([original, scored], sort_keys=True)


def _timing(report: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was timed; ratios of other inputs, providers or thread counts say something else."""
    latency, versions = report["latency"], report["versions"]
    return {
        "provider": latency["provider"], "threads": latency["threads"], "shapes": latency["shapes"],
        "onnxruntime": versions.get("onnxruntime") or versions.get("onnxruntime-gpu"), "machine": versions["machine"],
    }  # fmt: skip


def _family(members: Sequence[tuple[Run, Mapping[str, Any]]]) -> Family:
    runs, reports = [run for run, _ in members], [report for _, report in members]
    first, timings = reports[0], {json.dumps(_timing(r), sort_keys=True) for r in reports}
    data = first["data"]["evaluation"]
    how = _timing(first)
    timed = len(timings) == 1
    on = f"{how['provider']}, {how['threads']} thread" + ("" if how["threads"] == 1 else "s")
    marked = _fronts(runs, timed=timed)
    return Family(
        first["model"]["name"], "not scored" if data is None else data["description"],
        on if timed else "in different ways, so that times are not ranked", timed, tuple(marked),
    )  # fmt: skip


def _fronts(runs: Sequence[Run], *, timed: bool) -> list[Run]:
    ranked = [r for r in runs if r.ok and r.quality is not None]

    def beaten(run: Run, key: str) -> bool:
        return any(_beats(other, run, key) for other in ranked if other is not run)

    size = [run in ranked and not beaten(run, "params") for run in runs]
    time = [timed and run in ranked and run.ratio is not None and not beaten(run, "time") for run in runs]
    return [replace(run, by_size=s, by_time=t) for run, s, t in zip(runs, size, time, strict=True)]


def _beats(a: Run, b: Run, key: str) -> bool:
    """Whether `a` is no worse than `b` in quality and in size or time, and better in one of them."""
    pairs = [(_goodness(a), _goodness(b)), (_cost(a, key), _cost(b, key))]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def _goodness(run: Run) -> float:
    assert run.quality is not None
    return run.quality if run.higher_is_better else -run.quality


def _cost(run: Run, key: str) -> float:
    """The larger the better."""
    return -run.params if key == "params" else run.ratio if run.ratio is not None else float("-inf")


def _run(label: str, name: str, report: Mapping[str, Any]) -> Run:
    costs, quality, latency = report["costs"], report["quality"], report["latency"]
    ratio = latency["ratio"]
    return Run(
        label, name, report["model"]["name"], _method(report), report["verdict"], _share(costs["params"]),
        _share(costs["macs"]), _share(costs["file_bytes"]), ratio["value"], ratio["low"], ratio["high"],
        latency["faster"], None if quality is None else quality["after"],
        None if quality is None else quality["before"], None if quality is None else quality["name"],
        bool(quality and quality["higher_is_better"]),
    )  # fmt: skip


def _share(pair: Sequence[int]) -> float:
    return pair[1] / pair[0] if pair[0] else 1.0


def _method(report: Mapping[str, Any]) -> str:
    """How the plan was made, in a few words."""
    options = report["plan"]["options"]
    if not options:
        return "a given plan"
    if options.get("metric"):
        return f"ranks by {options['metric']}, {options.get('budget')}"
    if options.get("share") or options.get("depth"):
        return "shared branches" if options.get("share") else "branches left out"
    parts = [str(options.get("importance", "")), f"{options.get('budget', '')} budget"]
    parts += [word for word, key in (("subspaces", "subspace"), ("ranks", "ranks")) if options.get(key)]
    if options.get("restore") not in (None, "least-squares"):
        parts.append(f"restore {options['restore']}")
    return ", ".join(p for p in parts if p.strip())
