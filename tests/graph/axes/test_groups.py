"""Coupled groups of small models, against what one knows by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Group, analyze
from fxslim.graph.axes.notation import Symmetry
from fxslim.graph.axes.roles import KINDS
from fxslim.graph.capture import capture
from fxslim.graph.errors import AnalysisError
from tests.graph.axes import tiny
from tests.graph.axes.tiny import MODELS, analysis_of


@dataclass(frozen=True)
class Expected:
    """One prunable group: its name is the key of the table."""

    kind: str
    size: int
    symmetry: str
    sites: str  # `weight[dim]` or `weight[dim] as layout`, in the order of printing
    batch: tuple[int, ...] = ()  # sizes of the batch axes
    exact: bool = True


TABLE: dict[type[nn.Module], dict[str, Expected]] = {
    tiny.ResidualMLP: {
        "embed.weight[0]": Expected(
            "residual stream",
            8,
            "permutation",
            "embed.weight[0], down.weight[0], embed.bias[0], norm.weight[0], norm.bias[0], "
            "up.weight[1], down.bias[0], head.weight[1]",
            exact=False,
        ),
        "up.weight[0]": Expected("neurons", 12, "permutation", "up.weight[0], up.bias[0], down.weight[1]"),
    },
    tiny.GatedFFN: {
        "gate.weight[0]": Expected(
            "neurons", 12, "permutation", "gate.weight[0], up.weight[0], up.bias[0], down.weight[1]"
        ),
    },
    tiny.Attention: {
        "q.weight[0].heads": Expected(
            "heads",
            3,
            "permutation",
            "q.weight[0] as *·4, k.weight[0] as *·4, v.weight[0] as *·5, q.bias[0] as *·4, "
            "k.bias[0] as *·4, v.bias[0] as *·5, "
            "o.weight[1] as *·5",
        ),
        "q.weight[0].query-key-dims": Expected(
            "query-key dims",
            4,
            "general",
            "q.weight[0] as 3·*, k.weight[0] as 3·*, q.bias[0] as 3·*, k.bias[0] as 3·*",
            (3,),
        ),
        "v.weight[0].value-dims": Expected(
            "value dims", 5, "general", "v.weight[0] as 3·*, v.bias[0] as 3·*, o.weight[1] as 3·*", (3,)
        ),
    },
    tiny.RotaryGQA: {
        "q.weight[0].key-value-heads": Expected(
            "key-value heads",
            2,
            "permutation",
            "q.weight[0] as *·3·[4|4], k.weight[0] as *·[4|4], v.weight[0] as *·8, o.weight[1] as *·3·8",
        ),
        "q.weight[0].heads": Expected(
            "heads", 3, "permutation", "q.weight[0] as 2·*·[4|4], o.weight[1] as 2·*·8", (2,)
        ),
        "q.weight[0].rotary-pairs": Expected(
            "rotary pairs", 4, "paired", "q.weight[0] as 2·3·[*|*], k.weight[0] as 2·[*|*], freq[0]"
        ),
        "v.weight[0].value-dims": Expected(
            "value dims", 8, "general", "v.weight[0] as 2·*, o.weight[1] as 2·3·*", (2,)
        ),
    },
    tiny.Dense: {
        "a.weight[0]": Expected("channels", 4, "scaling", "a.weight[0], a.bias[0], b.weight[1], c.weight[1] as [*|6]"),
        "b.weight[0]": Expected("channels", 6, "scaling", "b.weight[0], b.bias[0], c.weight[1] as [4|*]"),
    },
    tiny.UNet: {
        "enter.weight[0]": Expected(
            "channels", 4, "permutation", "enter.weight[0], enter.bias[0], inner.weight[1], leave.weight[1] as [5|*]"
        ),
        "inner.weight[0]": Expected("channels", 6, "permutation", "inner.weight[0], inner.bias[0], up.weight[0]"),
        "up.weight[1]": Expected("channels", 5, "general", "up.weight[1], up.bias[0], leave.weight[1] as [*|4]"),
    },
    tiny.Shuffle: {
        "a.weight[0].channels": Expected(
            "channels", 3, "scaling", "a.weight[0] as *·4, a.bias[0] as *·4, b.weight[1] as 4·*"
        ),
        "a.weight[0].channels.2": Expected(
            "channels", 4, "scaling", "a.weight[0] as 3·*, a.bias[0] as 3·*, b.weight[1] as *·3", (3,)
        ),
    },
    tiny.Flatten: {
        "conv.weight[0]": Expected("channels", 4, "scaling", "conv.weight[0], conv.bias[0], head.weight[1] as *·6·6"),
    },
    tiny.SqueezeExcite: {
        "enter.weight[0]": Expected(
            "channels",
            8,
            "permutation",
            "enter.weight[0], up.weight[0], enter.bias[0], leave.weight[1], down.weight[1], up.bias[0]",
        ),
        "down.weight[0]": Expected("channels", 4, "scaling", "down.weight[0], down.bias[0], up.weight[1]"),
    },
    tiny.Separable: {
        "expand.weight[0]": Expected(
            "channels",
            6,
            "permutation",
            "expand.weight[0], depth.weight[0], expand.bias[0], depth.bias[0], norm.weight[0], norm.bias[0], "
            "project.weight[1], "
            "norm.running_mean[0], norm.running_var[0]",
        ),
    },
    tiny.Grouped: {
        "enter.weight[0].channels": Expected(
            "channels",
            2,
            "permutation",
            "enter.weight[0] as *·4, mid.weight[0] as *·6, enter.bias[0] as *·4, mid.bias[0] as *·6, "
            "leave.weight[1] as *·6",
        ),
        "enter.weight[0].channels.2": Expected(
            "channels", 4, "scaling", "enter.weight[0] as 2·*, enter.bias[0] as 2·*, mid.weight[1]", (2,)
        ),
        "mid.weight[0].channels": Expected(
            "channels", 6, "scaling", "mid.weight[0] as 2·*, mid.bias[0] as 2·*, leave.weight[1] as 2·*", (2,)
        ),
    },
    tiny.LoRA: {"down.weight[0]": Expected("rank", 3, "general", "down.weight[0], up.weight[1]")},
    tiny.Cache: {
        "q.weight[0].heads": Expected(
            "heads", 3, "permutation", "q.weight[0] as *·4, k.weight[0] as *·4, v.weight[0] as *·4, o.weight[1] as *·4"
        ),
        "q.weight[0].query-key-dims": Expected(
            "query-key dims", 4, "general", "q.weight[0] as 3·*, k.weight[0] as 3·*", (3,)
        ),
        "v.weight[0].value-dims": Expected("value dims", 4, "general", "v.weight[0] as 3·*, o.weight[1] as 3·*", (3,)),
    },
}


@pytest.mark.parametrize("model", TABLE, ids=lambda m: m.__name__)
def test_prunable_groups(model: type[nn.Module]) -> None:
    found = {
        g.name: Expected(
            g.kind, g.size, str(g.symmetry), ", ".join(map(str, g.sites)), tuple(a.size for a in g.batch), g.exact
        )  # type: ignore[misc]
        for g in analysis_of(model).prunable
    }
    assert found == TABLE[model]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_invariants(model: type[nn.Module]) -> None:
    analysis = analysis_of(model)
    names = [g.name for g in analysis.groups]
    assert len(names) == len(set(names))
    for group in analysis.groups:
        assert group.kind in KINDS and group.size > 1
        assert analysis.group(group.name) is group
        assert group.prunable == (group.fixed is None) == (group in analysis.prunable)
        for site in group.sites:
            shape = analysis.program.info[site.weight].shape
            assert site.role in ("produces", "consumes", "carries")
            assert site.offset + (group.size - 1) * site.stride < shape[site.dim]
            assert "*" in site.layout


def group(model: type[nn.Module], name: str) -> Group:
    return analysis_of(model).group(name)


def test_a_group_prints_as_a_chain() -> None:
    text = str(group(tiny.ResidualMLP, "up.weight[0]"))
    assert text == (
        "up.weight[0] (neurons, 12, exact, symmetry permutation): up.weight[0] = silu[2] = up.bias[0] = down.weight[1]"
    )


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.up(x)))


def test_the_chain_of_two_weights() -> None:
    analysis = analyze(capture(Plain(), (torch.randn(2, 3, 4),)))
    assert str(analysis.group("up.weight[0]")).endswith(": up.weight[0] = silu[2] = down.weight[1]")


def test_the_interface_is_fixed_with_its_reason() -> None:
    assert "dimension 2 of `x`, an input of the user" in str(group(tiny.ResidualMLP, "embed.weight[1]").fixed)
    assert "dimension 2 of the output `output`" in str(group(tiny.ResidualMLP, "head.weight[0]").fixed)
    assert not group(tiny.ResidualMLP, "head.weight[0]").prunable


def test_inexact_groups_name_the_place() -> None:
    (reason,) = group(tiny.ResidualMLP, "embed.weight[0]").inexact
    assert "layer_norm" in reason.node and reason.rule == "ba bb da, da, da -> ba bb da | tied da"


def test_roles_and_strides() -> None:
    sites = {s.weight: s for s in group(tiny.Attention, "v.weight[0].value-dims").sites}
    assert {n: s.role for n, s in sites.items()} == {
        "v.weight": "produces",
        "v.bias": "carries",
        "o.weight": "consumes",
    }
    heads = {s.weight: s for s in group(tiny.Attention, "q.weight[0].heads").sites}
    assert heads["v.weight"].stride == 5 and heads["q.weight"].stride == 4 and sites["v.weight"].stride == 1


def test_offsets_in_a_fused_projection() -> None:
    (site,) = (s for s in group(tiny.FusedBySplit, "qkv.weight[0].value-dims").sites if s.weight == "qkv.weight")
    assert (site.offset, site.stride, site.layout) == (24, 1, "[3·4|3·4|3·*]")


def test_consumers_sum_over_the_group() -> None:
    assert group(tiny.ResidualMLP, "up.weight[0]").consumers == ("linear_2",)
    assert set(group(tiny.Dense, "a.weight[0]").consumers) == {"conv2d_1", "conv2d_2"}


def test_fused_by_split_keeps_values_apart_from_queries() -> None:
    kinds = {g.name: (g.kind, g.size) for g in analysis_of(tiny.FusedBySplit).prunable}
    assert kinds == {
        "qkv.weight[0].heads": ("heads", 3), "qkv.weight[0].query-key-dims": ("query-key dims", 4),
        "qkv.weight[0].value-dims": ("value dims", 4),
    }  # fmt: skip


def test_fused_by_view_ties_queries_keys_and_values() -> None:
    kinds = {g.name: (g.kind, g.size) for g in analysis_of(tiny.FusedByView).prunable}
    assert kinds == {"qkv.weight[0].heads": ("heads", 3), "qkv.weight[0].query-key-dims": ("query-key dims", 4)}
    assert "every position is a result of its own" in str(group(tiny.FusedByView, "qkv.weight[0].features").fixed)


def test_tied_embedding() -> None:
    analysis = analysis_of(tiny.TiedEmbedding)
    (vocabulary,) = (g for g in analysis.groups if g.size == 20)
    (stream,) = (g for g in analysis.groups if g.size == 8)
    assert not vocabulary.prunable and "indices choose among its rows" in str(vocabulary.fixed)
    assert stream.prunable and stream.exact
    shared = vocabulary.sites[0].weight
    assert {(s.weight, s.dim) for s in stream.sites} == {
        (shared, 1),
        ("mid.weight", 0),
        ("mid.weight", 1),
        ("mid.bias", 0),
    }


def test_caches_shrink_with_their_group() -> None:
    caches = {g.name: g.caches for g in analysis_of(tiny.Cache).prunable}
    assert caches == {
        "q.weight[0].heads": ("past_k", "past_v"), "q.weight[0].query-key-dims": ("past_k",),
        "v.weight[0].value-dims": ("past_v",),
    }  # fmt: skip


def test_unknown_operators_fix_and_are_reported() -> None:
    analysis = analysis_of(tiny.Unknown)
    assert analysis.unknown_ops == {"aten.linalg_cholesky_ex.default": 1}
    assert "an operator without a rule at linalg_cholesky_ex" in str(analysis.group("b.weight[1]").fixed)
    assert analysis.group("b.weight[0]").prunable  # behind it, life goes on


def test_an_unknown_name() -> None:
    with pytest.raises(AnalysisError, match="there is no group 'nothing'"):
        analysis_of(tiny.ResidualMLP).group("nothing")


def test_dynamic_sizes_change_no_group() -> None:
    shapes = {"x": {0: "batch", 1: "sequence"}}
    model = tiny.Attention()
    dynamic = analyze(capture(model, (torch.randn(2, 5, 8),), dynamic_shapes=shapes))
    found = {g.name: (g.kind, g.size, g.symmetry, tuple(map(str, g.sites)), g.exact) for g in dynamic.prunable}
    static = {
        g.name: (g.kind, g.size, g.symmetry, tuple(map(str, g.sites)), g.exact)
        for g in analysis_of(tiny.Attention).prunable
    }
    assert found == static


def test_shapes_are_enough() -> None:
    with torch.device("meta"):
        analysis = analyze(capture(tiny.GatedFFN(), (torch.randn(2, 8),)))
    assert [g.name for g in analysis.prunable] == ["gate.weight[0]"]


def test_low_rank_pairs_take_any_basis() -> None:
    assert group(tiny.LoRA, "down.weight[0]").symmetry is Symmetry.GENERAL


class Scores(nn.Module):
    """Nothing with a weight sums over the shared width: a dot product of two activations, a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 7), nn.Linear(4, 7), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.a(x) * self.b(y)).sum(-1), self.c(x).amax(-1)


