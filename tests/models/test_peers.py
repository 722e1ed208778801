"""The topologies that other pruning tools test, with numeric equality and with the groups that a person would name."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fxslim.graph.evaluate import Evaluator
from fxslim.passes.prove import prove
from fxslim.passes.prune import Prune
from tests.models.peers import CASES, Peer, peer
from tests.plans import plan_of, random_cut

EXACT = 1e-9  # float64 rounding, relative to an output's largest magnitude
FELT = 1e-9  # masking must change an output by more than rounding does, or nothing was tested
BY_HAND = tuple(name for name, case in CASES.items() if case.by_hand is not None)

# Recurrent layers gather their weights anew when they are exported; torch says so.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes .* were assigned during export")


@pytest.fixture(params=CASES, scope="module")
def one(request: pytest.FixtureRequest) -> Peer:
    """Every case; the scope keeps all tests of one case together."""
    return peer(request.param)


def test_the_groups_are_those_that_a_person_would_name(one: Peer) -> None:
    if one.refused:
        return the_refusal_is_named(one)
    found = one.named()
    assert one.analysis.unknown_ops == {}
    assert {key for key, group in found.items() if not group.exact} == one.case.inexact
    return None


def the_refusal_is_named(one: Peer) -> None:
    """An operator without a rule is reported, what it touches is fixed for that reason, and nothing else is."""
    assert set(one.analysis.unknown_ops) == {one.case.refusal}
    fixed = {f"{s.weight}[{s.dim}]" for g in one.analysis.groups if "without a rule" in str(g.fixed) for s in g.sites}
    missing = {site for _, site, _ in one.expected if site not in fixed}
    assert missing == {f"{g.sites[0].weight}[{g.sites[0].dim}]" for g in one.groups}


def test_every_group_alone_can_be_cut_to_any_size(one: Peer) -> None:
    analysis, generator = one.analysis, torch.Generator().manual_seed(1)
    for group in one.groups:
        for count in sorted({1, group.size // 2, group.size - 1}):
            proof = prove(analysis, plan_of(analysis, [random_cut(group, count, generator)]))
            assert proof.max_error <= EXACT, (group.name, count)
            assert proof.effect > FELT, (group.name, count)


def test_all_groups_can_be_cut_together(one: Peer) -> None:
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        sizes = [int(torch.randint(1, g.size, (), generator=generator)) for g in one.groups]
        cuts = [random_cut(g, n, generator) for g, n in zip(one.groups, sizes, strict=True)]
        proof = prove(one.analysis, plan_of(one.analysis, cuts))
        assert proof.max_error <= EXACT
        assert proof.effect > FELT


@pytest.mark.parametrize("one", BY_HAND, indirect=True, scope="module")
def test_the_slim_program_is_the_module_cut_by_hand(one: Peer) -> None:
    assert one.case.by_hand is not None
    model, inputs = copy.deepcopy(one.model).double(), in_double(one)
    for seed, fewer in enumerate((1, 2)):
        generator = torch.Generator().manual_seed(seed)
        cuts = {k: random_cut(g, max(1, g.size - fewer), generator, alike=True) for k, g in one.named().items()}
        slim = Prune(plan_of(one.analysis, list(cuts.values())))(one.analysis).program
        got = Evaluator(slim, dtype=torch.float64).run(pytree.tree_leaves(one.inputs))
        with torch.no_grad():
            wanted = pytree.tree_leaves(one.case.by_hand(model, {k: list(c.kept) for k, c in cuts.items()}, inputs))
        for ours, theirs in zip(got, wanted, strict=True):
            assert float((ours - theirs).abs().max() / theirs.abs().max()) <= EXACT


def in_double(one: Peer) -> tuple[Tensor, ...]:
    return tuple(t.double() if t.is_floating_point() else t for t in one.inputs)


def test_there_are_many_references_by_hand() -> None:
    assert len(CASES) >= 40
    assert len(BY_HAND) >= 25
