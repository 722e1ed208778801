"""Budgets: the share that is asked for is the share that remains, or the error says which share could."""

from __future__ import annotations

import math
import re

import pytest

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.costs import CostModel, Target
from fxslim.graph.errors import InputError, PlanError
from fxslim.passes.budget import TOLERANCE, choose_groups, counts_for_keep, counts_for_width
from fxslim.passes.planner import make_plan
from fxslim.passes.prune import Prune
from tests.models.nets import captured

MANY = ("decoder", "resnet", "opt")


@pytest.mark.parametrize("target", ["params", "macs"])
@pytest.mark.parametrize("name", MANY)
def test_the_share_asked_for_remains(name: str, target: Target) -> None:
    """Or, where the widths are too coarse, the error names a share that is then met."""
    analysis = captured(name).analysis
    costs = CostModel(analysis.axes)
    groups, _ = choose_groups(analysis, groups=None, keep_fixed=(), inexact=True)
    shares = []
    for percent in range(20, 101, 5):
        keep = percent / 100
        try:
            counts = counts_for_keep(groups, keep, target, costs)
        except PlanError as error:
            (named,) = re.findall(r"keep >= ([\d.]+)|nearest share at one ratio is ([\d.]+)", str(error))
            keep = float("".join(named))
            counts = counts_for_keep(groups, keep, target, costs)
        shares.append(costs.of(target, counts) / costs.of(target))
        assert abs(shares[-1] - keep) <= TOLERANCE
        assert all(1 <= counts[g.axis] <= g.size for g in groups)
    assert shares == sorted(shares)
    assert len(set(shares)) >= 6


def test_the_share_is_that_of_the_applied_program() -> None:
    analysis = captured("opt").analysis
    for keep in (0.6, 0.75, 0.9):
        slim = Prune(make_plan(analysis, keep=keep))(analysis).program
        assert abs(slim.parameters() / analysis.program.parameters() - keep) <= TOLERANCE


def test_keeping_everything_cuts_nothing() -> None:
    plan = make_plan(captured("decoder").analysis, keep=1.0)
    assert plan.cuts == ()
    assert plan.predicted["params"][0] == plan.predicted["params"][1]


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("option", ["keep", "width"])
def test_shares_outside_of_0_to_1_are_refused(pair: Analysis, option: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{option} must lie above 0 and at most 1"):
        make_plan(pair, **{option: value})


def test_one_of_keep_and_width_is_needed(pair: Analysis) -> None:
    for options in ({}, {"keep": 0.5, "width": 0.5}):
        with pytest.raises(InputError, match="either keep or width"):
            make_plan(pair, **options)


@pytest.mark.parametrize("name", ["mlp", "opt", "decoder"])
def test_an_unreachable_share_names_one_that_can_be_reached(name: str) -> None:
    analysis = captured(name).analysis
    with pytest.raises(PlanError) as caught:
        make_plan(analysis, keep=0.001)
    assert caught.value.remedy is not None
    (named,) = re.findall(r"keep >= ([\d.]+)", caught.value.remedy)
    plan = make_plan(analysis, keep=float(named))
    before, after = plan.predicted["params"]
    assert abs(after / before - float(named)) <= TOLERANCE


def test_width_keeps_that_share_of_every_group() -> None:
    analysis = captured("decoder").analysis
    groups = [g for g in analysis.prunable if g.size > 1 and g.exact]
    counts = counts_for_width(groups, 0.5)
    assert {g.name: counts[g.axis] for g in groups} == {g.name: max(1, math.floor(g.size / 2 + 0.5)) for g in groups}
    assert all(counts_for_width(groups, 1e-9)[g.axis] == 1 for g in groups)
    assert all(counts_for_width(groups, 1.0)[g.axis] == g.size for g in groups)


@pytest.mark.parametrize("width", [0.01, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("round_to", [2, 4, 8])
def test_counts_are_multiples_and_never_zero(round_to: int, width: float) -> None:
    analysis = captured("opt").analysis
    groups = [g for g in analysis.prunable if g.size > 1]
    for group, count in zip(groups, counts_for_width(groups, width, round_to).values(), strict=True):
        assert 1 <= count <= group.size
        if group.kind == "heads":
            continue  # heads are whole units
        assert count % round_to == 0 or count == group.size
        assert count == group.size or group.size >= round_to


def test_rounding_is_kept_by_a_share() -> None:
    analysis = captured("opt").analysis
    plan = make_plan(analysis, keep=0.8, round_to=2)
    assert plan.cuts
    assert all(c.count % 2 == 0 for c in plan.cuts if c.kind != "heads")
    with pytest.raises(InputError, match="round_to must be a whole number of at least 1"):
        make_plan(analysis, keep=0.8, round_to=0)


def test_patterns_choose_groups_by_kind_and_by_name() -> None:
    analysis = captured("attention").analysis

    def chosen(*patterns: str) -> list[str]:
        return [c.group for c in make_plan(analysis, width=0.5, groups=patterns).cuts]

    everything = ["q.weight[0].heads", "q.weight[0].query-key-dims", "v.weight[0].value-dims"]
    assert chosen("heads") == everything[:1]
    assert chosen("q.weight[0].*") == everything[:2]
    assert chosen("q.weight[0].heads", "value dims") == [everything[0], everything[2]]
    assert chosen("?.weight[0].*-dims") == everything[1:]
    with pytest.raises(InputError, match=r"'q\.weight\[9\]' matches no kind and no group"):
        chosen("heads", "q.weight[9]")


def test_patterns_keep_groups_whole_by_group_weight_and_dimension() -> None:
    analysis = captured("attention").analysis

    def left(*patterns: str) -> list[str]:
        return [c.kind for c in make_plan(analysis, width=0.5, keep_fixed=patterns).cuts]

    assert left("v.weight[0].value-dims") == ["heads", "query-key dims"]
    assert left("o.weight[1]") == ["query-key dims"]
    assert left("k.bias") == ["value dims"]
    assert left("query-key dims") == ["heads", "value dims"]
    assert left("*") == []
    with pytest.raises(InputError, match=r"keep_fixed: 'z\.\*' matches no group and no weight"):
        left("heads", "z.*")


def test_a_pattern_with_brackets_is_not_a_set_of_characters() -> None:
    """`up.weight[0]` names one group; read as a glob it would match `up.weight0`, and nothing here."""
    analysis = captured("residual").analysis
    plan = make_plan(analysis, width=0.5, groups=["up.weight[0]"])
    assert [c.group for c in plan.cuts] == ["up.weight[0]"]


def test_inexact_groups_are_left_out_unless_asked_for_and_said_so() -> None:
    analysis = captured("residual").analysis
    plan = make_plan(analysis, width=0.5)
    assert [c.group for c in plan.cuts] == ["up.weight[0]"]
    (note,) = plan.notes
    assert note.startswith("enter.weight[0] (residual stream) stays whole: not exact")
    assert "layer_norm" in note
    assert {c.group for c in make_plan(analysis, width=0.5, inexact=True).cuts} == {"enter.weight[0]", "up.weight[0]"}