def test_an_axis_that_ends_in_a_reduction_may_be_cut() -> None:
    analysis = analyze(capture(Scores(), (torch.randn(2, 3), torch.randn(2, 4))))
    assert {(g.size, g.exact) for g in analysis.prunable} == {(7, True), (5, False)}


class Experts(nn.Module):
    """A mixture: the two best experts of each row, chosen among stacked matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(6, 4), nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 9, 6)), nn.Parameter(torch.randn(4, 6, 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, best = self.router(x).softmax(-1).topk(2)
        chosen, y = best.reshape(-1), x.repeat_interleave(2, 0)
        hidden = torch.bmm(self.up[chosen], y.unsqueeze(-1)).relu()
        y = torch.bmm(self.down[chosen], hidden).squeeze(-1) * weights.reshape(-1, 1)
        return self.out(y.view(-1, 2, 6).sum(1))


def test_experts_lose_neurons_and_the_router_stays() -> None:
    analysis = analyze(capture(Experts(), (torch.randn(5, 6),)))
    found = {g.name: (g.kind, g.size, g.exact) for g in analysis.prunable}
    assert found == {"up[1]": ("neurons", 9, True), "down[1]": ("rank", 6, True)}
    assert "names positions" in str(analysis.group("router.weight[0]").fixed)
    roles = {str(s): s.role for s in analysis.group("up[1]").sites}
    assert roles == {"up[1]": "produces", "down[2]": "consumes"}


class Convolutions(nn.Module):
    """Two convolutions and what lies between them."""

    def __init__(self, between: nn.Module, bias: bool) -> None:
        super().__init__()
        self.between = between
        self.a, self.b = nn.Conv2d(3, 4, 3, bias=bias), nn.Conv2d(4, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.between(self.a(x)))


@pytest.mark.parametrize(
    ("between", "bias", "kind"),
    [
        (nn.Identity(), False, "rank"),
        (nn.AvgPool2d(2), False, "rank"),  # each channel by itself, and linear: any basis of the channels will do
        (nn.Identity(), True, "channels"),
        (nn.ReLU(), False, "channels"),
        (nn.BatchNorm2d(4), False, "channels"),
        (nn.Conv2d(4, 4, 1, groups=4, bias=False), False, "channels"),
    ],
)
def test_two_convolutions_with_nothing_of_their_own_between_have_a_rank(
    between: nn.Module, bias: bool, kind: str
) -> None:
    analysis = analyze(capture(Convolutions(between, bias).eval(), (torch.randn(2, 3, 8, 8),)))
    assert [(g.kind, g.size) for g in analysis.prunable] == [(kind, 4)]
