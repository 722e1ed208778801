"""The answers to "why are these two dimensions tied?"."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import AnalysisError
from tests.graph.axes.tiny import Cache, FusedBySplit, ResidualMLP, RotaryGQA, TiedEmbedding, Unknown, analysis_of


def test_two_sides_of_a_layer() -> None:
    lines = analysis_of(ResidualMLP).explain("up.weight[0]", "down.weight[1]").splitlines()
    assert lines[0] == "up.weight[0] and down.weight[1] are tied: neurons (12 positions, group up.weight[0])"
    assert [x.strip() for x in lines if x.startswith("  at")] == [
        "at linear_1 (aten.linear.default)", "at linear_2 (aten.linear.default)",
    ]  # fmt: skip
    assert "      rule ba bb k, n k, n -> ba bb n | permutation ba bb" in lines
    assert lines[-1] == "  on its way it passes silu[2]"


def test_the_line_of_the_model_is_named() -> None:
    text = analysis_of(ResidualMLP).explain("embed.weight[0]", "head.weight[1]")
    assert "at add (aten.add.Tensor)" in text
    assert "tiny.py:" in analysis_of(RotaryGQA).explain("q.weight[0]", "k.weight[0]")


def test_what_both_went_through_later_is_left_out() -> None:
    text = analysis_of(RotaryGQA).explain("q.weight[0]", "k.weight[0]")
    heads = text.split("are tied: rotary pairs")[0]
    assert "linear_3" not in heads  # the output projection meets the heads after the queries met the keys


def test_every_shared_axis_has_its_chain() -> None:
    text = analysis_of(FusedBySplit).explain("qkv.weight[0]", "o.weight[1]")
    assert text.count("are tied:") == 2
    assert "heads (3 positions" in text and "value dims (4 positions" in text
    assert "there 36 became [12|12|12]" in text and "there 12 became 3·4" in text


def test_rotary_frequencies_are_tied_to_queries() -> None:
    text = analysis_of(RotaryGQA).explain("q.weight[0]", "freq[0]")
    assert "rotary pairs (4 positions" in text and "at slice_1 (aten.slice.Tensor)" in text


def test_not_tied() -> None:
    text = analysis_of(ResidualMLP).explain("up.weight[0]", "up.weight[1]")
    assert text.startswith("up.weight[0] and up.weight[1] are not tied.\n")
    assert "up.weight[0] belongs to up.weight[0]: neurons, 12 positions" in text
    assert "up.weight[1] belongs to embed.weight[0]: residual stream, 8 positions" in text


def test_a_dimension_and_itself() -> None:
    text = analysis_of(ResidualMLP).explain("up.weight[0]", "up.weight[-2]")
    assert "they are one dimension" in text


def test_one_dimension() -> None:
    assert analysis_of(ResidualMLP).explain("down.weight[1]").splitlines() == [
        "down.weight[1] belongs to up.weight[0]: neurons, 12 positions",
        "  produces   up.weight[0]",
        "  carries    up.bias[0]",
        "  consumes   down.weight[1]",
        "  passes     silu[2]",
        "  summed by  linear_2",
        "  symmetry   permutation",
        "  exact      removing positions equals masking them",
    ]


def test_where_it_is_not_exact() -> None:
    text = analysis_of(ResidualMLP).explain("norm.bias[0]")
    assert "  inexact    `da` is tied at layer_norm (aten.layer_norm.default)" in text
    assert "exact      removing" not in text


def test_why_it_is_fixed() -> None:
    text = analysis_of(Unknown).explain("b.weight[1]")
    assert "fixed      an operator without a rule at linalg_cholesky_ex" in text
    assert "symmetry" not in text


def test_batch_axes_and_caches_by_name() -> None:
    text = analysis_of(Cache).explain("v.weight[0].value-dims")
    assert "batch      may be selected differently for each of q.weight[0].heads (3)" in text
    assert "caches     past_v change their shape with it" in text


def test_tied_names_are_known() -> None:
    analysis = analysis_of(TiedEmbedding)
    (name,) = {"head.weight", "embed.weight"} & set(analysis.program.weight_nodes())
    alias = "head.weight" if name == "embed.weight" else "embed.weight"
    assert analysis.explain(f"{alias}[1]").split(" belongs")[1] == analysis.explain(f"{name}[1]").split(" belongs")[1]


class OneByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_a_dimension_of_one_position() -> None:
    analysis = analyze(capture(OneByOne(), (torch.randn(2, 3, 4, 4),)))
    assert analysis.explain("conv.weight[2]") == "conv.weight[2] has one position: nothing can be removed from it."


@pytest.mark.parametrize(
    ("name", "hint"), [("up.wieght[0]", r"did you mean up.weight\[0\]"), ("zzzz", "fxslim groups")]
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(AnalysisError, match=rf"(?s)no weight dimension and no group .*{hint}"):
        analysis_of(ResidualMLP).explain(name)
    with pytest.raises(AnalysisError):
        analysis_of(ResidualMLP).explain("up.weight[0]", name)


def test_a_dimension_that_the_weight_does_not_have() -> None:
    with pytest.raises(AnalysisError, match=r"'up.weight' has no dimension 3: it has 2"):
        analysis_of(ResidualMLP).explain("up.weight[3]")
