"""Measures whether one model is faster than another, and how sure that is."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fxslim.export.providers import as_check_errors, create_session, provider_name, resolve_provider
from fxslim.export.running import bound
from fxslim.graph.errors import InputError

__all__ = ["Inputs", "LatencyReport", "Ratio", "bootstrap_ratio", "measure_latency", "run_times"]

Inputs = Sequence[torch.Tensor]

_REBUILDS = 3  # sessions differ in where their memory lands; a ratio from one pair of sessions carries that luck
_BLOCK_SECONDS = 0.01  # longer than the clock's and the scheduler's grain
_LEAST_ROUNDS = 8  # for each rebuild: fewer give an interval that means nothing
_STABLE = 0.02
_RESAMPLES = 4000
_CONTROL = "control"
_LEVELS = 21  # of quantiles that stand for a distribution


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: time of the baseline over time of the other, with a 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LatencyReport:
    """Medians and quantiles are milliseconds for one run. `control` compares two sessions of the baseline: its ratio
    should be 1."""

    baseline: str
    candidate: str
    median_ms: dict[str, float]
    ratio: Ratio
    control: Ratio
    provider: str
    threads: int
    rounds: int
    seconds: float
    denormals_as_zero: bool = True
    rebuild_ratios: tuple[float, ...] = ()  # of each pair of sessions
    quantiles_ms: dict[str, list[float]] = field(default_factory=dict)  # by role: 0, 5, ... 100 % of all rounds

    @staticmethod
    def unmeasured(provider: str, threads: int) -> LatencyReport:
        """Nothing was timed: no rounds, and ratios that are no numbers. `provider` as `resolve_provider` takes it."""
        none = Ratio(math.nan, math.nan, math.nan)
        name = provider_name(resolve_provider(provider))
        return LatencyReport("original", "slim", {}, none, none, name, threads, 0, 0.0)

    @property
    def faster(self) -> bool:
        """Whether the speed-up is certain: the interval lies above 1, and above that of the control."""
        return self.ratio.low > max(1.0, self.control.high)

    @property
    def slower(self) -> bool:
        """Whether a slow-down is certain, in the same sense."""
        return self.ratio.high < min(1.0, self.control.low)

    @property
    def verdict(self) -> str:
        """`1.42x faster (95 % CI 1.38-1.47)`, or what else can be said."""
        if not self.rounds:
            return "latency was not measured"
        r = self.ratio
        interval = f"(95 % CI {r.low:.2f}-{r.high:.2f})"
        if self.faster:
            return f"{r.value:.2f}x faster {interval}"
        if self.slower:
            return f"not faster: {1 / r.value:.2f}x slower (95 % CI {1 / r.high:.2f}-{1 / r.low:.2f})"
        if r.low > 1.0:
            c = self.control
            return f"not faster beyond noise: {r.value:.2f}x {interval}, control {c.low:.2f}-{c.high:.2f}"
        return f"not faster: {r.value:.2f}x {interval}"

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values, with the verdict."""
        return {**asdict(self), "faster": self.faster, "verdict": self.verdict}


class _Runner:
    """A session with its inputs and outputs bound on the device, so that only the model is timed."""

    def __init__(self, path: Path, inputs: Inputs, provider: str, threads: int) -> None:
        # Spinning threads of a session that is not being timed would take the cores of the one that is. TF32 stays as
        # it will be when serving.
        self.session = create_session(
            path, provider, threads=threads, strict_float32=False, denormals_as_zero=True, spinning=False
        )
        names = [value.name for value in self.session.get_inputs()]
        if len(names) != len(inputs):
            raise InputError(f"{path} has {len(names)} inputs ({', '.join(names)}), {len(inputs)} were given")
        self.binding = bound(self.session, inputs, provider)

    def seconds(self, repeats: int) -> float:
        """Seconds for one run, the mean of `repeats` runs."""
        start = time.perf_counter()
        for _ in range(repeats):
            self.session.run_with_iobinding(self.binding)
        self.binding.synchronize_outputs()
        return (time.perf_counter() - start) / repeats


def run_times(path: str | Path, inputs: Inputs, provider: str, threads: int) -> list[float]:
    """Seconds of single runs of a model with flat inputs, from several sessions. `provider` is ONNX Runtime's name.

    Raises:
        CheckError: the model does not load or does not run on the provider.
    """
    times: list[float] = []
    with as_check_errors(provider):
        for _ in range(_REBUILDS):
            runner = _Runner(Path(path), inputs, provider, threads)
            _warm_up(runner, time.perf_counter() + 1.0)
            times += [runner.seconds(1) for _ in range(_LEAST_ROUNDS)]
    return times


