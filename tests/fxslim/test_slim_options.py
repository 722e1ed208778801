"""What can be refused before a model is opened, is."""

from __future__ import annotations

from typing import Any

import pytest

from fxslim.graph.errors import InputError
from fxslim.pipeline import SlimOptions, refuse_early, slim

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "rounding": ({"method": "fasp", "round_to": 0}, "round_to"),
    "slope": ({"method": "fasp", "slope": 0.5}, "slope"),
    "a slope out of range": ({"method": "lr-sms", "slope": 1.0}, "slope"),
    "rounds of ranks": ({"method": "svd", "rounds": 3}, "rounds"),
    "no rounds": ({"calibration": "data.npz", "rounds": 0}, "rounds"),
    "groups of branches": ({"method": "shortgpt", "groups": ("x",)}, "groups"),
    "no such method": ({"method": "nosuch"}, "nosuch"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_option_is_refused_before_the_model_is_opened(case: str, tmp_path: Any) -> None:
    options, named = BAD[case]
    with pytest.raises(InputError, match=named):
        slim(SlimOptions(str(tmp_path / "nowhere"), keep=0.5, **options), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "best"}, {"method": "lr-sms", "slope": 0.5}, {"method": "fasp", "rounds": 3}, {"width": 0.5},
     {"method": "magnitude", "of": "latency"}, {"method": "osscar", "groups": ("a",), "round_to": 8}],
)  # fmt: skip
def test_good_ones_are_not(options: dict[str, Any]) -> None:
    share = {} if "width" in options else {"keep": 0.5}
    refuse_early(SlimOptions("nowhere", **share, **options))


def test_a_plan_needs_none_of_them() -> None:
    with pytest.raises(InputError, match="no effect on a plan"):
        refuse_early(SlimOptions("nowhere", plan="plan.json", rounds=3))
    refuse_early(SlimOptions("nowhere", plan="plan.json"))
