"""Which axes have a basis to choose, what reads them, and the statistics of both sides by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.change_basis import ChangeBasis
from fxslim.passes.statistics import CalibrationWalk
from fxslim.passes.subspaces import Gathered, Subspace, find_subspaces, gather_at
from fxslim.passes.survey import survey
from tests.models.modules import rotate
from tests.models.nets import captured
from tests.passes.blocks import BLOCKS, Heads, opened, subspaces_of
from tests.passes.conftest import Analyse

CLOSE = 1e-12  # float64, plain sums


def gathered(analysis: Analysis, subspace: Subspace, batches: list[list[Tensor]]) -> Gathered:
    walk, found = CalibrationWalk(Evaluator(analysis.program), batches), Gathered()
    for call in dict.fromkeys(s.call for s in subspace.sides):
        walk.advance_to(call)
        gather_at(analysis, subspace, call, walk, batches, found)
    return found


def named(analysis: Analysis, name: str) -> Subspace:
    return next(s for s in subspaces_of(analysis) if s.group.name == name)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_axis_of_general_symmetry_is_found(name: str) -> None:
    analysis, _ = opened(name)
    found = subspaces_of(analysis)
    assert len(found) == BLOCKS[name][2]
    for subspace in found:
        assert {s.reads for s in subspace.sides} == {True, False}
        assert {n for n, _, _ in subspace.weights} == {s.weight for s in subspace.group.sites}


def test_only_attention_is_known_from_data_alone() -> None:
    kinds = {s.group.kind: s.estimated for name in ("heads", "lora") for s in subspaces_of(opened(name)[0])}
    assert kinds == {"query-key dims": True, "value dims": False, "rank": False}


def test_moments_of_values_and_of_what_reads_them() -> None:
    analysis, batches = opened("heads")
    found = gathered(analysis, named(analysis, "v.weight[0].value-dims"), batches)
    program = analysis.program
    node = next(n for n in program.graph.nodes if n.op == "call_function" and any(
        a.op == "get_attr" and a.target == "o.weight" for a in n.all_input_nodes
    ))  # fmt: skip
    evaluator = Evaluator(program)
    nodes, mixed = list(program.graph.nodes), []
    for batch in batches:
        env = evaluator.bind(batch)
        evaluator.advance(env, nodes[: nodes.index(node)])
        mixed.append(env[node.args[0]].reshape(-1, 3, 5))
    x, w = torch.cat(mixed), program.weights["o.weight"].detach().view(8, 3, 5)
    assert found.living is not None and found.reading is not None
    torch.testing.assert_close(found.living, torch.einsum("thc,thd->hcd", x, x), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(found.reading, torch.einsum("nhc,nhd->hcd", w, w), rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("name", ["repeat", "expand"])
def test_moments_of_queries_and_shared_keys(name: str) -> None:
    """The three query heads of a key-value head count together, and its keys once for each."""
    analysis, batches = opened(name)
    found = gathered(analysis, named(analysis, "q.weight[0].query-key-dims"), batches)
    w = {n: t.detach() for n, t in analysis.program.weights.items()}
    x = torch.cat([b[0].reshape(-1, 8) for b in batches])
    q = (x @ w["q.weight"].T + w["q.bias"]).view(-1, 2, 3, 4)
    k = (x @ w["k.weight"].T + w["k.bias"]).view(-1, 2, 4)
    assert found.living is not None and found.reading is not None
    torch.testing.assert_close(found.living, torch.einsum("thrc,thrd->hcd", q, q), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(found.reading, 3 * torch.einsum("thc,thd->hcd", k, k), rtol=CLOSE, atol=CLOSE)


def test_what_reads_is_summed_over_all_readers(analyse: Analyse) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.a, self.b = nn.Linear(8, 5), nn.Linear(5, 3), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.down(x)
            return self.a(x), self.b(x)

    model, batches = Two().double(), [[torch.randn(9, 8).double()] for _ in range(2)]
    analysis = analyse(model, batches[0][0])
    found = gathered(analysis, named(analysis, "down.weight[0]"), batches)
    a, b = model.a.weight.detach(), model.b.weight.detach()
    assert found.reading is not None
    torch.testing.assert_close(found.reading, a.T @ a + b.T @ b, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("name", ["mlp", "gated", "squeeze_excite"])
def test_axes_through_pointwise_functions_have_none(name: str) -> None:
    analysis = captured(name).analysis
    assert find_subspaces(analysis, analysis.groups) == ([], [])


def test_rotary_embeddings_leave_values_alone(analyse: Analyse) -> None:
    class Rotary(Heads):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).view(2, 5, 3, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
            angles = torch.arange(5.0)[:, None] * torch.ones(4)
            q, k = (rotate(t, angles.cos(), angles.sin()) for t in (q, k))
            return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 15))

    analysis = analyse(Rotary(), torch.randn(2, 5, 8))
    assert [s.group.kind for s in subspaces_of(analysis)] == ["value dims"]


def turned(analysis: Analysis, name: str, batches: list[tuple[Tensor, ...]]) -> None:
    """Only rotations are left for the group, and one changes the weights but not what they compute."""
    (subspace,) = [s for s in find_subspaces(analysis, analysis.groups)[0] if s.group.name == name]
    assert subspace.rotations
    bases = survey(analysis, [], [subspace], batches).bases
    matrix = bases[name].forward
    torch.testing.assert_close(matrix @ bases[name].backward, torch.eye(matrix.shape[-1]).double())
    changed = ChangeBasis.of([subspace], bases)(analysis).program
    assert not torch.allclose(changed.weights[subspace.weights[0][0]], analysis.program.weights[subspace.weights[0][0]])
    for batch in batches:
        wanted = Evaluator(analysis.program, dtype=torch.float64).run(batch)[0]
        torch.testing.assert_close(Evaluator(changed, dtype=torch.float64).run(batch)[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_weight_on_both_sides_may_be_rotated(analyse: Analyse) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.linear(x, self.w), self.w.t())

    turned(analyse(Tied(), torch.randn(3, 8)), "w[0]", [(torch.randn(3, 8),), (torch.randn(3, 8),)])


def test_one_projection_as_queries_and_keys_may_be_rotated(analyse: Analyse) -> None:
    class Symmetric(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qk, self.v = nn.Linear(8, 6), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            q = self.qk(x)
            return (q @ q.transpose(1, 2)).softmax(-1) @ self.v(x)

    turned(analyse(Symmetric(), torch.randn(2, 3, 8)), "qk.weight[0]", [(torch.randn(2, 3, 8),)])


def test_a_cache_of_the_user_refuses_by_name() -> None:
    analysis = captured("cached").analysis
    found, refused = find_subspaces(analysis, analysis.groups)
    assert found == []
    assert len(refused) == 2 and all("a cache of the user lies in its basis" in text for text in refused)


def test_groups_that_were_not_asked_for_are_left_out() -> None:
    analysis, _ = opened("heads")
    found, _ = find_subspaces(analysis, [analysis.group("v.weight[0].value-dims")])
    assert [s.group.name for s in found] == ["v.weight[0].value-dims"]
    assert find_subspaces(analysis, []) == ([], [])
