"""Low ranks beside other cuts: what they cost, and what a global budget makes of them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import apply_plan, compress, make_plan, prove
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.costs import CostModel, LowRank
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.allocation import allocate
from fxslim.passes.factorise import Factorise
from fxslim.passes.low_rank import WORTH, Matrix, find_matrices, pair_basis, truncated
from fxslim.passes.options import PlanOptions
from fxslim.passes.plan import Plan
from fxslim.passes.prepare import prepare
from fxslim.passes.sized import Sized, with_pairs
from fxslim.passes.statistics import SecondMoment
from fxslim.passes.survey import Survey

EXACT = 1e-9
RANK = 3  # of the weight that has one
OPTIONS: PlanOptions = {"importance": "obs", "subspace": True, "budget": "global", "ranks": True}

Batches = list[list[Tensor]]


class Mixed(nn.Module):
    """Neurons that all matter alike, behind a map of a low rank."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.up, self.down = nn.Linear(24, 20), nn.Linear(20, 30), nn.Linear(30, 6)
        with torch.no_grad():
            self.low.weight.copy_(torch.randn(20, RANK) @ torch.randn(RANK, 24))

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.down(torch.tanh(self.up(torch.tanh(self.low(x))))))


class Layouts(nn.Module):
    """Weights in the layouts that calls read: [n, k], [k, n], a window, and one that two calls read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat = nn.Conv1d(6, 8, 3, padding=1), nn.Parameter(torch.randn(8, 10))
        self.tied, self.head = nn.Linear(10, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x)).transpose(1, 2) @ self.flat
        return torch.as_tensor(self.head(torch.tanh(self.tied(torch.tanh(self.tied(y))))))


@cache
def mixed() -> tuple[Analysis, Batches]:
    torch.manual_seed(0)
    model = Mixed().double().eval()
    batches = [[torch.randn(40, 24, dtype=torch.float64)] for _ in range(4)]
    return analyze(capture(model, tuple(batches[0]), dynamic_shapes=({0: "rows"},))), batches


@cache
def layouts() -> Analysis:
    torch.manual_seed(1)
    return analyze(capture(Layouts().double().eval(), (torch.randn(2, 6, 9, dtype=torch.float64),)))


def moment_of(analysis: Analysis, matrix: Matrix, x: Tensor) -> SecondMoment:
    evaluator = Evaluator(analysis.program)
    environment = evaluator.bind([x])
    nodes = list(analysis.program.graph.nodes)
    evaluator.advance(environment, nodes[: nodes.index(matrix.consumer.node)])
    return SecondMoment.of(matrix.consumer.columns(evaluator.value(matrix.consumer.source, environment)))


def test_a_weight_is_a_matrix_where_one_call_reads_it_as_such() -> None:
    found = {m.weight: (m.outputs, m.shape) for m in find_matrices(layouts())}
    assert found == {"conv.weight": (0, (8, 18)), "flat": (1, (10, 8)), "head.weight": (0, (4, 10))}
    assert [m.weight for m in find_matrices(layouts(), {"flat", "head.weight"})] == ["conv.weight"]


@pytest.mark.parametrize("name", ["conv.weight", "flat", "head.weight"])
def test_losses_are_the_squared_errors_of_truncated_outputs(name: str) -> None:
    analysis, x = layouts(), torch.randn(5, 6, 9, dtype=torch.float64)
    matrix = next(m for m in find_matrices(analysis) if m.weight == name)
    weight = matrix.consumer.parameters(analysis.program)[0][0]
    moment = moment_of(analysis, matrix, x)
    basis = pair_basis(weight, moment)
    h = moment.matrix[0, :-1, :-1]
    singular = torch.linalg.eigvalsh(weight @ h @ weight.mT).flip(0)  # squared, of the outputs
    for rank in range(1, matrix.size):
        difference = weight - truncated(weight, basis, rank)
        error = float(torch.trace(difference @ h @ difference.mT))
        assert error == pytest.approx(float(basis.losses()[rank]), rel=1e-7, abs=1e-9 * float(singular[0]))
        assert error == pytest.approx(float(singular[rank:].sum()), rel=1e-7, abs=1e-9 * float(singular[0]))


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("name", ["conv.weight", "flat", "head.weight"])
def test_what_a_rank_costs_is_what_the_factorised_program_costs(name: str, of: str) -> None:
    analysis = layouts()
    matrix = next(m for m in find_matrices(analysis) if m.weight == name)
    opened = prepare(analysis, [Factorise((name,)).spec()])
    (group,) = [
        g for g in opened.prunable if any(s.weight.startswith(f"{name}_in") for s in g.sites) and g.kind == "rank"
    ]
    for rank in (1, 2, 3):
        wanted = CostModel(opened.axes).of(of, {group.axis: rank})  # type: ignore[arg-type]
        got = CostModel(analysis.axes).of(of, {}, {name: LowRank(matrix.outputs, rank)})  # type: ignore[arg-type]
        assert got == wanted


def test_a_pair_of_cut_sides_costs_what_they_have_left() -> None:
    analysis, _ = mixed()
    group = analysis.group("up.weight[0]")
    costs, ranks = CostModel(analysis.axes), {"up.weight": LowRank(0, 4)}
    whole, cut = costs.params({}, ranks), costs.params({group.axis: 10}, ranks)
    assert costs.params() - whole == 20 * 30 - 4 * (20 + 30)
    assert whole - cut == 20 * (4 + 1 + 6)  # a row of one factor, a bias, a column of `down`


def test_the_budget_takes_a_rank_that_costs_nothing() -> None:
    analysis, batches = mixed()
    plan, made = compress(analysis, 0.75, calibration=batches, **OPTIONS)
    (spec,) = [text for text in plan.prepare if text.startswith("factorise")]
    assert "low.weight" in spec
    cut = next(c for c in plan.cuts if c.kind == "rank" and "low" in c.group)
    assert cut.subspace and cut.count >= RANK
    whole = [Evaluator(analysis.program).run(b)[0] for b in batches]
    slim = [Evaluator(made.program).run(b)[0] for b in batches]
    assert cut.count == RANK or torch.allclose(torch.cat(whole), torch.cat(slim), atol=1e-6)
    before, after = plan.predicted["params"]
    assert after == made.program.parameters() <= 0.75 * before
    proof = prove(analysis, plan, calibration=batches)
    assert proof.ok and proof.max_error <= EXACT


def test_the_plan_alone_makes_the_same_pairs() -> None:
    analysis, batches = mixed()
    plan, made = compress(analysis, 0.5, calibration=batches, **OPTIONS)
    assert any(text.startswith("factorise") for text in plan.prepare)
    again = apply_plan(analysis, Plan.from_json(plan.to_json()), "least-squares", batches)
    assert again.program.weights.keys() == made.program.weights.keys()
    for name, tensor in made.program.weights.items():
        torch.testing.assert_close(again.program.weights[name], tensor, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{"keep_fixed": ["low.weight"]}, {"uncounted": ["low.*"]}])
def test_weights_that_stay_whole_or_do_not_count_become_no_pairs(options: PlanOptions) -> None:
    analysis, batches = mixed()
    plan = make_plan(analysis, 0.7, calibration=batches, **{**OPTIONS, **options})
    assert not any("low.weight" in text for text in plan.prepare)


def test_groups_by_name_leave_ranks_alone() -> None:
    analysis, batches = mixed()
    plan = make_plan(analysis, 0.8, calibration=batches, **{**OPTIONS, "groups": ["neurons"]})
    assert not any(text.startswith("factorise") for text in plan.prepare)


def test_ranks_need_a_global_budget() -> None:
    analysis, batches = mixed()
    with pytest.raises(InputError, match="global budget"):
        make_plan(analysis, 0.8, calibration=batches, **{**OPTIONS, "budget": "uniform"})


def flat(matrix: Matrix) -> Tensor:
    """Losses that make a rank cheap."""
    return torch.linspace(1e-3, 0, matrix.size + 1, dtype=torch.float64)


def test_no_rank_is_offered_at_which_a_pair_saves_too_little() -> None:
    """At the largest that is, it costs at most the share of its weight at which two products are the faster ones."""
    analysis, _ = mixed()
    matrices = find_matrices(analysis)
    costs = CostModel(analysis.axes)
    for matrix in matrices:
        n, k = matrix.shape
        assert matrix.largest * (n + k) <= WORTH * n * k < (matrix.largest + 1) * (n + k)
    found = allocate([], {m.weight: flat(m) for m in matrices}, 0.97, "params", costs, matrices=matrices)
    assert costs.params({}, found.ranks) <= 0.97 * costs.params()
    for name, pair in found.ranks.items():
        assert pair.rank <= next(m.largest for m in matrices if m.weight == name)


@pytest.mark.parametrize(("keep", "paired"), [(0.8, True), (None, False)])
def test_a_pair_is_a_weight_again_where_others_made_it_small(keep: float | None, paired: bool) -> None:
    """`up` becomes a pair first, at a price below that of its neurons; with one neuron left it costs less whole."""
    analysis, _ = mixed()
    group = analysis.group("up.weight[0]")
    matrix = next(m for m in find_matrices(analysis) if m.weight == "up.weight")
    costs = CostModel(analysis.axes)
    losses = torch.linspace(1.0, 0.0, group.size + 1, dtype=torch.float64)
    curves = {group.name: losses, matrix.weight: torch.zeros(matrix.size + 1, dtype=torch.float64)}
    smallest = costs.params({group.axis: 1}) / costs.params()
    keep = keep or smallest + 1e-9
    found = allocate([group], curves, keep, "params", costs, matrices=[matrix])
    assert costs.params(found.counts, found.ranks) <= keep * costs.params()
    assert bool(found.ranks) == paired and (found.counts[group.axis] == 1) != paired


class Wide(nn.Module):
    """Attention whose output projection has more rows than columns, and nearly a low rank: a pair of it stands beside
    the values' own basis, and a norm's mean is moved into it where the stream is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(7, 32), nn.LayerNorm(32), nn.Linear(32, 6)
        self.q, self.k, self.v, self.o = nn.Linear(32, 12), nn.Linear(32, 12), nn.Linear(32, 12), nn.Linear(12, 32)
        with torch.no_grad():
            low = torch.randn(32, 5) @ torch.randn(5, 12)
            self.o.weight.copy_(0.3 * low * torch.tensor([2.0, 1.0, 0.5, 0.02]).repeat(3) + torch.randn(1, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        z = self.norm(y)
        q, k, v = (f(z).view(*x.shape[:2], 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        out = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], 12)
        return torch.as_tensor(self.head(self.norm(y + self.o(out))))


@pytest.mark.parametrize("options", [{}, {"streams": True}, {"streams": True, "ranks": False}], ids=str)
@pytest.mark.parametrize("keep", [0.8, 0.6])
def test_a_plan_beside_data_makes_the_program_that_was_made(keep: float, options: PlanOptions) -> None:
    """Bases are estimated again when a plan is applied: from another form of the program, and to the same effect."""
    torch.manual_seed(3)
    batches = [[torch.randn(8, 5, 7, dtype=torch.float64)] for _ in range(4)]
    analysis = analyze(capture(Wide().double().eval(), tuple(batches[0])))
    plan, made = compress(
        analysis, keep, calibration=batches, **{**OPTIONS, **options, "keep_fixed": ["enter.weight[0]"]}
    )
    assert plan.subspaces
    again = apply_plan(analysis, Plan.from_json(plan.to_json()), None, batches)
    for batch in batches:
        wanted, got = Evaluator(made.program).run(batch)[0], Evaluator(again.program).run(batch)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_survey_serves_other_shares_and_no_other_question() -> None:
    analysis, batches = mixed()
    surveys: dict[str, Survey] = {}
    first = make_plan(analysis, 0.8, calibration=batches, surveys=surveys, **OPTIONS)
    (key,) = surveys
    again = make_plan(analysis, 0.6, calibration=batches, surveys=surveys, **OPTIONS)
    assert list(surveys) == [key], "one survey is enough"
    assert first == make_plan(analysis, 0.8, calibration=batches, **OPTIONS)
    assert again == make_plan(analysis, 0.6, calibration=batches, **OPTIONS)
    others: list[tuple[Batches, PlanOptions]] = [
        (batches[:3], {}), (batches, {"importance": "fasp"}), (batches, {"ranks": False}),
    ]  # fmt: skip
    for number, (data, options) in enumerate(others, 2):
        make_plan(analysis, 0.8, calibration=data, surveys=surveys, **{**OPTIONS, **options})
        assert len(surveys) == number


def test_weights_that_are_not_trained_become_no_pairs() -> None:
    class Filters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("filters", torch.randn(20, 24, dtype=torch.float64))
            self.head = nn.Linear(20, 16).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.head(torch.tanh(x @ torch.as_tensor(self.filters).T)))

    _, batches = mixed()
    analysis = analyze(capture(Filters().eval(), tuple(batches[0])))
    assert {m.weight for m in find_matrices(analysis)} == {"head.weight"}
    for of in ("params", "macs"):
        plan = make_plan(analysis, 0.8, of=of, calibration=batches, **OPTIONS)  # type: ignore[arg-type]
        assert plan.cuts


def test_a_share_that_ranks_cannot_reach_is_refused() -> None:
    analysis, _ = mixed()
    matrices = find_matrices(analysis)
    with pytest.raises(PlanError, match="cannot be met"):
        allocate([], {m.weight: flat(m) for m in matrices}, 0.01, "params", CostModel(analysis.axes), matrices=matrices)


def test_groups_are_found_again_where_weights_are_pairs() -> None:
    """Heads, the dimensions inside them, and what reads them keep their meaning, whatever their weights are called."""
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=True).double().eval()
    analysis = analyze(capture(layer, (torch.randn(2, 5, 16, dtype=torch.float64),)))
    matrices = find_matrices(analysis)
    chosen = [g for g in analysis.prunable if g.size > 1]
    sized = Sized(analysis, {g.name: g.size - 1 for g in chosen}, (), {})
    found = with_pairs(sized, {m.weight: 2 for m in matrices})
    assert len(found.number) == len(chosen) + len(matrices)
    kept = [found.analysis.group(name) for name in found.number if found.number[name] != 2]
    assert sorted((g.kind, g.size) for g in kept) == sorted((g.kind, g.size) for g in chosen)
    assert {found.number[s.group.name] for s in found.subspaces} == {2}


def test_nothing_becomes_a_pair_without_ranks() -> None:
    analysis, _ = mixed()
    sized = Sized(analysis, {}, (), {})
    assert with_pairs(sized, {}) is sized
