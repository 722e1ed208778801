"""Residual branches left out whole: found, ranked by influence, and the rest is the original with zeros for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import apply_plan, compress, make_plan, prove
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError, PlanError, VerifyError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.drop_branches import DropBranches, find_branches, influences
from fxslim.passes.plan import Plan

D = 8


class Deep(nn.Module):
    """Four branches beside a stream; the second does almost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, D), nn.Linear(D, 3)
        self.branches = nn.ModuleList([nn.Sequential(nn.Linear(D, 16), nn.Tanh(), nn.Linear(16, D)) for _ in range(4)])
        with torch.no_grad():
            self.branches[1][2].weight.mul_(1e-3)
            self.branches[1][2].bias.mul_(1e-3)

    def forward(self, x: Tensor, left_out: tuple[int, ...] = ()) -> Tensor:
        x = self.enter(x)
        for number, branch in enumerate(self.branches):
            if number not in left_out:
                x = x + branch(x)
        return self.head(x)


def deep() -> tuple[Deep, Analysis, list[tuple[Tensor]]]:
    torch.manual_seed(0)
    model = Deep().eval()
    batches = [(torch.randn(20, 5),) for _ in range(3)]
    return model, analyze(capture(model, batches[0])), batches


def test_branches_are_additions_of_what_was_computed_from_the_other_term() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            both = self.a(x) + self.b(x)  # neither comes from the other
            return both + torch.tanh(both) + y  # without weights; and another input

    assert find_branches(capture(Others(), (torch.randn(2, D), torch.randn(2, D)))) == []
    _, analysis, _ = deep()
    assert len(find_branches(analysis.program)) == 4


def test_influence_is_how_far_the_stream_is_turned() -> None:
    model, analysis, batches = deep()
    branches = find_branches(analysis.program)
    found = list(influences(analysis.program, branches, batches).values())
    with torch.no_grad():
        x = model.enter(torch.cat([b[0] for b in batches]))
        expected = []
        for branch in model.branches:
            y = x + branch(x)
            expected.append(float(1 - torch.cosine_similarity(x.double(), y.double()).mean()))
            x = y
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-9) and min(found) == found[1] < 1e-4


@pytest.mark.parametrize("left_out", [(1,), (0, 3), (0, 1, 2, 3)])
def test_the_rest_is_the_model_without_the_branches(left_out: tuple[int, ...]) -> None:
    model, analysis, batches = deep()
    adds = tuple(find_branches(analysis.program)[i].add.name for i in left_out)
    program = DropBranches(adds)(analysis).program
    assert not any(f"branches.{i}." in name for name in program.info for i in left_out)
    for batch in batches[:1]:
        torch.testing.assert_close(Evaluator(program).run(batch)[0], model(*batch, left_out=left_out).detach())


def test_a_plan_leaves_out_what_matters_least_and_is_repeated_from_its_text() -> None:
    _, analysis, batches = deep()
    plan, applied = compress(analysis, 0.8, depth=True, calibration=batches)
    assert plan.cuts == () and plan.prepare[0].startswith("drop-branches{adds=") and len(plan.notes) >= 1
    assert not any("branches.1." in name for name in applied.program.info), "the least influence goes first"
    before, after = plan.predicted["params"]
    assert after == applied.program.parameters() <= 0.8 * before == 0.8 * analysis.program.parameters()
    again = apply_plan(analysis, Plan.from_json(plan.to_json()), "none")
    assert again.program.fingerprint() == applied.program.fingerprint()
    assert prove(analysis, plan).ok


def test_what_cannot_be_is_refused() -> None:
    _, analysis, batches = deep()
    with pytest.raises(InputError, match="no addition of a residual branch"):
        DropBranches(("linear",))(analysis)
    with pytest.raises(PlanError, match="cannot be met by leaving branches out"):
        make_plan(analysis, 0.01, depth=True, calibration=batches)
    with pytest.raises(InputError, match="needs calibration data"):
        make_plan(analysis, 0.5, depth=True)
    with pytest.raises(InputError, match="width: no effect"):
        make_plan(analysis, width=0.5, depth=True, calibration=batches)
    with pytest.raises(InputError, match="share of the whole"):
        make_plan(analysis, depth=True, calibration=batches)


