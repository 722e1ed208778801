"""Outlier-weighted widths: groups whose consumers hold many outliers lose less (Yin 2024, OWL, equations 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fxslim.graph.axes.groups import Analysis, Group
from fxslim.graph.axes.terms import Axis
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.budget import Widths
from fxslim.passes.consumers import Consumer, find_consumers
from fxslim.passes.statistics import CalibrationWalk

__all__ = ["outlier_shares", "shifted", "width_offsets"]

_TIMES = 5.0  # an entry is an outlier above this multiple of the mean
_LAMBDA = 0.08  # widths differ by at most twice this


def outlier_shares(
    analysis: Analysis, groups: Sequence[Group], batches: Sequence[Sequence[Tensor]]
) -> dict[str, float]:
    """By group name the share of entries |W_ij| ||X_j|| of its consumers that exceed five times their mean; consumers
    of several count alike."""
    wanted = {node for group in groups for node in group.consumers}
    walk, found = CalibrationWalk(Evaluator(analysis.program), batches), dict[str, float]()
    for consumer in find_consumers(analysis.axes)[0]:
        if consumer.node.name in wanted:
            walk.advance_to(consumer.node)
            found[consumer.node.name] = _share(analysis, consumer, walk)
    own = {g.name: [found[n] for n in g.consumers if n in found] for g in groups}
    return {name: sum(shares) / len(shares) for name, shares in own.items() if shares}


def _share(analysis: Analysis, consumer: Consumer, walk: CalibrationWalk) -> float:
    weight, _ = consumer.parameters(analysis.program)
    entries = weight.double().abs() * walk.moment(consumer).norms().unsqueeze(1)
    return float((entries > _TIMES * entries.mean()).double().mean())


def width_offsets(groups: Sequence[Group], shares: Mapping[str, float]) -> dict[Axis, float]:
    """What is added to the width that all groups would keep alike: between -0.16 and 0.16, zero on average."""
    known = [shares[g.name] for g in groups if g.name in shares]
    low, high = min(known, default=0.0), max(known, default=0.0)
    if high <= low:
        return {}
    scaled = {g.axis: (shares[g.name] - low) / (high - low) * 2 * _LAMBDA for g in groups if g.name in shares}
    mean = sum(scaled.values()) / len(scaled)
    return {axis: value - mean for axis, value in scaled.items()}


def shifted(offsets: Mapping[Axis, float]) -> Widths:
    """The common width with the offsets added, less of them towards both ends, at which all groups are alike."""

    def widths(width: float) -> dict[Axis, float]:
        room = min(1.0, 2 * width, 2 - 2 * width)
        return {axis: width + room * offset for axis, offset in offsets.items()}

    return widths
