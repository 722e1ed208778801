"""A change of basis: another way to write the same function."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.errors import VerifyError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.serialize import load, save
from fxslim.passes.basis import Basis
from fxslim.passes.change_basis import ChangeBasis, bases_of
from fxslim.passes.same import relative_difference
from tests.passes.blocks import BLOCKS, in_best_bases, opened, subspaces_of

SAME = 1e-12  # float64: a few products more


def difference(a: Analysis, b: Analysis, inputs: list[Tensor]) -> float:
    """The largest relative difference of the outputs."""
    pairs = zip(Evaluator(a.program).run(inputs), Evaluator(b.program).run(inputs), strict=True)
    return max(relative_difference(x, y) for x, y in pairs)


def arbitrary(analysis: Analysis, name: str) -> tuple[ChangeBasis, Mapping[str, Basis]]:
    """Any invertible bases for all subspaces: nothing about them is orthogonal."""
    found, bases = subspaces_of(analysis), {}
    for group in (s.group for s in found):
        forward = torch.eye(group.size).double() + 0.3 * torch.randn(*group.shape, group.size).double()
        bases[group.name] = Basis(forward, torch.linalg.inv(forward), torch.ones(group.shape).double())
    return ChangeBasis.of(found, bases), bases


@pytest.mark.parametrize("name", BLOCKS)
def test_the_best_basis_preserves_the_function(name: str) -> None:
    analysis, batches = opened(name)
    changed = in_best_bases(analysis, batches)
    assert difference(analysis, changed, [torch.randn_like(batches[0][0])]) < SAME


@pytest.mark.parametrize("name", BLOCKS)
def test_any_basis_preserves_the_function_and_changes_all_its_weights(name: str) -> None:
    analysis, batches = opened(name)
    step, _ = arbitrary(analysis, name)
    changed = analyze(step(analysis).program)
    assert difference(analysis, changed, [torch.randn_like(batches[0][0])]) < SAME
    old, new = analysis.program.weights, changed.program.weights
    lying = {name for s in step.subspaces for name, _, _ in s.weights}  # biases are among them
    for weight in old:
        moved = float((old[weight] - new[weight]).abs().max()) > 1e-3
        assert moved == (weight in lying), weight


def test_queries_take_the_basis_and_keys_its_inverse() -> None:
    analysis, _ = opened("heads")
    step, bases = arbitrary(analysis, "heads")
    old, new = analysis.program.weights, step(analysis).program.weights
    for group, made, read in (
        ("q.weight[0].query-key-dims", ("q.weight", "q.bias"), ("k.weight", "k.bias")),
        ("v.weight[0].value-dims", ("v.weight", "v.bias"), ()),
    ):
        forward, backward = bases[group].forward, bases[group].backward
        for names, matrix in ((made, forward), (read, backward.mT)):
            for name in names:
                heads = old[name].detach().reshape(3, forward.shape[-1], -1)
                torch.testing.assert_close(new[name].reshape(heads.shape), matrix @ heads, rtol=SAME, atol=SAME)
    backward = bases["v.weight[0].value-dims"].backward
    out = torch.einsum("nhd,hde->nhe", old["o.weight"].detach().view(8, 3, 5), backward)
    torch.testing.assert_close(new["o.weight"].view(8, 3, 5), out, rtol=SAME, atol=SAME)


def test_leaving_out_the_last_coordinates_is_what_the_basis_says() -> None:
    """The inner dimension of a pair, cut to r, gives the best product of rank r for these inputs."""
    analysis, batches = opened("lora")
    w = in_best_bases(analysis, batches).program.weights
    old = analysis.program.weights
    x = torch.cat([b[0].reshape(-1, 8) for b in batches])
    whole = x @ old["down.weight"].T @ old["up.weight"].T
    singular = torch.linalg.svdvals(whole.detach())
    for rank in range(1, 5):
        cut = x @ w["down.weight"][:rank].T @ w["up.weight"][:, :rank].T
        assert float((whole - cut).square().sum()) == pytest.approx(float(singular[rank:].square().sum()), rel=1e-9)


def test_the_original_is_left_as_it_was() -> None:
    analysis, batches = opened("heads")
    before = {n: t.clone() for n, t in analysis.program.weights.items()}
    in_best_bases(analysis, batches)
    assert all(torch.equal(analysis.program.weights[n], t) for n, t in before.items())


def test_types_layouts_and_the_fingerprint_stay() -> None:
    """A plan made for the original names the same groups afterwards."""
    analysis, batches = opened("heads", double=False)
    changed = in_best_bases(analysis, batches)
    assert changed.program.fingerprint() == analysis.program.fingerprint()
    assert [g.name for g in changed.groups] == [g.name for g in analysis.groups]
    for name, old in analysis.program.weights.items():
        new = changed.program.weights[name]
        assert (new.dtype, new.shape, new.is_contiguous()) == (old.dtype, old.shape, True)


def test_the_history_names_the_groups_and_is_saved(tmp_path: object) -> None:
    analysis, batches = opened("heads")
    changed = in_best_bases(analysis, batches)
    wanted = frozenset({"q.weight[0].query-key-dims", "v.weight[0].value-dims"})
    assert bases_of(analysis.program) == frozenset()
    assert bases_of(changed.program) == wanted
    save(changed.program, f"{tmp_path}/saved")
    assert bases_of(load(f"{tmp_path}/saved")) == wanted


def test_a_basis_that_is_none_is_found_out() -> None:
    analysis, _ = opened("heads")
    step, bases = arbitrary(analysis, "heads")
    wrong = {n: Basis(b.forward, b.backward.mT, b.energy) for n, b in bases.items()}
    with pytest.raises(VerifyError, match="changed by"):
        ChangeBasis.of(step.subspaces, wrong)(analysis)
