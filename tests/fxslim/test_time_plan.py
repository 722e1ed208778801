"""The time of a plan, said before: by part, longer for more data, and nothing where it is not counted."""

from __future__ import annotations

import pytest

from fxslim.passes.methods import settings
from fxslim.time_plan import plan_seconds
from tests.passes.test_work import data, net

OFTEN = 64  # times the data: far more than what measuring the machine twice differs by


@pytest.mark.parametrize("method", ["fasp", "best"])
def test_seconds_are_said_by_part_and_grow_with_the_data(method: str) -> None:
    chosen = settings(method, data=True)
    found = plan_seconds(net(), data(4), chosen)
    assert {"forward", "moments", "solves"} <= found.keys()
    assert all(seconds >= 0 for seconds in found.values())
    assert plan_seconds(net(), data(4 * OFTEN), chosen)["forward"] > found["forward"] > 0


@pytest.mark.parametrize("method", ["shortgpt", "foldgpt"])
def test_what_is_not_counted_is_not_said(method: str) -> None:
    assert plan_seconds(net(), data(), settings(method, data=True)) == {}
    assert plan_seconds(net(), None, settings("magnitude", data=False)) == {}
