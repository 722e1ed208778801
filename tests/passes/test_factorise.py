"""A weight becomes a pair of weights, the numerics stay, and the axis between the two can be cut."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.export import check_onnx, export_onnx
from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.axes.notation import Symmetry
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError, VerifyError, model_line
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.graph.serialize import load, save
from fxslim.passes.consumers import find_consumers
from fxslim.passes.factorise import Factorise
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.planner import make_plan
from fxslim.passes.prepare import preparations_of, prepare
from fxslim.passes.prove import prove
from fxslim.passes.prune import Prune
from tests.passes.conftest import Analyse, Pair
from tests.plans import plan_of, random_cut

EXACT, CLOSE = 1e-12, 1e-9
STEP = ("factorise{weights=weight}",)
ROWS = ({0: "rows"},)


class Product(nn.Module):
    """A parameter, stored [k, n], as the right operand of a matrix product."""

    def __init__(self, product: Callable[..., Tensor], k: int, n: int, bias: bool = False) -> None:
        super().__init__()
        self.product, self.weight = product, nn.Parameter(torch.randn(k, n))
        self.bias = nn.Parameter(torch.randn(n)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight) if self.bias is None else self.product(self.bias, x, self.weight)


# Layer, shape of an input, dynamic dimensions, r.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[int, str], int]] = {
    "linear n<k": (lambda: nn.Linear(7, 4), (5, 7), {0: "rows"}, 4),
    "linear n>k": (lambda: nn.Linear(4, 7), (5, 4), {0: "rows"}, 4),
    "linear n=k": (lambda: nn.Linear(4, 4), (5, 4), {0: "rows"}, 4),
    "linear, no bias": (lambda: nn.Linear(7, 4, bias=False), (2, 5, 7), {0: "b", 1: "s"}, 4),
    "linear of a vector": (lambda: nn.Linear(4, 7), (4,), {}, 4),
    "addmm n<k": (lambda: Product(torch.addmm, 7, 4, bias=True), (5, 7), {0: "rows"}, 4),
    "addmm n>k": (lambda: Product(torch.addmm, 4, 7, bias=True), (5, 4), {0: "rows"}, 4),
    "mm n<k": (lambda: Product(torch.mm, 7, 4), (5, 7), {0: "rows"}, 4),
    "mm n>k": (lambda: Product(torch.mm, 4, 7), (5, 4), {0: "rows"}, 4),
    "matmul n<k": (lambda: Product(torch.matmul, 7, 4), (2, 3, 7), {0: "b", 1: "s"}, 4),
    "matmul n>k": (lambda: Product(torch.matmul, 4, 7), (2, 3, 4), {0: "b"}, 4),
    "matmul of a vector": (lambda: Product(torch.matmul, 7, 4), (7,), {}, 4),
    "1x1 n<c": (lambda: nn.Conv2d(6, 4, 1), (2, 6, 5, 5), {0: "b", 2: "h"}, 4),
    "1x1 n>c": (lambda: nn.Conv2d(4, 6, 1, bias=False), (2, 4, 5, 5), {0: "b", 2: "h"}, 4),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1), (2, 3, 9), {0: "b", 2: "s"}, 5),
    "conv1d n>k": (lambda: nn.Conv1d(2, 9, 3, dilation=2, bias=False), (2, 2, 9), {0: "b", 2: "s"}, 6),
    "conv2d n<k": (lambda: nn.Conv2d(3, 5, 3, 2, 1), (2, 3, 9, 8), {0: "b", 2: "h", 3: "w"}, 5),
    "conv2d n>k": (lambda: nn.Conv2d(1, 12, 3, 2, 1), (2, 1, 9, 8), {0: "b", 2: "h", 3: "w"}, 9),
    "conv2d, wide kernel": (lambda: nn.Conv2d(2, 14, (2, 3), (1, 2), (0, 2), (2, 1)), (2, 2, 9, 8), {0: "b"}, 12),
    "conv2d, dilation": (lambda: nn.Conv2d(3, 5, 3, dilation=2, bias=False), (2, 3, 9, 8), {0: "b"}, 5),
    "conv2d, same": (lambda: nn.Conv2d(1, 12, 3, padding="same", dilation=2), (2, 1, 9, 8), {0: "b", 2: "h"}, 9),
    "conv2d, valid": (lambda: nn.Conv2d(3, 5, 3, stride=2, padding="valid"), (2, 3, 9, 8), {0: "b"}, 5),
    "conv2d, no batch": (lambda: nn.Conv2d(3, 5, 3, padding=1), (3, 9, 8), {1: "h"}, 5),
    "conv3d": (lambda: nn.Conv3d(2, 5, (1, 2, 3), (1, 1, 2)), (2, 2, 3, 4, 7), {0: "b"}, 5),
    "conv3d n>k": (lambda: nn.Conv3d(1, 9, 2, bias=False), (2, 1, 3, 4, 7), {0: "b"}, 8),
}


@functools.cache
def case(name: str) -> tuple[nn.Module, Tensor, Analysis, Analysis]:
    """Layer, input, and the analyses before and after, in float64."""
    torch.manual_seed(1)
    build, shape, dynamic, _ = CASES[name]
    model, x = build().double().eval(), torch.randn(shape, dtype=torch.float64)
    before = analyze(capture(model, (x,), dynamic_shapes=(dynamic,)))
    return model, x, before, prepare(before, STEP)


def reweighted(analysis: Analysis, change: Callable[[Tensor], Tensor]) -> Analysis:
    """The same program with other weights."""
    program = analysis.program.clone()
    for name, tensor in list(program.weights.items()):
        program.weights[name] = change(tensor)
    return analyze(program)


def randomised(analysis: Analysis) -> Analysis:
    """The same program with random weights: of an identity, masking one position may change little."""
    return reweighted(analysis, torch.randn_like)


def rank_of(analysis: Analysis) -> Group:
    (group,) = [g for g in analysis.groups if g.kind == "rank"]
    return group


@pytest.mark.parametrize("name", CASES)
def test_the_numerics_stay(name: str) -> None:
    model, x, before, after = case(name)
    assert set(after.program.info) == {"weight_in", "weight_out", *({"bias"} & set(before.program.info))}
    torch.testing.assert_close(Evaluator(after.program).run([x])[0], model(x).detach(), atol=EXACT, rtol=EXACT)


def factors_of(program: Program) -> tuple[Tensor, Tensor]:
    """W_in: [r, k] and W_out: [n, r] in whatever layout they are stored."""
    first, second = (c.parameters(program)[0][0] for c in find_consumers(analyze(program).axes)[0])
    return first, second


@pytest.mark.parametrize("name", CASES)
def test_what_the_first_factor_returns_is_as_long_as_the_output(name: str) -> None:
    """W_out has orthonormal columns, so that W_in^T W_in = W^T W: an error before the pair weighs what it did."""
    _, _, before, after = case(name)
    first, second = factors_of(after.program)
    (whole,) = (c.parameters(before.program)[0][0] for c in find_consumers(before.axes)[0])
    identity = torch.eye(len(first), dtype=first.dtype)
    torch.testing.assert_close(second.mT @ second, identity, atol=EXACT, rtol=EXACT)
    torch.testing.assert_close(first.mT @ first, whole.mT @ whole, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("name", CASES)
def test_whole_numbers_stay_to_the_last_bit_where_a_factor_is_the_identity(name: str) -> None:
    """It is where the weight has no more rows than columns; else the factors hold roots of whole numbers."""
    _, x, before, _ = case(name)
    whole, x = reweighted(before, lambda w: (8 * w).round()), (4 * x).round()
    after = prepare(whole, STEP)
    wanted, got = Evaluator(whole.program).run([x])[0], Evaluator(after.program).run([x])[0]
    first, second = factors_of(after.program)
    if len(second) <= first.shape[1]:
        assert torch.equal(got, wanted)
    else:
        torch.testing.assert_close(got, wanted, atol=EXACT * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_the_axis_between_has_any_basis_and_its_cut_is_proven(name: str) -> None:
    *_, after = case(name)
    group, rank = rank_of(after), CASES[name][3]
    transposed = name.startswith(("addmm", "mm", "matmul"))
    assert group.name == ("weight_in[1]" if transposed else "weight_in[0]")
    assert (group.size, group.symmetry) == (rank, Symmetry.GENERAL)
    assert group.exact and group.prunable and not group.batch
    assert [str(s) for s in group.sites] == [group.name, "weight_out[0]" if transposed else "weight_out[1]"]
    parts = randomised(after)
    cut = random_cut(rank_of(parts), 2, torch.Generator().manual_seed(1))
    proof = prove(parts, plan_of(parts, [cut]))
    assert proof.ok and proof.exact and proof.effect > CLOSE


@pytest.mark.parametrize("name", ["linear n<k", "linear n>k", "conv2d n>k", "mm n>k"])
def test_a_cut_pair_is_the_product_of_what_remains(name: str) -> None:
    """By hand: the layer with the low-rank product in place of its weight."""
    model, x, _, after = case(name)
    parts = randomised(after)
    mask = torch.zeros(rank_of(parts).size, dtype=torch.bool)
    mask[[0, 2]] = True
    slim = Prune(Plan(parts.program.fingerprint(), (Cut.from_mask(rank_of(parts), mask),)))(parts).program
    first, second = (parts.program.weights[n] for n in ("weight_in", "weight_out"))
    if name.startswith("mm"):
        product = first[:, mask] @ second[mask]
    else:
        product = (second.flatten(1)[:, mask] @ first.flatten(1)[mask]).reshape(model.weight.shape)
    state = {n: t for n, t in parts.program.weights.items() if n == "bias"}
    wanted = torch.func.functional_call(model, {"weight": product, **state}, (x,))
    torch.testing.assert_close(slim.module()(x), wanted, atol=CLOSE, rtol=CLOSE)


def test_several_weights_and_where_they_come_from(analyse: Analyse) -> None:
    before = analyse(Pair().double(), torch.randn(6, 4, dtype=torch.float64), dynamic=ROWS)
    after = prepare(before, ["factorise{weights=down.weight+up.weight}"])
    info = after.program.info
    assert all(w.dtype is torch.float64 and w.persistent and w.trainable for w in info.values())
    lines = {model_line(n) for n in before.program.graph.nodes if n.op == "call_function"}
    made = [n for n in after.program.graph.nodes if n.op == "call_function" and n.meta.get("from_pass") == "factorise"]
    assert len(made) == 4 and {model_line(n) for n in made} <= lines - {None}
    assert {g.name: g.kind for g in after.prunable} == {
        "up.weight_in[0]": "rank", "up.weight_out[0]": "neurons", "down.weight_in[0]": "rank",
    }  # fmt: skip


@pytest.mark.parametrize("persistent", [True, False])
def test_a_buffer_becomes_two_buffers(persistent: bool, analyse: Analyse) -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(3, 2), persistent=persistent)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    info = prepare(analyse(Buffered(), torch.randn(4, 2)), STEP).program.info
    flags = {(w.name, w.trainable, w.persistent) for w in info.values()}
    assert flags == {("weight_in", False, persistent), ("weight_out", False, persistent)}


def test_names_that_are_taken_are_numbered(analyse: Analyse) -> None:
    class Taken(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.weight_out = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.weight_out

    after = Factorise(("weight",))(analyse(Taken(), torch.randn(4, 3)))
    assert {"weight_in1", "weight_out1", "weight_out"} <= set(after.program.info)


def test_a_factor_can_be_factorised_again(analyse: Analyse) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    before = analyse(Pair().double(), x, dynamic=ROWS)
    steps = ["factorise{weights=up.weight}", "factorise{weights=up.weight_in}"]
    after = prepare(before, steps)
    assert preparations_of(after.program) == tuple(steps)
    assert {"up.weight_in_in", "up.weight_in_out", "up.weight_out"} <= set(after.program.info)
    wanted = Evaluator(before.program).run([x])[0]
    torch.testing.assert_close(Evaluator(after.program).run([x])[0], wanted, atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_pair_has_the_type_of_the_weight(dtype: torch.dtype, analyse: Analyse) -> None:
    after = prepare(analyse(Pair().to(dtype), torch.randn(6, 4, dtype=dtype)), ["factorise{weights=up.weight}"])
    assert {w.dtype for w in after.program.info.values()} == {dtype}


class Refused(nn.Module):
    """One weight of each kind that cannot become a pair, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(6, 6)
        self.twice = nn.Parameter(torch.randn(6, 6))
        self.tied = nn.Linear(6, 6)
        self.alias = self.tied
        self.computed = nn.Parameter(torch.randn(6, 6))
        self.left = nn.Parameter(torch.randn(6, 6))
        self.batched = nn.Parameter(torch.randn(2, 6, 6))
        self.stack = nn.Parameter(torch.randn(2, 6, 6))
        self.flat = nn.Linear(6, 1)
        self.grouped = nn.Conv1d(6, 6, 1, groups=2)
        self.back = nn.ConvTranspose1d(6, 6, 1)
        self.table = nn.Embedding(6, 6)
        self.scaled = nn.Parameter(torch.randn(6, 6))
        self.square = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.fine(x)) @ self.twice @ self.twice
        x = x @ self.computed.tanh()
        x = torch.mm(self.left, x)
        x = torch.addmm(x, x, self.scaled, beta=2)
        y = torch.bmm(x.expand(2, 6, 6), self.batched).matmul(self.stack).sum(0)
        y = self.back(self.grouped(y)) + self.flat(y) + self.table(torch.arange(6))
        return y + F.linear(self.square, self.square)