def measure_latency(
    models: Mapping[str, str | Path],
    inputs: Inputs | Mapping[str, Inputs],
    *,
    provider: str = "auto",
    threads: int = 1,
    seconds_budget: float = 30.0,
    seed: int = 0,
    rebuilds: int = _REBUILDS,
) -> LatencyReport:
    """Whether the second of two models, `{"original": path, "slim": path}`, is faster than the first.

    `inputs` are the flat inputs of both models, or of each by its name. Sessions of both, and a second one of the first
    as a control, run by turns in random order and are rebuilt `rebuilds` times; the statistic is the median of log
    ratios. The budget is what is aimed at: a slow model takes longer, since each must run a few times.

    Raises:
        InputError: not two models, or inputs that do not fit.
        CheckError: a model does not load or does not run on the provider.
    """
    baseline, candidate = _names(models)
    ort_provider = resolve_provider(provider)
    given = {name: inputs[name] if isinstance(inputs, Mapping) else inputs for name in (baseline, candidate)}
    roles = {baseline: baseline, candidate: candidate, _CONTROL: baseline}
    order, start = random.Random(seed), time.perf_counter()
    rounds: list[list[dict[str, float]]] = []
    for i in range(rebuilds):
        with as_check_errors(ort_provider):
            runners = {
                role: _Runner(Path(models[name]), given[name], ort_provider, threads) for role, name in roles.items()
            }
            until = start + seconds_budget * (i + 1) / rebuilds
            rounds.append(_measure(runners, until, order))
    flat = [row for part in rounds for row in part]
    spread = (statistics.median(r[baseline] / r[candidate] for r in part) for part in rounds)
    return LatencyReport(
        baseline, candidate,
        {name: 1e3 * statistics.median(row[name] for row in flat) for name in (baseline, candidate)},
        bootstrap_ratio([[(r[baseline], r[candidate]) for r in part] for part in rounds], seed),
        bootstrap_ratio([[(r[baseline], r[_CONTROL]) for r in part] for part in rounds], seed),
        provider_name(ort_provider), threads, len(flat), time.perf_counter() - start, rebuild_ratios=tuple(spread),
        quantiles_ms={role: _quantiles([row[role] for row in flat]) for role in roles},
    )  # fmt: skip


def _quantiles(seconds: Sequence[float]) -> list[float]:
    """The distribution of times in ms, at the 21 levels from 0 to 1."""
    return [float(q) for q in 1e3 * np.quantile(np.array(seconds), np.linspace(0, 1, _LEVELS))]


def _names(models: Mapping[str, str | Path]) -> tuple[str, str]:
    if len(models) != 2 or _CONTROL in models:
        raise InputError(
            f"two models are compared, here are {len(models)}: {', '.join(models)}",
            remedy=f"give a baseline and a candidate, neither named {_CONTROL!r}",
        )
    for name, path in models.items():
        if not Path(path).is_file():
            raise InputError(f"there is no file {path} (the model {name!r})")
    first, second = models
    return first, second


def _measure(runners: Mapping[str, _Runner], until: float, order: random.Random) -> list[dict[str, float]]:
    """Rounds of one block for each runner, in random order, until the time is up: seconds for one run, by role."""
    repeats = max(1, round(_BLOCK_SECONDS / max(_warm_up(runner, until) for runner in runners.values())))
    rounds: list[dict[str, float]] = []
    while len(rounds) < _LEAST_ROUNDS or time.perf_counter() < until:
        roles = list(runners)
        order.shuffle(roles)
        rounds.append({role: runners[role].seconds(repeats) for role in roles})
    return rounds


def _warm_up(runner: _Runner, until: float) -> float:
    """Seconds for one run, once the median of ten runs moves by less than `_STABLE`, or a twelfth of the time is up."""
    start = time.perf_counter()
    stop = start + 0.25 * max(0.0, until - start) / 3
    times = [runner.seconds(1) for _ in range(3)]
    while time.perf_counter() < stop:
        times.append(runner.seconds(1))
        if len(times) >= 20:
            before, now = statistics.median(times[-20:-10]), statistics.median(times[-10:])
            if abs(now / before - 1) < _STABLE:
                break
    return statistics.median(times[-10:])


def bootstrap_ratio(parts: Sequence[Sequence[tuple[float, float]]], seed: int = 0) -> Ratio:
    """The ratio first / second over paired times (seconds), with a 95 % percentile bootstrap interval.

    `parts` are the rebuilds. The statistic is the mean over rebuilds of the median log ratio; both rebuilds and rounds
    are resampled, so that luck which a whole pair of sessions shares widens the interval.
    """
    logs = [np.log(np.array([a / b for a, b in part])) for part in parts]
    generator = np.random.default_rng(seed)
    resampled = [np.median(generator.choice(x, (_RESAMPLES, len(x))), axis=1) for x in logs]
    picks = generator.integers(len(logs), size=(_RESAMPLES, len(logs)))
    means = np.stack(resampled, axis=1)[np.arange(_RESAMPLES)[:, None], picks].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    centre = float(np.mean([np.median(x) for x in logs]))
    return Ratio(*(float(np.exp(v)) for v in (centre, low, high)))
