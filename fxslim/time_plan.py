"""How long making a plan and restoring will take, said before: counted work by the measured rates of this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.machine import measure_rates
from fxslim.passes.importance import IMPORTANCES
from fxslim.passes.methods import Settings
from fxslim.passes.team import current_team
from fxslim.passes.work import count_work

__all__ = ["plan_seconds"]

_UNTOLD = ("taylor",)  # importances whose work is not counted, as that of plug-ins is not


def plan_seconds(
    analysis: Analysis, batches: Sequence[Sequence[Tensor]] | None, chosen: Settings, *,
    groups: Sequence[str] | None = None, inexact: bool = False,
) -> Mapping[str, float]:  # fmt: skip
    """Seconds by part of the work (`forward`, `moments`, `solves`, ...) of a method on this machine; empty where it is
    not counted: without data, for residual branches, and for importances of plug-ins.

    Raises:
        InputError: nothing of the model may be cut.
    """
    known = chosen.importance in IMPORTANCES and chosen.importance not in _UNTOLD
    if not batches or chosen.depth or chosen.share or not known:
        return {}
    work = count_work(analysis, batches, chosen, groups=groups, inexact=inexact)
    rates, size = measure_rates(), current_team().size
    return {name: part.seconds(rates) / (1 if name == "solves" else size) for name, part in work.items()}