REASONS = {
    "twice": "used in 2 places",
    "tied.weight": "tied, also called alias.weight",
    "computed": "aten.tanh.default reads it",
    "left": "left operand",
    "batched": "aten.bmm.default reads it",
    "stack": "a weight of 3 dimensions",
    "flat.weight": "its rank is 1",
    "fine.bias": "not the right operand",
    "grouped.weight": "2 groups",
    "back.weight": "aten.conv_transpose1d.default reads it, which is no linear call",
    "table.weight": "aten.embedding.default reads it",
    "scaled": "addmm with factors",
    "square": "not the right operand",
}


@pytest.fixture(scope="module")
def refused() -> Analysis:
    return analyze(capture(Refused().eval(), (torch.randn(6, 6),)))


@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_become_a_pair_is_refused_by_name(name: str, refused: Analysis) -> None:
    with pytest.raises(InputError) as error:
        prepare(refused, [f"factorise{{weights=fine.weight+{name}}}"])
    text = str(error.value)
    assert f"the weight '{name}' cannot be factorised" in text and REASONS[name] in text
    assert "test_factorise.py:" in text  # the line of the model
    assert "these can be: fine.weight" in text
    assert refused.program.history == []


def test_a_weight_that_does_not_exist(refused: Analysis) -> None:
    with pytest.raises(InputError, match=r"no weight 'fine'\s+next:  these can be: fine.weight"):
        Factorise(("fine",))(refused)
    with pytest.raises(InputError, match="named twice"):
        Factorise(("fine.weight", "fine.weight"))(refused)
    with pytest.raises(InputError, match="needs the names"):
        Factorise(())(refused)


