"""Caches in other coordinates: a slim one is narrower, its loop computes what the whole does, and a proof moves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.api import Applied, apply_plan, compress, prove
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import VerifyError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.graph.verify import verify
from fxslim.passes.bases import rebase
from fxslim.passes.basis import Basis
from fxslim.passes.caches import CacheMoves
from fxslim.passes.change_basis import ChangeBasis
from fxslim.passes.plan import Plan
from fxslim.passes.planner import make_plan
from fxslim.passes.subspaces import find_subspaces
from fxslim.passes.survey import survey
from tests.models.modules import rotate

EXACT = 1e-9  # float64 rounding, relative to an output's largest magnitude
SAME = 1e-8  # the same after some steps through a basis, whose condition amplifies rounding
FELT = 1e-6  # cutting must change an output by more than this
CACHES = {"past_k": "k", "past_v": "v"}
PAST = {0: "batch", 2: "past"}
SHAPES = ({0: "batch", 1: "new"}, PAST, PAST)


@dataclass(frozen=True)
class Shape:
    """Heads of queries, of keys and values, their widths, rotary embeddings before the cache, biases."""

    heads: int = 3
    shared: int = 3
    keys: int = 4
    values: int = 5
    rotary: bool = False
    bias: bool = True


KINDS = {
    "gpt2": Shape(),
    "grouped": Shape(heads=6, shared=2, bias=False),
    "llama": Shape(heads=6, shared=2, values=6, rotary=True, bias=False),
}
SUBSPACES = {
    "gpt2": {"query-key dims", "value dims"},
    "grouped": {"query-key dims", "value dims"},
    "llama": {"value dims"},
}


class Step(nn.Module):
    """Causal attention for new positions after those that the caches hold."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape, s = shape, shape
        self.q, self.k = nn.Linear(8, s.heads * s.keys, s.bias), nn.Linear(8, s.shared * s.keys, s.bias)
        self.v, self.o = nn.Linear(8, s.shared * s.values, s.bias), nn.Linear(s.heads * s.values, 8, s.bias)

    def forward(self, x: Tensor, past_k: Tensor, past_v: Tensor) -> dict[str, Tensor]:
        shape, (b, new, _), past = self.shape, x.shape, past_k.shape[2]
        q = self.q(x).view(b, new, shape.heads, -1).transpose(1, 2)
        k, v = (f(x).view(b, new, shape.shared, -1).transpose(1, 2) for f in (self.k, self.v))
        if shape.rotary:
            angles = torch.arange(past, past + new)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
            q, k = (rotate(t, angles.cos(), angles.sin()) for t in (q, k))
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
        many = shape.heads // shape.shared
        wide = (t[:, :, None].expand(-1, -1, many, -1, -1).flatten(1, 2) for t in (k, v)) if many > 1 else (k, v)
        mask = torch.arange(past, past + new)[:, None] >= torch.arange(past + new)
        y = F.scaled_dot_product_attention(q, *wide, attn_mask=mask)
        return {"y": self.o(y.transpose(1, 2).reshape(b, new, -1)), "k": k, "v": v}


def step_of(kind: str) -> Step:
    """A model of one kind, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Step(KINDS[kind]).double()


def caches_of(shape: Shape, batch: int, past: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(batch, shape.shared, past, n).double() for n in (shape.keys, shape.values))  # type: ignore[return-value]


def opened(model: Step, past: int = 4, caches: dict[str, str] | None = CACHES) -> tuple[Analysis, list[list[Tensor]]]:
    """The analysis and calibration data with `past` positions in the caches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        batches = [[torch.randn(3, 7, 8).double(), *caches_of(model.shape, 3, past)] for _ in range(3)]
        example = (torch.randn(2, 3, 8).double(), *caches_of(model.shape, 2, 4))
    return analyze(capture(model.eval(), example, dynamic_shapes=SHAPES, caches=caches)), batches


@cache
def captured(kind: str) -> tuple[Analysis, list[list[Tensor]]]:
    """One of the models with declared caches; captured once, so nobody may change it."""
    return opened(step_of(kind))


@cache
def halved(kind: str) -> tuple[Plan, Applied]:
    """Half of the dimensions inside heads, by magnitude where there is no basis to choose."""
    analysis, batches = captured(kind)
    groups = [g.name for g in analysis.prunable if g.kind in ("query-key dims", "rotary pairs", "value dims")]
    return compress(
        analysis, width=0.5, importance="magnitude", subspace=True, restore="none", calibration=batches, groups=groups
    )


def empty(program: Program, batch: int) -> list[Tensor]:
    """Caches without a position, as wide as the program says."""
    shapes = [n.meta["val"].shape for n in program.graph.find_nodes(op="placeholder")][1:]
    return [torch.zeros(batch, s[1], 0, s[3]).double() for s in shapes]


def in_steps(program: Program, x: Tensor, steps: Sequence[int]) -> Tensor:
    """The outputs for `x` given in parts, each after the caches that the part before returned."""
    caches, found = empty(program, len(x)), []
    for part in x.split(list(steps), dim=1):
        y, *caches = Evaluator(program).run([part, *caches])
        found.append(y)
    return torch.cat(found, 1)


