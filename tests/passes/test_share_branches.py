"""Residual branches that use one set of weights: what is shared, that it is one everywhere, and what is refused."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from fxslim.export import check_onnx, export_onnx
from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError, VerifyError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.graph.serialize import load, save
from fxslim.passes.drop_branches import find_branches
from fxslim.passes.planner import make_plan
from fxslim.passes.prepare import prepare
from fxslim.passes.prove import prove
from fxslim.passes.prune import Prune
from fxslim.passes.share_branches import ShareBranches
from tests.passes.residual import HIDDEN, INPUTS, D, Layered, batches, layered

EXACT = 1e-12
MATRICES = 2 * D * HIDDEN  # numbers in the two matrices of a branch


def step(program: Program, *numbers: int) -> ShareBranches:
    found = find_branches(program)
    return ShareBranches(tuple(found[i].add.name for i in numbers))


def shared(*numbers: int) -> Program:
    analysis = layered()
    return step(analysis.program, *numbers)(analysis).program


@pytest.mark.parametrize("numbers", [(0, 1), (2, 1), (1, 0, 2, 3)])
def test_the_others_compute_with_the_matrices_of_the_first(numbers: tuple[int, ...]) -> None:
    model, (x,) = Layered().use(numbers[0], numbers[1:]), batches(1, seed=7)[0]
    program = shared(*numbers)
    torch.testing.assert_close(Evaluator(program).run([x])[0], model(x).detach(), rtol=EXACT, atol=EXACT)
    assert program.parameters() == layered().program.parameters() - (len(numbers) - 1) * MATRICES


def test_vectors_stay_each_branchs_own() -> None:
    names = set(shared(0, 1).info)
    own = {f"branches.1.{part}" for part in ("0.weight", "0.bias", "1.bias", "3.bias")}
    assert names & {f"branches.1.{part}" for part in ("1.weight", "3.weight")} == set() and own <= names


def test_the_names_that_went_are_other_names_of_what_is_used() -> None:
    module = shared(0, 1, 2).module()
    used, *others = (module.get_parameter(f"branches.{i}.3.weight") for i in range(3))
    assert all(other is used for other in others)
    assert set(module.state_dict()) == set(Layered().state_dict())
    before = used.detach().clone()
    module(batches(1)[0][0]).sum().backward()
    with torch.no_grad():
        used.sub_(used.grad)
    assert not torch.equal(module.get_parameter("branches.2.3.weight"), before), "trained once for all"


def test_a_saved_program_is_shared_still(tmp_path: Path) -> None:
    program = shared(0, 1)
    again = load(save(program, tmp_path / "slim"))
    assert again.parameters() == program.parameters() and set(again.info) == set(program.info)
    assert again.info["branches.0.1.weight"].aliases == ("branches.1.1.weight",)
    (x,) = batches(1, seed=7)[0]
    assert torch.equal(Evaluator(again).run([x])[0], Evaluator(program).run([x])[0])
    assert prepare(again, program.history).program is again, "what was done is not done twice"


def test_onnx_has_one_initializer_for_all(tmp_path: Path) -> None:
    model = Layered().float()
    whole = capture(model, (batches(1)[0][0].float(),), dynamic_shapes=({0: "rows"},))
    analysis = analyze(whole)
    program = step(whole, 0, 1, 2)(analysis).program
    before, after = export_onnx(whole, tmp_path / "whole.onnx"), export_onnx(program, tmp_path / "slim.onnx")
    assert before.initializer_bytes - after.initializer_bytes == 2 * MATRICES * 4
    assert before.file_bytes - after.file_bytes > MATRICES * 4
    graph = ir.load(tmp_path / "slim.onnx").graph
    matrices = [v for v in graph.initializers.values() if sorted(v.shape.numpy()) == [D, HIDDEN]]
    uses = sorted(len(v.uses()) for v in matrices)
    assert uses == [1, 1, 3, 3], "two of the shared, two of the last branch"
    assert check_onnx(program, tmp_path / "slim.onnx").ok


def test_a_shared_weight_is_cut_once_for_all_and_proven() -> None:
    program = shared(0, 1)
    analysis = analyze(program)
    (group,) = [
        g for g in analysis.groups if any("branches.0.1.weight" in s.weight for s in g.sites) and g.size == HIDDEN
    ]
    assert {s.weight for s in group.sites} >= {"branches.0.1.bias", "branches.1.1.bias", "branches.0.3.weight"}
    plan = make_plan(analysis, width=0.5, groups=[group.name])
    assert prove(analysis, plan).ok
    slim = Prune(plan)(analysis).program
    assert slim.info["branches.0.1.weight"].shape == (HIDDEN // 2, D)
    assert slim.info["branches.1.1.bias"].shape == (HIDDEN // 2,)


def test_the_text_repeats_it() -> None:
    analysis, program = layered(), shared(2, 3)
    again = prepare(analysis, program.history).program
    assert again.fingerprint() == program.fingerprint() != analysis.program.fingerprint()


def test_what_cannot_share_is_refused() -> None:
    analysis = layered()
    add = find_branches(analysis.program)[0].add.name
    for adds, why in (
        (("linear", add), "no addition of a residual branch"),
        ((add,), "two branches or more"),
        ((add, add), "two branches or more"),
    ):
        with pytest.raises(InputError, match=why):
            ShareBranches(adds)(analysis)
    done = analyze(shared(0, 1))
    with pytest.raises(InputError, match="has no matrix of its own"):
        step(done.program, 0, 1)(done)


def test_another_structure_is_refused() -> None:
    model = Layered()
    model.branches[1][2] = nn.ReLU()
    analysis = analyze(capture(model, (torch.randn(2, INPUTS, dtype=torch.float64),)))
    with pytest.raises(InputError, match="differs in structure"):
        step(analysis.program, 0, 1)(analysis)


def test_a_result_that_is_not_the_original_with_weights_replaced_is_noticed() -> None:
    analysis = layered()
    made = step(analysis.program, 0, 1)
    result = made.apply(analysis)
    result.program.weights["head.weight"] = result.program.weights["head.weight"] * 1.01
    with pytest.raises(VerifyError, match="branches' weights replaced"):
        made.ensures(result.program, analysis.program)
