"""Norms keep their statistic alone: what they scaled, shifted and centred is done by the weights around them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, Group, analyze
from fxslim.graph.axes.notation import Symmetry
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.basis import principal_axes
from fxslim.passes.change_basis import ChangeBasis
from fxslim.passes.fold_norms import FoldNorms
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prove import prove
from fxslim.passes.subspaces import find_subspaces
from tests.passes.conftest import Analyse

EXACT = 1e-12  # float64 rounding, relative to an output's largest magnitude
FELT = 1e-3  # the change of an output that a cut must make
D, IDS = 12, 9


class Root(nn.Module):
    """RMSNorm as most models write it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Squares(nn.Module):
    """The same by a product, with 1 + weight as the scale."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm, "written": Root, "squares": Squares}


class Residual(nn.Module):
    """Two branches beside a stream, each behind a norm, and a head behind a last one."""

    def __init__(self, norm: type[nn.Module], bias: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(IDS, D)
        self.norms = nn.ModuleList([norm(D) for _ in range(3)])
        self.ups = nn.ModuleList([nn.Linear(D, 20, bias=bias) for _ in range(2)])
        self.downs = nn.ModuleList([nn.Linear(20, D, bias=bias) for _ in range(2)])
        self.head = nn.Linear(D, IDS, bias=bias)

    def enter(self, ids: Tensor) -> Tensor:
        return self.table(ids)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.enter(ids)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=False):
            x = x + down(F.gelu(up(norm(x))))
        return self.head(self.norms[2](x))


class Tied(Residual):
    """The head reads by the embedding's weight."""

    def __init__(self) -> None:
        super().__init__(nn.LayerNorm, bias=False)
        self.head.weight = self.table.weight


class Behind(Residual):
    """The skip connection starts behind the norm, as in the first transformers."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norms[0](self.enter(ids))
        x = self.norms[1](x + self.downs[0](F.gelu(self.ups[0](x))))
        x = self.norms[2](x + self.downs[1](F.gelu(self.ups[1](x))))
        return self.head(x)


class Bent(Residual):
    """Something else than a linear map acts on the stream."""

    def enter(self, ids: Tensor) -> Tensor:
        return torch.relu(self.table(ids))


class Returned(Residual):
    """The stream is also read without a norm: its mean matters."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.enter(ids)
        x = x + self.downs[0](F.gelu(self.ups[0](self.norms[0](x))))
        return self.head(x)