def test_weights_without_values_are_not_claimed_to_be_the_same(analyse: Analyse) -> None:
    analysis = analyse(Pair().to("meta"), torch.randn(6, 4, device="meta"))
    with pytest.raises(VerifyError, match="meta device"):
        Factorise(("up.weight",))(analysis)


def test_a_plan_repeats_the_factorisation_from_its_json(analyse: Analyse) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    original = analyse(Pair().double(), x, dynamic=ROWS)
    parts = prepare(original, ["factorise{weights=up.weight+down.weight}"])
    plan = Plan.from_json(make_plan(parts, width=0.5, groups=["rank"]).to_json())
    assert plan.prepare == ("factorise{weights=up.weight+down.weight}",)
    assert {(c.group, c.size, c.count) for c in plan.cuts} == {("up.weight_in[0]", 4, 2), ("down.weight_in[0]", 3, 2)}
    again = prepare(original, plan.prepare)
    assert prove(again, plan).ok
    slim = Prune(plan)(again).program
    torch.testing.assert_close(slim.module()(x), Prune(plan)(parts).program.module()(x), atol=0, rtol=0)


def test_a_program_that_is_factorised_already_is_taken_as_it_is(analyse: Analyse, tmp_path: Path) -> None:
    """A plan for a saved program names what that program went through."""
    x = torch.randn(6, 4, dtype=torch.float64)
    parts = prepare(analyse(Pair().double(), x, dynamic=ROWS), ["factorise{weights=up.weight}"])
    saved = load(save(parts.program, tmp_path / "parts"))
    assert preparations_of(saved) == preparations_of(parts.program)
    assert torch.equal(Evaluator(saved).run([x])[0], Evaluator(parts.program).run([x])[0])
    plan = make_plan(analyze(saved), width=0.5, groups=["rank"])
    again = prepare(saved, plan.prepare)
    assert again.program is saved
    assert prove(again, plan).ok
    slim = Prune(plan)(again).program
    back = load(save(slim, tmp_path / "slim"))
    assert torch.equal(Evaluator(back).run([x])[0], Evaluator(slim).run([x])[0])
    assert back.info["up.weight_in"].shape == (2, 4)


class Mixed(nn.Module):
    """Convolutions and a linear layer behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mid = nn.Conv2d(1, 12, 3, 2, 1), nn.Conv2d(12, 8, 3, padding="same")
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mid(F.relu(self.enter(x)))).mean((2, 3)))


def test_a_factorised_and_cut_model_is_exported(analyse: Analyse, tmp_path: Path) -> None:
    torch.manual_seed(5)
    analysis = analyse(Mixed(), torch.randn(2, 1, 9, 8), dynamic=({0: "batch"},))
    parts = randomised(prepare(analysis, ["factorise{weights=enter.weight+mid.weight+head.weight}"]))
    assert [g.kind for g in parts.prunable].count("rank") == 3
    plan = make_plan(parts, width=0.5, groups=["rank"])
    slim = Prune(plan)(parts).program
    assert slim.parameters() < parts.program.parameters()
    file = export_onnx(slim, tmp_path / "model.onnx")
    result = check_onnx(slim, file.path, provider="cpu")
    assert result.ok, result.failures
