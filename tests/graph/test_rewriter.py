"""Shape constants after a cut: recomputed from the axes, also where they hide in arithmetic on sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.capture import capture
from fxslim.graph.errors import VerifyError
from fxslim.graph.evaluate import Evaluator, MaskedEvaluator
from fxslim.graph.rewriter import Rewriter
from fxslim.graph.verify import verify

BS = ({0: "batch", 1: "sequence"},)


class Literals(nn.Module):
    """Three heads of four made by `up`, something in the middle, and a consumer."""

    def __init__(self, middle: Callable[[Tensor], Tensor], width: int = 12) -> None:
        super().__init__()
        self.up, self.down, self.middle = nn.Linear(5, 12), nn.Linear(width, 2), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(self.up(x)))


def folded(x: Tensor) -> Tensor:
    """The head count hides in a product with the batch size."""
    b, s, _ = x.shape
    y = x.view(b, s, 3, 4).transpose(1, 2).reshape(b * 3, s, 4)
    return torch.relu(y).view(b, 3, s, 4).transpose(1, 2).reshape(b, s, 12)


def tokens_first(x: Tensor) -> Tensor:
    b, s, _ = x.shape
    return x.reshape(b * s * 3, 4).relu().view(b, s, 12)


def split(x: Tensor) -> Tensor:
    b, s, _ = x.shape
    left, right = x.view(b, s, 3, 4).split([1, 3], -1)
    return (torch.cat([left.sigmoid(), right], -1)).reshape(b, s, 12)


def sliced(x: Tensor) -> Tensor:
    return torch.cat([x[..., :5].relu(), x[..., 5:]], -1)


def expanded(x: Tensor) -> Tensor:
    b, s, _ = x.shape
    return x.view(b, s, 3, 1, 4).expand(b, s, 3, 2, 4).reshape(b, s, 24)


CASES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "folded": (folded, 12), "tokens first": (tokens_first, 12), "split": (split, 12), "slice": (sliced, 12),
    "expand": (expanded, 24),
}  # fmt: skip


def cut_all_but_last(analysis: Analysis) -> Selection:
    """Every group loses its last position, in every batch row."""
    kept = {}
    for group in analysis.prunable:
        if group.size > 1:
            mask = torch.ones([int(a.size) for a in (*group.batch, group.axis)], dtype=torch.bool)
            mask[..., -1] = False
            kept[group.axis] = Kept(group.batch, mask)
    assert kept
    return Selection(kept)


@pytest.mark.parametrize("case", CASES)
def test_literals_follow_the_cut(case: str) -> None:
    middle, width = CASES[case]
    analysis = analyze(capture(Literals(middle, width), (torch.randn(2, 5, 5),), dynamic_shapes=BS))
    selection = cut_all_but_last(analysis)
    rewriter = Rewriter(analysis.program, "test")
    rewriter.slice(analysis.axes, selection)
    verify(rewriter.program, analysis.program)
    assert rewriter.edits["arguments"] > 0
    for sizes in ((1, 1), (3, 4)):
        x = torch.randn(*sizes, 5)
        wanted = MaskedEvaluator(analysis.axes, selection, dtype=torch.float64).run([x])[0]
        got = Evaluator(rewriter.program, dtype=torch.float64).run([x])[0]
        torch.testing.assert_close(got, wanted)
    assert rewriter.program.parameters() < analysis.program.parameters()


def test_a_size_in_arithmetic_is_scaled() -> None:
    analysis = analyze(capture(Literals(folded), (torch.randn(2, 5, 5),), dynamic_shapes=BS))
    group = next(g for g in analysis.prunable if g.size == 3)
    rewriter = Rewriter(analysis.program, "test")
    rewriter.slice(analysis.axes, Selection({group.axis: Kept((), torch.tensor([True, False, True]))}))
    assert rewriter.edits["size"] > 0
    assert all(n.meta["from_pass"] == "test" for n in rewriter.program.graph.nodes if "floordiv" in str(n.target))
    out = Evaluator(rewriter.program).run([torch.randn(4, 3, 5)])[0]
    assert out.shape == (4, 3, 2)


def test_adding_a_weight_twice_is_refused() -> None:
    program = capture(nn.Linear(3, 2), (torch.randn(1, 3),))
    rewriter = Rewriter(program, "test")
    (linear,) = rewriter.program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert not rewriter.modified
    with pytest.raises(VerifyError, match="'weight' exists already"):
        rewriter.add_weight("weight", torch.zeros(2), linear)
    node = rewriter.add_weight("extra", torch.zeros(2), linear)
    assert node.meta["val"].shape == (2,)
    assert rewriter.modified
    assert "extra" not in program.info


def test_an_added_call_stands_where_the_one_that_it_is_like_stood() -> None:
    program = capture(nn.Linear(3, 2), (torch.randn(5, 3),), dynamic_shapes=({0: "rows"},))
    rewriter = Rewriter(program, "test")
    (linear,) = rewriter.program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    node = rewriter.add_call(torch.ops.aten.relu.default, (linear.args[0],), like=linear)
    assert node.meta["val"].shape == linear.args[0].meta["val"].shape
    assert node.next is linear
    assert (node.stack_trace, node.meta["from_pass"]) == (linear.stack_trace, "test")
    assert "from_pass" not in linear.meta
    with pytest.raises(VerifyError, match="does not run"):
        rewriter.add_call(torch.ops.aten.mm.default, (linear, linear), like=linear)


def test_a_tied_weight_is_read_before_it_is_used_and_keeps_both_names() -> None:
    torch.manual_seed(0)
    analysis = analyze(capture(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)), (torch.randn(2, 3),)))
    rewriter = Rewriter(analysis.program, "test")
    rewriter.tie("2.weight", "0.weight")
    verify(rewriter.program, analysis.program)
    assert set(rewriter.program.info) == {"0.bias", "2.weight", "2.bias"} and rewriter.modified
    assert rewriter.program.info["2.weight"].aliases == ("0.weight",)
    module = rewriter.program.module()
    assert module.get_parameter("0.weight") is module.get_parameter("2.weight")
    with pytest.raises(VerifyError, match="differ in shape or type"):
        rewriter.tie("2.weight", "2.bias")