class Convolved(nn.Module):
    """A convolution, which cannot take a shift at its borders, reads what a linear map reads as well."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.last = nn.Linear(5, D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.wide, self.head = nn.Conv1d(D, D, 3, padding=1), nn.Linear(D, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.norm(x)
        x = x + self.wide(y.transpose(1, 2)).transpose(1, 2)
        return self.head(self.last(x))


def opened(model: nn.Module, analyse: Analyse, *inputs: Tensor) -> tuple[Analysis, Analysis]:
    """The model in float64 with no norm at its initial values: its analysis, and that behind the pass."""
    torch.manual_seed(0)
    model = model.double().eval()
    for p in model.parameters():
        if p.dim() == 1:
            p.data = torch.randn_like(p) + 0.5
    before = analyse(model, *(inputs or (torch.arange(12).reshape(2, 6) % IDS,)))
    result = FoldNorms()(before)
    return before, analyze(result.program)


def stream_of(analysis: Analysis) -> Group:
    (found,) = [s for s in find_subspaces(analysis, analysis.prunable)[0] if s.stream]
    return found.group


def assert_same(a: Analysis, b: Analysis) -> None:
    inputs = a.program.example_inputs
    for wanted, got in zip(Evaluator(a.program).run(inputs), Evaluator(b.program).run(inputs), strict=True):
        assert float((wanted - got).abs().max()) <= EXACT * float(wanted.abs().max())


def assert_exact(analysis: Analysis, group: Group) -> None:
    """A cut of the group is proven."""
    mask = torch.arange(group.size) % 3 != 1
    proof = prove(analysis, Plan(analysis.program.fingerprint(), (Cut.from_mask(group, mask),)))
    assert proof.ok and proof.exact and proof.max_error <= EXACT and proof.effect > FELT


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "bare"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_stream_between_norms_can_be_rotated_and_cut(norm: str, bias: bool, analyse: Analyse) -> None:
    before, after = opened(Residual(NORMS[norm], bias), analyse)
    assert not any(s.stream for s in find_subspaces(before, before.groups)[0])
    group = stream_of(after)
    assert group.symmetry is Symmetry.ORTHOGONAL and group.size == D and group.exact
    assert not any("norm" in name for name in after.program.info), "scales and shifts are gone"
    assert not any("map" in name for name in after.program.info), "every reader took its part"
    shifted = norm == "layer_norm" and not bias  # readers without a bias get one
    assert after.program.parameters() <= before.program.parameters() + (2 * 20 + IDS if shifted else 0)
    assert_same(before, after)
    assert_exact(after, group)


def test_rotations_of_the_stream_change_nothing(analyse: Analyse) -> None:
    before, after = opened(Residual(nn.LayerNorm), analyse)
    (subspace,) = [s for s in find_subspaces(after, after.prunable)[0] if s.stream]
    root = torch.randn(D, D, dtype=torch.float64)
    basis = principal_axes(root @ root.T)
    rotated = analyze(ChangeBasis.of([subspace], {subspace.group.name: basis})(after).program)
    assert any(not torch.equal(rotated.program.weights[n], w) for n, w in after.program.weights.items())
    assert_same(before, rotated)


def test_a_tied_head_and_its_embedding_are_parted_from_the_stream(analyse: Analyse) -> None:
    before, after = opened(Tied(), analyse)
    group = stream_of(after)
    assert "table.weight" not in {s.weight for s in group.sites}
    maps = [n for n in after.program.info if n.endswith("_map")]
    assert len(maps) == 2 and {after.program.info[n].shape for n in maps} == {(D, D)}
    assert_same(before, after)
    assert_exact(after, group)


def test_a_skip_behind_the_norm_gets_a_matrix_of_its_own(analyse: Analyse) -> None:
    before, after = opened(Behind(nn.LayerNorm), analyse)
    streams = [s.group for s in find_subspaces(after, after.prunable)[0] if s.stream]
    assert len(streams) == 3, "each part between two norms has a basis of its own"
    assert sum(n.endswith("_map") for n in after.program.info) == 2
    assert_same(before, after)
    for group in streams:
        assert_exact(after, group)


def test_a_convolution_reads_through_a_matrix(analyse: Analyse) -> None:
    before, after = opened(Convolved(), analyse, torch.randn(2, 7, 5, dtype=torch.float64))
    assert sum(n.endswith("_map") for n in after.program.info) == 1
    assert_same(before, after)
    assert_exact(after, stream_of(after))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        pytest.param(lambda: Bent(nn.LayerNorm), "a relu acts on the stream", id="bent"),
        pytest.param(lambda: nn.Sequential(nn.Embedding(IDS, D), nn.Linear(D, 3)), "there is no norm", id="none"),
    ],
)
def test_what_is_no_stream_stays_as_it_is(model: type[nn.Module], why: str, analyse: Analyse) -> None:
    before = analyse(model().eval(), torch.arange(12).reshape(2, 6) % IDS)
    assert not FoldNorms()(before).modified, why


def test_a_stream_that_is_read_without_a_norm_keeps_its_mean(analyse: Analyse) -> None:
    before, after = opened(Returned(nn.LayerNorm), analyse)
    assert not any(s.stream for s in find_subspaces(after, after.prunable)[0])
    assert_same(before, after)
    before, after = opened(Returned(nn.RMSNorm), analyse)  # without a mean there is nothing to miss
    assert_same(before, after)
    assert_exact(after, stream_of(after))


def test_half_precision_keeps_its_norms(analyse: Analyse) -> None:
    model = Residual(nn.LayerNorm).bfloat16().eval()
    assert not FoldNorms()(analyse(model, torch.arange(12).reshape(2, 6) % IDS)).modified


class Given(nn.Module):
    """A stream that begins with an input of the user, or with zeros, beside what a weight makes."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.enter, self.norms = nn.Linear(D, D), nn.ModuleList([norm(D) for _ in range(2)])
        self.up, self.down, self.head = nn.Linear(D, 20), nn.Linear(20, D), nn.Linear(D, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.enter(x)
        y = y + self.down(F.gelu(self.up(self.norms[0](y))))
        return self.head(self.norms[1](y))


@pytest.mark.parametrize("start", [torch.zeros, torch.randn])
def test_the_mean_of_an_input_is_not_taken_off(start: Callable[..., Tensor], analyse: Analyse) -> None:
    before, after = opened(Given(nn.LayerNorm), analyse, start(3, D, dtype=torch.float64))
    x = torch.randn(3, D, dtype=torch.float64)
    (wanted,), (got,) = Evaluator(before.program).run([x]), Evaluator(after.program).run([x])
    assert float((wanted - got).abs().max()) <= EXACT * float(wanted.abs().max())


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            lambda: nn.Sequential(nn.LayerNorm(D, elementwise_affine=False), nn.Linear(D, 3, bias=False)), id="linear"
        ),
        pytest.param(lambda: nn.LayerNorm(D), id="alone"),  # found by the fuzzer, seed 42430
    ],
)
def test_a_norm_on_an_input_stays_right(model: Callable[[], nn.Module], analyse: Analyse) -> None:
    before, after = opened(model(), analyse, torch.randn(5, D, dtype=torch.float64) + 3)
    assert_same(before, after)