def test_a_result_that_is_not_the_original_with_zeros_is_noticed() -> None:
    _, analysis, _ = deep()
    step = DropBranches((find_branches(analysis.program)[0].add.name,))
    result = step.apply(analysis)
    result.program.weights["head.weight"] = result.program.weights["head.weight"] * 1.01
    with pytest.raises(VerifyError, match="zeros for the branches"):
        step.ensures(result.program, analysis.program)


def test_sizes_and_types_that_are_added_are_no_branches() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(D, D)

        def forward(self, x: Tensor, past: Tensor) -> Tensor:
            place = torch.arange(x.shape[1]) + past.shape[1]
            return x + self.a(x) * place[None, :, None]

    program = capture(
        Cached(), (torch.randn(2, 3, D), torch.randn(2, 4, D)), dynamic_shapes=({1: "new"}, {1: "past_length"})
    )
    assert len(find_branches(program)) == 1


def test_branches_that_share_their_weights_are_all_found() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(D, 16), nn.Linear(16, D)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = x + self.b(torch.tanh(self.a(x)))
            return x

    assert len(find_branches(capture(Again(), (torch.randn(2, D),)))) == 3


def test_images_are_turned_over_their_channels() -> None:
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(6, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.a(x)

    model, x = Image().eval(), torch.randn(2, 6, 5, 1)
    program = capture(model, (x,))
    ((_, found),) = influences(program, find_branches(program), [(x,)]).items()
    expected = 1 - torch.cosine_similarity(x.double(), model(x).detach().double(), dim=1).mean()
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    "options", [{"groups": ["neurons"]}, {"keep_fixed": ["head*"]}, {"round_to": 8}, {"importance": "obs"}]
)
def test_options_without_an_effect_are_refused(options: dict[str, object]) -> None:
    _, analysis, batches = deep()
    with pytest.raises(InputError, match="no effect where residual branches are left out"):
        make_plan(analysis, 0.8, depth=True, calibration=batches, **options)  # type: ignore[arg-type]


class Attending(nn.Module):
    """Attention and a feed-forward map beside a stream, twice; the second attention does almost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.ModuleList(nn.Linear(D, D) for _ in range(5)) for _ in range(2))
        with torch.no_grad():
            for parameter in self.maps[1][3].parameters():
                parameter.mul_(1e-4)

    def forward(self, x: Tensor, left_out: bool = False) -> Tensor:
        for number, (q, k, v, o, f) in enumerate(self.maps):
            if not (left_out and number):
                x = x + o(nn.functional.scaled_dot_product_attention(q(x), k(x), v(x)))
            x = x + torch.tanh(f(x))
        return x


def test_attention_that_is_left_out_goes_whole() -> None:
    """Queries, keys and values too, of which torch says that they are read by something with an effect."""
    torch.manual_seed(0)
    model, batches = Attending().eval(), [(torch.randn(3, 6, D),) for _ in range(3)]
    analysis = analyze(capture(model, batches[0]))
    whole = analysis.program.parameters()
    plan, applied = compress(analysis, 0.65, depth=True, calibration=batches, restore="none")
    slim = applied.program
    assert [name for name in slim.info if name.startswith("maps.1.")] == ["maps.1.4.weight", "maps.1.4.bias"]
    assert slim.parameters() == whole - 4 * (D * D + D)
    assert sum(n.target is torch.ops.aten.scaled_dot_product_attention.default for n in slim.graph.nodes) == 1
    torch.testing.assert_close(Evaluator(slim).run(batches[0])[0], model(batches[0][0], left_out=True))
    assert prove(applied.analysis, plan).ok


def test_a_plan_that_leaves_nothing_but_the_stream_says_so() -> None:
    _, analysis, batches = deep()
    plan, _ = compress(analysis, 0.15, depth=True, calibration=batches, restore="none")
    assert any("no residual branch is left" in note for note in plan.notes)
    plan, _ = compress(analysis, 0.8, depth=True, calibration=batches, restore="none")
    assert not any("no residual branch is left" in note for note in plan.notes)
