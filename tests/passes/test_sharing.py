"""Plans of sharing: the pairs that cost least, by which branch's weights, until the budget is met."""

from __future__ import annotations

import itertools

import pytest
import torch

from fxslim.api import apply_plan, compress, make_plan, prove
from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.divergence import divergence
from fxslim.passes.drop_branches import find_branches
from fxslim.passes.plan import Plan
from fxslim.passes.share_branches import ShareBranches
from tests.passes.conftest import Analyse, Pair
from tests.passes.residual import HIDDEN, D, Layered, batches, layered

MATRICES = 2 * D * HIDDEN
ROUNDING = 1e-20  # of a squared error, relative


def keep_for(branches: int, layers: int = 4) -> float:
    """The share that so many branches without matrices of their own leave."""
    whole = sum(p.numel() for p in Layered(layers).parameters())
    return 1 - branches * MATRICES / whole + 1e-9  # rounding must not ask for one more


def test_identical_branches_share_without_loss() -> None:
    analysis, data = layered(identical=(1, 2)), batches(2)
    plan, applied = compress(analysis, keep_for(1), share=True, calibration=data)
    adds = [b.add.name for b in find_branches(analysis.program)]
    assert plan.prepare in (
        (f"share-branches{{adds={adds[1]}+{adds[2]}}}",),
        (f"share-branches{{adds={adds[2]}+{adds[1]}}}",),
    )
    (x,) = batches(1, seed=9)[0]
    old, new = (Evaluator(p).run([x]) for p in (analysis.program, applied.program))
    assert divergence(("y",), old, new) < ROUNDING
    assert applied.program.parameters() == analysis.program.parameters() - MATRICES


def test_the_cheapest_of_all_pairs_and_directions_is_taken() -> None:
    analysis, data = layered(), batches(2)
    adds = [b.add.name for b in find_branches(analysis.program)]
    whole = Evaluator(analysis.program).run(data[-1])
    costs = {}
    for pair in itertools.pairwise(range(4)):
        for first, second in (pair, pair[::-1]):
            program = ShareBranches((adds[first], adds[second]))(analysis).program
            costs[f"share-branches{{adds={adds[first]}+{adds[second]}}}"] = divergence(
                ("y",), whole, Evaluator(program).run(data[-1])
            )
    plan = make_plan(analysis, keep_for(1), share=True, calibration=data)
    assert plan.prepare == (min(costs, key=lambda text: costs[text]),)
    assert len(set(costs.values())) == len(costs) == 6


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_the_budget_is_met_proven_and_repeated_from_its_text(branches: int) -> None:
    analysis, data = layered(), batches(2)
    plan, applied = compress(analysis, keep_for(branches), share=True, restore="none", calibration=data)
    before, after = plan.predicted["params"]
    assert after == applied.program.parameters() == before - branches * MATRICES
    assert plan.predicted["macs"][0] == plan.predicted["macs"][1], "every branch is computed"
    assert any("the file smaller and not the model faster" in note for note in plan.notes)
    assert prove(analysis, plan).ok
    again = apply_plan(analysis, Plan.from_json(plan.to_json()), "none")
    assert again.program.fingerprint() == applied.program.fingerprint()


def test_a_branch_is_the_smallest_step_and_a_note_says_so() -> None:
    plan = make_plan(layered(), keep_for(1) + 0.02, share=True, calibration=batches(1))
    assert plan.predicted["params"][1] == plan.predicted["params"][0] - MATRICES
    assert any("a whole branch is the smallest step" in note for note in plan.notes)


def test_nothing_to_do_is_done() -> None:
    analysis = layered()
    plan = make_plan(analysis, 1.0, share=True, calibration=batches(1))
    assert plan.prepare == () and plan.notes == () and plan.fingerprint == analysis.program.fingerprint()


def test_weights_that_are_not_counted_are_not_shared_for_it() -> None:
    analysis = layered()
    uncounted = ["branches.0.*", "branches.1.*", "enter.*", "head.*"]
    plan = make_plan(analysis, 0.8, share=True, calibration=batches(1), uncounted=uncounted)
    adds = [b.add.name for b in find_branches(analysis.program)]
    assert plan.prepare and adds[0] not in plan.prepare[0], "branch 0 would bring nothing"


def test_what_cannot_be_is_refused(analyse: Analyse) -> None:
    analysis, data = layered(), batches(1)
    with pytest.raises(PlanError, match=r"cannot be met by sharing: .* remain when all branches share"):
        make_plan(analysis, 0.1, share=True, calibration=data)
    with pytest.raises(InputError, match="no multiply-accumulates"):
        make_plan(analysis, 0.8, share=True, of="macs", calibration=data)
    with pytest.raises(InputError, match="needs calibration data"):
        make_plan(analysis, 0.8, share=True)
    with pytest.raises(InputError, match="share of the whole"):
        make_plan(analysis, share=True, calibration=data)
    with pytest.raises(InputError, match="no neighbouring residual branches"):
        make_plan(analyse(Pair(), torch.randn(2, 4)), 0.8, share=True, calibration=[(torch.randn(2, 4),)])


@pytest.mark.parametrize(
    "options",
    [{"groups": ["neurons"]}, {"round_to": 8}, {"importance": "obs"}, {"depth": True}, {"keep_fixed": ["head*"]}],
)
def test_options_without_an_effect_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="no effect where residual branches share weights"):
        make_plan(layered(), 0.8, share=True, calibration=batches(1), **options)  # type: ignore[arg-type]


def test_convolutions_share_too() -> None:
    class Images(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.a(x).relu()
            return x + self.b(x).relu()

    torch.manual_seed(0)
    x = torch.randn(8, 4, 6, 6)
    analysis = analyze(capture(Images().eval(), (x,)))
    plan, applied = compress(analysis, 0.6, share=True, calibration=[(x,), (torch.randn_like(x),)])
    assert applied.program.parameters() == 4 * 4 * 9 + 8 and prove(analysis, plan).ok
    assert applied.restoration is not None and len(applied.restoration.rows) == 1
