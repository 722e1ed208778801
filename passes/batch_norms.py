"""Batch norms behind changed layers: running statistics that suit what the norm sees now.

A norm maps x to (x - m) / sqrt(v + eps), with m and v from training. Where its input changed from y to x, the
statistics m' and v' that give the result the mean and the variance that it had in the original follow from those of x
and y on calibration data:

    v' + eps = (v + eps) var(x) / var(y)        m' = mean(x) - sqrt((v' + eps) / (v + eps)) (mean(y) - m)

The calibration data decides only what changed, not what the statistics are: for x = y they stay as they were, however
small the sample. A least-squares refit shrinks variances; to undo that (Jordan 2022, REPAIR, arXiv 2211.08403) is not
always closer to the original, so held-out data judges.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, fx

from fxslim.graph.axes.registry import Call
from fxslim.graph.program import Program

__all__ = ["BatchNorm", "Compared", "Reestimated", "find_batch_norms", "reestimate", "subtracted_mean"]

aten = torch.ops.aten
_OWN_STATISTICS = {aten.batch_norm.default: "training", aten.instance_norm.default: "use_input_stats"}


@dataclass(frozen=True)
class BatchNorm:
    """A call that normalises with running statistics, by the names of its weights."""

    node: fx.Node
    source: fx.Node  # [b, c, *positions]
    mean: str
    variance: str
    scale: str | None
    eps: float
    reason: str = ""  # why its statistics have to stay


def find_batch_norms(program: Program) -> Iterator[BatchNorm]:
    """The norms of a program that use running statistics, in the order of the graph."""
    for node in program.graph.nodes:
        norm = _batch_norm(node)
        if norm is not None:
            yield norm


def _batch_norm(node: fx.Node) -> BatchNorm | None:
    own = _OWN_STATISTICS.get(node.target)  # type: ignore[call-overload]
    if own is None:
        return None
    call = Call(node)
    mean, variance, scale = (call.arg(n) for n in ("running_mean", "running_var", "weight"))
    if call.arg(own) or mean is None or variance is None:
        return None
    reason = ""
    if mean.op != "get_attr" or variance.op != "get_attr":
        reason = "its running statistics are computed"
    elif len(mean.users) > 1 or len(variance.users) > 1 or mean is variance:
        reason = "its running statistics are used in several places"
    name = str(scale.target) if scale is not None and scale.op == "get_attr" else None
    return BatchNorm(
        node, call.arg("input"), str(mean.target), str(variance.target), name, float(call.arg("eps")), reason
    )


def subtracted_mean(node: fx.Node, channel: int) -> str | None:
    """The name of the running mean that a norm subtracts from the result of `node`, channels on dimension `channel`:
    minus a bias. None where something else reads the result as well, or the mean."""
    readers = list(node.users)
    norm = _batch_norm(readers[0]) if len(readers) == 1 and channel == 1 else None
    return norm.mean if norm is not None and norm.source is node and not norm.reason else None


@dataclass
class Compared:
    """What a norm sees now against what it saw in the original, channel by channel: the count, and sums over all
    values of x, y, x^2, y^2 and (x - y)^2: [5, c] float64."""

    sums: Tensor
    count: int

    @classmethod
    def of(cls, both: Tensor) -> Compared:
        """Of [2, tokens, c], x first."""
        x, y = both.double()
        sums = [x.sum(0), y.sum(0), x.square().sum(0), y.square().sum(0), (x - y).square().sum(0)]
        return cls(torch.stack(sums), both.shape[1])

    @classmethod
    def over(cls, parts: Iterable[Tensor]) -> Compared:
        """Of parts [2, tokens, c] together."""
        return reduce(operator.add, map(cls.of, parts))

    @staticmethod
    def columns(x: Tensor, y: Tensor) -> Tensor:
        """Two values [b, c, *positions] as [2, tokens, c]."""
        return torch.stack([v.movedim(1, -1).reshape(-1, v.shape[1]) for v in (x, y)])

    def __add__(self, other: Compared) -> Compared:
        return Compared(self.sums + other.sums, self.count + other.count)

    @property
    def changed(self) -> bool:
        """Whether the two differ at all."""
        return bool(self.sums[4].any())

    def means(self) -> Tensor:
        """Of x and y: [2, c]."""
        return self.sums[:2] / self.count

    def variances(self) -> Tensor:
        """Of x and y: [2, c]."""
        return (self.sums[2:4] / self.count - self.means().square()).clamp(min=0)

    def errors(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        """The mean square of (a x + b) - (c y + d), by channel: [c]."""
        (x, y), (xx, yy, apart) = self.means(), self.sums[2:] / self.count
        xy = (xx + yy - apart) / 2
        shift = b - d
        squares: Tensor = a * a * xx + c * c * yy - 2 * a * c * xy + 2 * shift * (a * x - c * y) + shift * shift
        return squares.clamp(min=0)


@dataclass(frozen=True)
class Reestimated:
    """New running statistics [c] in float64, and what is known of them."""

    mean: Tensor
    variance: Tensor
    changed: str  # "mean", "mean and variance", or nothing
    before: float  # squared error of the norm's output on held-out data, relative to the original's variance
    after: float
    reason: str = ""  # why nothing changed


Statistics = tuple[Tensor, Tensor]  # mean and variance: [c]


def reestimate(
    old: Statistics, now: Statistics, scale: Tensor | None, eps: float, train: Compared, held_out: Compared
) -> Reestimated:
    """The statistics that bring a norm's output closest to the original program's on held-out data: `now`, `now` with
    a new mean, or a new mean and variance. What is accepted then uses all data.

    `old` are the original's. All channels count, those that a plan removes too: which these are may be open yet.
    """
    old, now = _double(old), _double(now)
    weights = torch.ones_like(old[0]) if scale is None else scale.double().square()
    if train.count < 2 or not held_out.count:
        return Reestimated(*now, "", float("nan"), float("nan"), "too few values")
    spread = max(float((weights * held_out.variances()[1] / (old[1] + eps)).sum()), 1e-300)

    def error(candidate: Statistics) -> float:
        return float((weights * held_out.errors(*_affine(candidate, eps), *_affine(old, eps))).sum()) / spread

    before = error(now)
    best, best_error = "", before
    for name, candidate in _candidates(old, now, eps, train).items():
        if (found := error(candidate)) < best_error:
            best, best_error = name, found
    if not best:
        return Reestimated(*now, "", before, before, "no other statistics lowered the error on held-out data")
    return Reestimated(*_candidates(old, now, eps, train + held_out)[best], best, before, best_error)


def _candidates(old: Statistics, now: Statistics, eps: float, seen: Compared) -> dict[str, Statistics]:
    (x, y), (spread, original) = seen.means(), seen.variances()
    ratio = spread / original.clamp(min=1e-300)
    wide = torch.where(original > 1e-12 * seen.sums[3] / seen.count, (old[1] + eps) * ratio - eps, now[1]).clamp(min=0)

    def centred(variance: Tensor) -> Statistics:
        return x - ((variance + eps) / (old[1] + eps)).sqrt() * (y - old[0]), variance

    return {"mean": centred(now[1]), "mean and variance": centred(wide)}


def _affine(statistics: Statistics, eps: float) -> Statistics:
    """The factor and the summand of a norm without its weight."""
    factor = (statistics[1] + eps).rsqrt()
    return factor, -statistics[0] * factor


def _double(statistics: Statistics) -> Statistics:
    return statistics[0].detach().double(), statistics[1].detach().double()