def close(got: Tensor, wanted: Tensor, tolerance: float = SAME) -> None:
    assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_declared_caches_take_a_basis_where_no_rotary_embedding_comes_before(kind: str) -> None:
    plan, made = halved(kind)
    kinds = {c.kind: c.subspace for c in plan.cuts}
    assert {k for k, subspace in kinds.items() if subspace} == SUBSPACES[kind]
    assert kinds.keys() == ({"query-key dims", "value dims"} if kind != "llama" else {"rotary pairs", "value dims"})
    shape, caches = KINDS[kind], [t.shape[-1] for t in made.program.example_inputs[1:]]
    assert caches == [shape.keys // 2, (shape.values + 1) // 2]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_with_slim_caches_are_the_slim_program_on_the_whole(kind: str) -> None:
    analysis, (_, made) = captured(kind)[0], halved(kind)
    x = torch.randn(2, 7, 8).double()
    whole = in_steps(made.program, x, [7])
    for steps in ([5, 1, 1], [1, 6], [3, 2, 2]):
        close(in_steps(made.program, x, steps), whole)
    original = in_steps(analysis.program, x, [7])
    assert float((whole - original).abs().max()) > FELT  # something was lost: the caches are really smaller


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_values_of_low_rank_lose_nothing(kind: str) -> None:
    model = step_of(kind)
    shape = model.shape
    with torch.no_grad():  # in each head its own plane: no position may go
        mix = torch.randn(shape.shared, shape.values, 2).double()
        low = torch.randn(shape.shared, 2, 8).double()
        model.v.weight.copy_((mix @ low).reshape(-1, 8))
        if model.v.bias is not None:
            model.v.bias.copy_((mix @ torch.randn(shape.shared, 2, 1).double()).flatten())
    analysis, batches = opened(model, past=0)
    plan, made = compress(
        analysis, width=0.4, importance="obs", subspace=True, restore="none", calibration=batches, groups=["value dims"]
    )
    assert [c.count for c in plan.cuts] == [2]
    assert made.program.example_inputs[2].shape[-1] == 2
    x = torch.randn(2, 7, 8).double()
    close(in_steps(made.program, x, [4, 2, 1]), in_steps(analysis.program, x, [7]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_proof_moves_the_caches(kind: str) -> None:
    (analysis, batches), (plan, made) = captured(kind), halved(kind)
    proof = prove(made.analysis, plan)
    assert proof.ok and proof.max_error <= EXACT and proof.effect > FELT
    again = prove(analysis, plan, batches, calibration=batches)  # inputs in the coordinates of the original
    assert again.ok and again.max_error <= EXACT
    assert {o.name for o in again.outputs} == {"y", "k", "v"}


def test_a_note_says_what_the_caches_hold() -> None:
    plan, _ = halved("llama")
    (note,) = [n for n in plan.notes if "caches" in n]
    assert note == "in bases of their own: past_v; start with empty caches, or what the slim program returned"


@pytest.mark.parametrize("kind", KINDS)
def test_examples_and_outputs_are_in_new_coordinates(kind: str) -> None:
    analysis, batches = captured(kind)
    found, _ = find_subspaces(analysis, analysis.prunable)
    made = survey(analysis, [], found, batches)
    changed = rebase(analysis, made, tuple(made.bases))
    old, new = analysis.program.example_inputs, changed.analysis.program.example_inputs
    value = made.bases["v.weight[0].value-dims"].forward
    close(new[2], torch.einsum("hij,bhtj->bhti", value, old[2]))
    assert torch.equal(new[0], old[0])
    assert torch.equal(new[1], old[1]) == (kind == "llama")
    wanted, got = Evaluator(analysis.program).run(old), Evaluator(changed.analysis.program).run(new)
    close(got[0], wanted[0])
    close(got[2], torch.einsum("hij,bhtj->bhti", value, wanted[2]))
    assert changed.moves is not None
    for a, b in zip(got, changed.moves.outputs(wanted, old), strict=True):
        close(a, b)


def test_keys_read_with_the_inverse_and_so_do_their_caches() -> None:
    analysis, batches = captured("gpt2")
    found, _ = find_subspaces(analysis, analysis.prunable)
    made = survey(analysis, [], found, batches)
    moves = CacheMoves.of(analysis.program, found, made.bases)
    assert moves is not None
    old = list(analysis.program.example_inputs)
    backward = made.bases["q.weight[0].query-key-dims"].backward
    close(moves.inputs(old)[1], torch.einsum("hji,bhtj->bhti", backward, old[1]))


def test_a_cache_that_is_not_moved_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, batches = captured("gpt2")
    found, _ = find_subspaces(analysis, analysis.prunable)
    made = survey(analysis, [], found, batches)
    monkeypatch.setattr(CacheMoves, "inputs", lambda self, tensors: list(tensors))
    with pytest.raises(VerifyError, match="changed by"):
        ChangeBasis.of(found, made.bases)(analysis)


def test_examples_of_zeros_do_not_hide_a_wrong_basis() -> None:
    model = step_of("gpt2")
    example = (torch.randn(2, 3, 8).double(), *(torch.zeros_like(t) for t in caches_of(model.shape, 2, 4)))
    analysis = analyze(capture(model.eval(), example, dynamic_shapes=SHAPES, caches=CACHES))
    found, _ = find_subspaces(analysis, [analysis.group("v.weight[0].value-dims")])
    (place, back), (other, _) = found[0].caches
    wrong = type(found[0])(found[0].group, found[0].sides, found[0].weights, caches=((place, not back), (other, back)))
    forward = torch.eye(5).double() + 0.3 * torch.randn(3, 5, 5).double()
    bases = {found[0].group.name: Basis(forward, torch.linalg.inv(forward), torch.ones(3, 5).double())}
    with pytest.raises(VerifyError, match="changed by"):
        ChangeBasis.of([wrong], bases)(analysis)
    ChangeBasis.of(found, bases)(analysis)


@pytest.mark.parametrize("restore", ["none", "least-squares"])
def test_data_with_full_caches_is_moved_too(restore: str) -> None:
    """Values of rank two everywhere, in the caches of the data as well: nothing is lost, so a refit finds nothing to
    do. Caches in old coordinates would be noise."""
    model = step_of("llama")
    with torch.no_grad():
        mix = torch.randn(2, 6, 2).double()
        model.v.weight.copy_((mix @ torch.randn(2, 2, 8).double()).reshape(-1, 8))
    analysis, batches = opened(model)
    for batch in batches:
        batch[2] = torch.einsum("hdr,bhtr->bhtd", mix, torch.randn(3, 2, 4, 2).double())
    options = {"width": 0.34, "importance": "obs", "subspace": True, "groups": ["value dims"]}
    plan, made = compress(analysis, restore=restore, calibration=batches, **options)  # type: ignore[arg-type]
    assert plan.subspaces and [c.count for c in plan.cuts] == [2]
    if restore == "least-squares":
        assert made.restoration is not None
        assert max(row.before for row in made.restoration.rows) < SAME
    again = apply_plan(analysis, plan, restore, batches)  # type: ignore[arg-type]
    for name, tensor in made.program.weights.items():
        close(again.program.weights[name], tensor)
    x = torch.randn(2, 5, 8).double()
    close(in_steps(made.program, x, [3, 2]), in_steps(analysis.program, x, [5]))


def test_a_global_budget_probes_in_moved_coordinates() -> None:
    analysis, batches = captured("gpt2")
    plan = make_plan(analysis, 0.7, importance="obs", subspace=True, budget="global", calibration=batches)
    assert plan.subspaces
    assert prove(analysis, plan, calibration=batches).ok


def test_caches_that_are_not_declared_keep_their_basis() -> None:
    analysis, batches = opened(step_of("gpt2"), caches=None)
    assert analysis.axes.caches == CACHES  # recognised by name
    plan = make_plan(analysis, width=0.5, subspace=True, calibration=batches)
    assert plan.cuts and plan.subspaces == ()
    assert any("'past_v' was not declared with capture(caches=); it is cut by position" in n for n in plan.notes)


def test_a_cache_that_comes_back_as_another_keeps_its_basis() -> None:
    model = Step(Shape(keys=4, values=4)).double()
    analysis, _ = opened(model, caches={"past_k": "v", "past_v": "k"})
    found, refused = find_subspaces(analysis, analysis.groups)
    assert found == []
    assert any("the cache 'past_k' comes back in another basis" in text for text in refused)


class State(nn.Module):
    """A running sum: the state comes back as long as it was, and nothing concatenates it."""

    def __init__(self, scale: int = 1) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(8, 6, bias=False), nn.Linear(6, 8, bias=False)
        self.other, self.scale = nn.Linear(6, 6, bias=False), scale

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        new = self.into(x)
        return self.out(memory + new), self.other(new) * self.scale


def test_what_replaces_a_cache_has_its_positions() -> None:
    """Nothing in the graph ties `other.weight[0]` to the state that goes in: coming back as it does."""
    inputs = (torch.randn(3, 8).double(), torch.randn(3, 6).double())
    analysis = analyze(capture(State().double().eval(), inputs, caches={"memory": "output_1"}))
    group = next(g for g in analysis.groups if g.caches)
    assert {s.weight for s in group.sites} == {"into.weight", "out.weight", "other.weight"}
    text = analysis.explain("other.weight[0]", "out.weight[1]")
    assert "the output `output_1` replaces the cache `memory`" in text


def test_a_loop_that_does_not_close_is_refused() -> None:
    broken = halved("gpt2")[1].program.clone()
    (output,) = broken.graph.find_nodes(op="output")
    y, k, _ = output.args[0]
    output.args = ((y, k, k),)
    with pytest.raises(VerifyError, match=r"the cache 'past_v' has size \d and comes back with \d"):
        verify(broken, captured("gpt2")[0].program)