class Shared(Residual):
    """One norm, or one scale, in several places."""

    def __init__(self, how: str) -> None:
        super().__init__(nn.LayerNorm if how != "scale" else nn.RMSNorm)
        self.how, self.g = how, nn.Parameter(torch.randn(D))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.enter(ids)
        if self.how == "scale":
            return self.head(self.g * (self.norms[0](x) * self.g))
        if self.how == "behind":
            x = self.norms[0](x)
            return self.head(self.norms[0](x + self.downs[0](F.gelu(self.ups[0](x)))))
        x = x + self.downs[0](F.gelu(self.ups[0](self.norms[0](x))))
        return self.head(self.norms[0](x))


@pytest.mark.parametrize(("how", "maps"), [("before", 0), ("behind", 1), ("scale", None)])
def test_a_norm_may_be_used_twice(how: str, maps: int | None, analyse: Analyse) -> None:
    before, after = opened(Shared(how), analyse)
    assert_same(before, after)
    assert maps is None or sum(n.endswith("_map") for n in after.program.info) == maps


class Outer(nn.Module):
    """Products with as many weights as the stream is wide that are no scale of it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm, self.head = how, nn.RMSNorm(D), nn.Linear(D, 3)
        self.w = nn.Parameter(torch.randn(D) if how == "outer" else torch.randn(D, 1))
        self.enter = nn.Linear(5, 1 if how == "outer" else D)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.enter(x) * self.w))


@pytest.mark.parametrize(("how", "shape"), [("outer", (2, 5)), ("rows", (D, 5))])
def test_a_product_that_is_no_scale_is_left_alone(how: str, shape: tuple[int, ...], analyse: Analyse) -> None:
    before, after = opened(Outer(how), analyse, torch.randn(shape, dtype=torch.float64))
    assert_same(before, after)


class Named(nn.Module):
    """Parameters that are not called weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(IDS, D), nn.LayerNorm(D)
        self.W = nn.Parameter(torch.randn(4, D))

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(self.norm(self.table(ids)), self.W)


def test_an_added_bias_has_a_name_that_a_module_can_have(analyse: Analyse) -> None:
    before, after = opened(Named(), analyse)
    assert_same(before, after)
    assert "W_bias" in after.program.info
    after.program.module()  # would refuse `W.bias` beside a parameter `W`


def test_a_mean_in_another_type_is_left_alone(analyse: Analyse) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(IDS, D), nn.Linear(D, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids)
            mean = x.pow(2).mean(-1, keepdim=True, dtype=torch.float64)
            return self.head(x * torch.rsqrt(mean + 1e-6).float())

    before = analyse(Wide().eval(), torch.arange(12).reshape(2, 6) % IDS)
    assert not FoldNorms()(before).modified
