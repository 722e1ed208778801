"""Plans with subspaces: what they need, what they are, and that they are proven."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import apply, apply_plan, compress, make_plan, prove
from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes import planning
from fxslim.passes.allocation import allocate
from fxslim.passes.bases import change_bases, in_bases
from fxslim.passes.change_basis import bases_of
from fxslim.passes.options import PlanOptions
from fxslim.passes.plan import FORMAT, Cut, Plan
from fxslim.passes.probe import probe
from fxslim.passes.prune import Prune
from fxslim.passes.survey import fitted, survey
from tests.models.nets import captured
from tests.passes.blocks import BLOCKS, opened, subspaces_of

EXACT = 1e-9  # float64 rounding, relative to an output's largest magnitude
FELT = 1e-6  # cutting must change an output by more than this


def halved(name: str, **options: Any) -> tuple[Analysis, list[list[Tensor]], Plan]:
    analysis, batches = opened(name)
    return analysis, batches, make_plan(analysis, width=0.5, subspace=True, calibration=batches, **options)


@pytest.mark.parametrize(("name", "width"), [*((name, 0.3) for name in BLOCKS), ("heads", 0.7), ("conv 3x3", 0.7)])
def test_subspaces_are_proven(name: str, width: float) -> None:
    analysis, batches = opened(name)
    plan = make_plan(analysis, width=width, importance="obs", subspace=True, calibration=batches)
    assert len(plan.subspaces) == BLOCKS[name][2]
    proof = prove(analysis, plan, [[torch.randn_like(batches[0][0])]], calibration=batches)
    assert proof.ok and proof.max_error <= EXACT and proof.effect > FELT
    assert proof.cuts == len(plan.cuts)


def test_a_subspace_is_the_first_coordinates() -> None:
    _, _, plan = halved("heads")
    cuts = {c.kind: c for c in plan.cuts}
    assert cuts["value dims"].subspace and cuts["query-key dims"].subspace and not cuts["heads"].subspace
    assert cuts["query-key dims"].kept == ((0, 1),) * 3
    assert set(plan.subspaces) == {cuts["value dims"].group, cuts["query-key dims"].group}
    assert "(a subspace)" in str(plan)


def test_a_subspace_loses_less_than_positions() -> None:
    analysis, batches, plan = halved("bottleneck", groups=["rank"])
    positions = make_plan(analysis, width=0.5, importance="obs", groups=["rank"], calibration=batches)
    whole = Evaluator(analysis.program)

    def error(made: Plan) -> float:
        slim = Evaluator(apply(analysis, made, calibration=batches))
        return sum(float((slim.run(b)[0] - whole.run(b)[0]).square().sum()) for b in batches)

    assert plan.subspaces and not positions.subspaces
    assert error(plan) < 0.9 * error(positions)


@pytest.mark.parametrize("subspace", [True, False])
def test_plans_survive_json(subspace: bool) -> None:
    analysis, batches = opened("heads")
    plan = make_plan(analysis, width=0.5, importance="obs", subspace=subspace, calibration=batches)
    again = Plan.from_json(plan.to_json())
    assert again == plan and again.to_json() == plan.to_json()
    assert json.loads(plan.to_json())["format"] == FORMAT == 2
    assert bool(again.subspaces) == subspace


def test_plans_of_format_1_still_load() -> None:
    analysis, _ = opened("heads")
    plan = make_plan(analysis, width=0.5)
    old = json.loads(plan.to_json())
    old["format"] = 1
    for cut in old["cuts"]:
        del cut["subspace"]
    assert Plan.from_json(json.dumps(old)) == plan
    old["format"] = FORMAT + 1
    with pytest.raises(InputError, match=f"reads formats up to {FORMAT}"):
        Plan.from_json(json.dumps(old))


def test_without_data_it_is_refused_by_name() -> None:
    analysis, _, plan = halved("heads")
    first = plan.subspaces[0]
    for call in (
        lambda: apply(analysis, plan),
        lambda: apply(analysis, plan, "none"),
        lambda: prove(analysis, plan),
        lambda: in_bases(analysis, plan, None),
    ):
        with pytest.raises(InputError, match="basis comes from calibration data") as caught:
            call()
        assert first in str(caught.value) and "--calibration" in str(caught.value)
    with pytest.raises(PlanError, match="whose bases are not known") as refused:
        Prune(plan)(analysis)
    assert first in str(refused.value)
    with pytest.raises(InputError, match="calibration data is empty"):
        apply(analysis, plan, calibration=[])


def test_a_whole_subspace_needs_no_data() -> None:
    analysis, _, plan = halved("lora")
    (cut,) = plan.cuts
    whole = replace(plan, cuts=(replace(cut, count=cut.size, kept=tuple(range(cut.size))),))
    assert whole.subspaces == ()
    assert prove(analysis, whole).max_error == 0.0


def test_a_group_without_a_basis_is_refused() -> None:
    analysis, batches = opened("bottleneck")
    group = analysis.group("enter.weight[0]")
    plan = Plan(analysis.program.fingerprint(), (Cut.from_mask(group, torch.arange(12) < 5, subspace=True),))
    with pytest.raises(PlanError, match="subspaces of groups that have none"):
        prove(analysis, plan, calibration=batches)


def test_a_plan_of_another_model_is_refused_before_the_walk() -> None:
    _, _, plan = halved("lora")
    other, batches = opened("bottleneck")
    with pytest.raises(PlanError, match="made for another model"):
        in_bases(other, plan, batches)


def test_a_program_in_its_bases_is_not_changed_again() -> None:
    analysis, batches, plan = halved("heads")
    changed = in_bases(analysis, plan, batches)
    assert bases_of(changed.program) == frozenset(plan.subspaces)
    assert in_bases(changed, plan, None) is changed
    assert prove(changed, plan).ok
    whole = make_plan(analysis, width=0.5)
    assert in_bases(analysis, whole, None) is analysis


@pytest.mark.parametrize("restore", ["none", "least-squares"])
@pytest.mark.parametrize("name", ["heads", "bottleneck", "expand"])
def test_the_plan_and_the_data_give_the_same_model_again(name: str, restore: Any) -> None:
    analysis, batches = opened(name)
    plan, made = compress(
        analysis, width=0.5, importance="obs", subspace=True, restore=restore, calibration=batches
    )  # fmt: skip
    again = apply_plan(analysis, Plan.from_json(plan.to_json()), restore, batches)
    assert (made.restoration is None) == (restore == "none")
    assert made.program.weights.keys() == again.program.weights.keys()
    for key, tensor in made.program.weights.items():
        torch.testing.assert_close(again.program.weights[key], tensor, rtol=EXACT, atol=EXACT)
    assert bases_of(made.analysis.program) == frozenset(plan.subspaces)
    assert prove(made.analysis, plan).ok


def test_refitting_a_subspace_does_not_make_it_worse() -> None:
    analysis, batches, plan = halved("heads", importance="obs")
    whole = Evaluator(analysis.program)
    errors = {
        restore: sum(
            float((Evaluator(slim).run(b)[0] - whole.run(b)[0]).square().sum()) for b in batches
        )
        for restore in ("none", "least-squares")
        for slim in [apply(analysis, plan, restore, batches)]
    }  # fmt: skip
    assert errors["least-squares"] <= errors["none"] * (1 + EXACT)


def test_selections_are_probed_where_their_weights_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refitted weights of a selection are in the original basis: probed in the new one, its effect would be one of
    two bases that do not fit together."""
    analysis, batches = opened("bottleneck")
    seen: dict[str, Tensor] = {}

    def watched(groups: Sequence[Group], curves: Mapping[str, Tensor], *rest: Any) -> Any:
        seen.update(curves)
        return allocate(groups, curves, *rest)

    monkeypatch.setattr(planning, "allocate", watched)
    make_plan(analysis, 0.6, importance="obs", subspace=True, budget="global", calibration=batches)
    groups = [g for g in analysis.prunable if g.size > 1]
    found = survey(analysis, groups, subspaces_of(analysis), fitted(batches))
    rank = {"down.weight[0]": found.curves.pop("down.weight[0]")}
    probe(analysis, found.curves, batches[-1])
    probe(change_bases(analysis, found, tuple(rank)), rank, batches[-1])
    assert seen.keys() == {"enter.weight[0]", "down.weight[0]"}
    for name, curve in {**found.curves, **rank}.items():
        torch.testing.assert_close(seen[name], curve.scaled())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"width": 0.5, "subspace": True}, "subspace needs calibration data"),
        ({"width": 0.5, "importance": "obs"}, "'obs' needs calibration data"),
        ({"keep": 0.5, "budget": "global"}, "the budget 'global' needs calibration data"),
        ({"width": 0.5, "budget": "global"}, "a global budget divides a share of the whole"),
        ({"keep": 0.5, "budget": "thrifty"}, "unknown budget 'thrifty'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], part: str) -> None:
    analysis, _ = opened("bottleneck")
    with pytest.raises(InputError, match=part):
        make_plan(analysis, **options)


def test_refused_bases_are_noted_and_cut_by_position() -> None:
    analysis = captured("cached").analysis
    data = [list(analysis.program.example_inputs)]
    plan = make_plan(analysis, width=0.5, importance="fasp", subspace=True, calibration=data, groups=["value dims"])
    assert plan.subspaces == () and plan.cuts
    assert any(
        "a cache of the user lies in its basis: 'past_v' was not declared with capture(caches=); it is cut by position"
        in note
        for note in plan.notes
    )


def test_a_slim_program_has_its_bases_still_to_come() -> None:
    """What was cut in a basis is another program: the next plan finds a basis of its own, and finds it again."""
    analysis, batches, plan = halved("heads")
    slim = analyze(apply(analysis, plan, calibration=batches))
    assert slim.group("v.weight[0].value-dims").size == 3
    assert bases_of(slim.program) == frozenset()
    second, made = compress(slim, width=0.7, importance="obs", subspace=True, restore="none", calibration=batches)
    again = apply_plan(slim, second, "none", batches)
    for key, tensor in made.program.weights.items():
        torch.testing.assert_close(again.program.weights[key], tensor, rtol=EXACT, atol=EXACT)
    with pytest.raises(InputError, match="basis comes from calibration data"):
        prove(slim, second)
    assert prove(slim, second, calibration=batches).ok


def test_a_mean_that_nothing_holds_is_not_cut_away() -> None:
    """The reader is used twice, so that no refit takes the mean of what is left out over."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 9)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            return torch.relu(self.b(hidden)) + torch.tanh(self.b(hidden))

    torch.manual_seed(0)
    model = Twice()
    with torch.no_grad():
        model.a.bias.mul_(100)
    batches = [(torch.randn(64, 8),) for _ in range(3)]
    analysis = analyze(capture(model, batches[0]))
    plan, applied = compress(analysis, width=0.67, importance="obs", subspace=True, calibration=batches)
    assert plan.subspaces
    whole, slim = (Evaluator(p).run(batches[2])[0] for p in (analysis.program, applied.program))
    assert float((whole - slim).norm() / (whole - whole.mean(0)).norm()) < 0.5


def test_a_plan_of_subspaces_refuses_other_data() -> None:
    analysis, batches, plan = halved("heads", importance="obs")
    other = [tuple(2 * value for value in batch) for batch in batches]
    for use in (apply, lambda a, p, calibration: prove(a, p, calibration=calibration)):
        with pytest.raises(InputError, match="not what the plan was made with"):
            use(analysis, plan, calibration=other)


def test_a_method_without_restoration_stays_one_through_its_plan() -> None:
    analysis, batches = opened("heads")
    plan, applied = compress(analysis, width=0.5, importance="fasp", restore="none", calibration=batches)
    again = apply_plan(analysis, Plan.from_json(plan.to_json()), calibration=batches)
    assert again.restoration is None and applied.restoration is None
    for name, tensor in applied.program.weights.items():
        assert torch.equal(again.program.weights[name], tensor)


@pytest.mark.parametrize("value", ["false", 1, None])
def test_subspace_is_true_or_false(value: object) -> None:
    _, _, plan = halved("heads", importance="obs")
    data = json.loads(plan.to_json())
    data["cuts"][0]["subspace"] = value
    with pytest.raises(InputError, match="true or false"):
        Plan.from_json(json.dumps(data))


def test_what_no_output_shows_gives_a_global_budget_nothing() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))).argmax(-1)

    batches = [(torch.randn(64, 8),) for _ in range(2)]
    analysis = analyze(capture(Choice(), batches[0]))
    with pytest.raises(PlanError, match="nothing to go by"):
        make_plan(analysis, 0.6, importance="obs", budget="global", calibration=batches)


@pytest.mark.parametrize(
    ("keep", "options"),
    [
        pytest.param(None, {"width": 0.5, "importance": "obs"}, id="second-order"),
        pytest.param(0.5, {"importance": "magnitude", "budget": "global"}, id="global"),
    ],
)
def test_an_axis_that_is_multiplied_with_itself_stays_whole(keep: float | None, options: PlanOptions) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 4), nn.Linear(16, 60), nn.Linear(60, 6)

        def forward(self, x: Tensor) -> Tensor:
            u = torch.relu(self.a(x))
            return self.c(torch.relu(self.b((u[..., None] * u[..., None, :]).flatten(-2))))

    batches = [(torch.randn(64, 8),) for _ in range(2)]
    analysis = analyze(capture(Outer(), batches[0]))
    plan = make_plan(analysis, keep, calibration=batches, **options)
    squared = next(g.name for g in analysis.prunable if g.size == 4)
    assert [c.size for c in plan.cuts] == [60]
    assert any(note.startswith(squared) and "multiplied with itself" in note for note in plan.notes)


def test_moments_that_overflow_are_refused() -> None:
    analysis, batches = opened("bottleneck")
    large = [tuple(1e200 * value for value in batch) for batch in batches]
    for options in ({"subspace": True}, {"importance": "obs"}):
        with pytest.raises(InputError, match="overflow"):
            make_plan(analysis, width=0.5, calibration=large, **options)
