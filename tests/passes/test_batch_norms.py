"""Running statistics of batch norms behind changed layers: by hand, and judged by data that nobody saw."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import apply_plan, compress
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.axes.select import Selection
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.batch_norms import Compared, find_batch_norms, reestimate
from fxslim.passes.consumers import find_consumers
from fxslim.passes.planner import make_plan
from fxslim.passes.restore import Restoration, restore_weights
from tests.plans import plan_of

EXACT = 1e-9  # float64 rounding
EPS = 1e-5

Batches = list[list[Tensor]]


class Chain(nn.Module):
    """A convolution without a bias between two norms, as in every residual network."""

    def __init__(self, kernel: int = 1) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.b, self.m = nn.Conv2d(8, 4, kernel, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.m(self.b(torch.relu(self.n(self.a(x)))))


def trained(model: nn.Module) -> nn.Module:
    """With running statistics and affine parts that are not those of a fresh norm."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model.double().eval()


def images(count: int = 9, rows: int = 6) -> Batches:
    return [[torch.randn(rows, 3, 5, 5).double()] for _ in range(count)]


def analysed(model: nn.Module, x: Tensor) -> Analysis:
    return analyze(capture(trained(model), (x,), dynamic_shapes=({0: "batch"},)))


def cut(analysis: Analysis, name: str, *removed: int) -> Selection:
    """The selection that removes some positions of one group."""
    from fxslim.passes.plan import Cut

    group = analysis.group(name)
    mask = torch.ones(group.size, dtype=torch.bool)
    mask[list(removed)] = False
    return plan_of(analysis, [Cut.from_mask(group, mask)]).selection(analysis)


def pair_of(scale: float, shift: float, count: int = 400) -> tuple[Compared, Tensor, Tensor]:
    """Original inputs of three channels, and the same changed by a factor and a summand."""
    y = torch.randn(count, 3).double() * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([0.0, 1.0, -3.0])
    x = scale * y + shift
    return Compared.of(torch.stack([x, y])), x, y


def normed(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (x - mean) / (variance + EPS).sqrt()


OLD = (torch.tensor([0.3, 0.9, -2.0]).double(), torch.tensor([1.1, 3.0, 0.4]).double())


@pytest.mark.parametrize(("scale", "shift", "changed"), [(1.0, 0.7, "mean"), (0.6, 0.7, "mean and variance")])
def test_what_was_scaled_and_shifted_comes_out_as_before(scale: float, shift: float, changed: str) -> None:
    """Statistics move with the input, whatever they were, not to those of the sample."""
    seen, x, y = pair_of(scale, shift)
    found = reestimate(OLD, OLD, None, EPS, seen, pair_of(scale, shift, 50)[0])
    assert found.before > 0.05 and found.after < EXACT
    torch.testing.assert_close(normed(x, found.mean, found.variance), normed(y, *OLD), rtol=1e-7, atol=1e-7)
    assert scale != 1.0 or found.changed.startswith(changed)
    assert scale == 1.0 or found.changed == changed


def test_errors_are_those_of_the_values() -> None:
    seen, x, y = pair_of(0.6, 0.7)
    a, b, c, d = torch.randn(4, 3).double()
    torch.testing.assert_close(seen.errors(a, b, c, d), ((a * x + b) - (c * y + d)).square().mean(0), rtol=1e-9, atol=0)


def test_what_held_out_data_does_not_confirm_is_rejected() -> None:
    """The mean moves one way in what is learned from, the other way in what judges."""
    found = reestimate(OLD, OLD, None, EPS, pair_of(1.0, 0.7)[0], pair_of(1.0, -0.7)[0])
    assert not found.changed and found.reason.startswith("no other statistics")
    assert found.before == found.after > 0
    assert torch.equal(found.mean, OLD[0]) and torch.equal(found.variance, OLD[1])


def test_a_dead_channel_keeps_its_variance() -> None:
    seen, x, y = pair_of(0.6, 0.0)
    x[:, 1], y[:, 1] = 5.0, 2.0
    seen = Compared.of(torch.stack([x, y]))
    found = reestimate(OLD, OLD, None, EPS, seen, seen)
    assert found.changed == "mean and variance" and float(found.variance[1]) == float(OLD[1][1])
    torch.testing.assert_close(normed(x, found.mean, found.variance), normed(y, *OLD), rtol=1e-7, atol=1e-7)


def test_nothing_to_learn_from_is_said() -> None:
    empty = Compared.of(torch.zeros(2, 0, 3))
    assert reestimate(OLD, OLD, None, EPS, pair_of(1.0, 0.7)[0], empty).reason == "too few values"
    assert reestimate(OLD, OLD, None, EPS, empty, pair_of(1.0, 0.7)[0]).reason == "too few values"


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_constant_part_of_removed_channels_goes_into_the_running_mean(kernel: int) -> None:
    """Channels that are constant are removed: with the mean behind the convolution nothing is lost."""
    model, data = Chain(kernel), images()
    with torch.no_grad():
        model.a.weight[2:5] = 0
        model.a.bias[2:5] = 1.5  # type: ignore[index]
    analysis = analysed(model, data[0][0])
    with torch.no_grad():
        shift = analysis.program.weights["n.running_mean"]
        shift[2:5] = 0  # so that the norm lets the constant through
    found = restore_weights(analysis, cut(analysis, "a.weight[0]", 2, 3, 4), data, upstream="compressed")
    (row,) = found.rows
    assert row.accepted and row.before > 1e-3 and row.after < EXACT
    assert {"b.weight", "m.running_mean"} == found.weights.keys()
    assert error(analysis, found, images(2)) < EXACT


def error(analysis: Analysis, found: Restoration, data: Batches) -> float:
    """The relative squared error of the restored program with its removed units masked."""
    from fxslim.graph.evaluate import MaskedEvaluator

    whole, slim = Evaluator(analysis.program), MaskedEvaluator(analysis.axes, found.selection)
    for name, value in found.weights.items():
        slim.set_weight(name, value)
    pairs = [(whole.run(b)[0], slim.run(b)[0]) for b in data]
    return sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(a.var() * a.numel()) for a, _ in pairs)


class Sliced(nn.Module):
    """What is cut is summed over by a call that no refit knows; a norm stands behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.m = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 4, 2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.m(self.b(torch.relu(self.a(x))))


def test_a_norm_is_estimated_anew_where_no_refit_is() -> None:
    data = images()
    analysis = analysed(Sliced(), data[0][0])
    selection = cut(analysis, "a.weight[0]", 0, 1, 2, 3)
    found = restore_weights(analysis, selection, data)
    (norm,) = found.norms
    assert found.rows == () and norm.mean == "m.running_mean" and norm.changed and norm.after < 0.8 * norm.before
    assert norm.channels == 4 and norm.values == 9 * 6 * 36
    plain = Restoration({}, (), (), selection)
    other = images(2)
    assert error(analysis, found, other) < 0.8 * error(analysis, plain, other)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.c, self.out = Sliced(), nn.ConvTranspose2d(4, 3, 1), nn.BatchNorm2d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.c(self.first(x)))


def test_what_comes_later_sees_the_new_statistics() -> None:
    """The second norm starts from the error that the first one leaves with its new statistics."""
    data = images(2, 8)
    analysis = analysed(Twice(), data[0][0])
    found = restore_weights(analysis, cut(analysis, "first.a.weight[0]", 0, 1, 2, 3), data)
    first, second = found.norms
    assert first.changed
    kept = {n: w for n, w in found.weights.items() if n.startswith("first")}
    left = error(analysis, Restoration(kept, (), (), found.selection), data[1:])
    whole = Evaluator(analysis.program).run(data[1])[0]
    by_channel = whole.var((0, 2, 3), correction=0).mean()  # the report's unit; `error` has the variance of all
    assert second.before == pytest.approx(left * float(whole.var() / by_channel), rel=1e-6)


def test_everything_kept_changes_nothing() -> None:
    data = images(2)
    analysis = analysed(Chain(), data[0][0])
    none = restore_weights(analysis, Selection(), data)
    assert none.weights == {} and none.rows == () and none.norms == ()
    whole = restore_weights(analysis, cut(analysis, "a.weight[0]"), data)
    assert whole.norms == () and all(n.endswith(("b.weight", "m.running_mean")) for n in whole.weights)
    for name, value in whole.weights.items():
        torch.testing.assert_close(value, analysis.program.weights[name], rtol=1e-6, atol=1e-6)


class Reused(nn.Module):
    """One norm behind two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.m = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.m(self.c(torch.relu(self.m(self.b(torch.relu(self.a(x)))))))


def test_shared_statistics_stay_and_are_named() -> None:
    data = [[torch.randn(20, 5).double()] for _ in range(9)]
    analysis = analysed(Reused(), data[0][0])
    assert all(norm.reason for norm in find_batch_norms(analysis.program))
    assert all(c.mean is None for c in find_consumers(analysis.axes)[0])
    found = restore_weights(analysis, cut(analysis, "a.weight[0]", 1, 2, 3), data)
    assert len(found.norms) == 2 and not any(n.changed for n in found.norms)
    text = "m.running_mean: not estimated anew, its running statistics are used in several places"
    assert found.warnings == (text, text) and "m.running_mean" not in found.weights


class Read(nn.Module):
    """The convolution's result is also read beside the norm: its mean is no bias of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.m = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        return self.m(y) + y


class Instance(nn.Module):
    """An instance norm that uses running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, bias=False)
        self.m = nn.InstanceNorm2d(4, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.m(self.b(torch.relu(self.a(x))))


class Batchwise(Chain):
    """The norm takes the statistics of what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.BatchNorm2d(4, track_running_stats=False)


@pytest.mark.parametrize(
    ("build", "mean", "norms"),
    [(Chain, "m.running_mean", 2), (Read, None, 1), (Instance, "m.running_mean", 1)],
)
def test_which_means_stand_for_a_bias(build: Callable[[], nn.Module], mean: str | None, norms: int) -> None:
    analysis = analysed(build(), images(1)[0][0])
    found = {c.weight: c for c in find_consumers(analysis.axes)[0]}
    assert found["b.weight"].mean == mean and found["a.weight"].mean is None
    assert len(list(find_batch_norms(analysis.program))) == norms
    (_, bias), stored = found["b.weight"].parameters(analysis.program), analysis.program.weights
    if mean is not None:
        assert bias is not None and torch.equal(bias[0], -stored[mean])
        again = found["b.weight"].stored(analysis.program, found["b.weight"].matrix(stored["b.weight"]), bias)
        assert torch.equal(again[mean], stored[mean])


def test_statistics_of_what_comes_in_are_no_weights() -> None:
    model = Batchwise().double().eval()
    analysis = analyze(capture(model, (images(1)[0][0],), dynamic_shapes=({0: "batch"},)))
    assert [norm.mean for norm in find_batch_norms(analysis.program)] == ["n.running_mean"]


class Loud(nn.Module):
    """What the norm sees has a variance close to the largest number of float16."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.m = nn.Conv1d(1, 2, 1, bias=False), nn.ConvTranspose1d(2, 1, 1), nn.BatchNorm1d(1)
        with torch.no_grad():
            self.a.weight.fill_(1.0)
            self.b.weight.copy_(torch.tensor([[[2.0]], [[-1.0]]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.m(self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize(("variance", "fits"), [(1.0, True), (60000.0, False)])
def test_a_variance_that_float16_cannot_hold_is_not_taken(variance: float, fits: bool) -> None:
    """Without the second unit the norm sees twice as much, and needs four times the variance."""
    model = Loud().eval()
    model.m.running_var.fill_(variance)  # type: ignore[union-attr, operator]
    data = [[torch.rand(6, 1, 5).half()] for _ in range(9)]
    analysis = analyze(capture(model.half(), (data[0][0],), dynamic_shapes=({0: "batch"},)))
    found = restore_weights(analysis, cut(analysis, "a.weight[0]", 1), data)
    (norm,) = found.norms
    assert norm.changed == ("mean and variance" if fits else "")
    assert fits or norm.reason == "too large for torch.float16"
    assert all(w.dtype == torch.float16 for w in found.weights.values()) and bool(found.weights) == fits


def test_a_plan_and_its_restoration_in_one_agree_with_the_finished_plan() -> None:
    """Norms stand before the calls that decide their channels: what is decided later may not change them."""
    data = images()
    analysis = analysed(Chain(3), data[0][0])
    plan, made = compress(analysis, calibration=data, width=0.5, importance="fasp")
    again = apply_plan(analysis, plan, calibration=data)
    assert made.restoration is not None and again.restoration is not None and made.restoration.norms
    assert made.restoration.norms == again.restoration.norms
    for name, tensor in again.program.weights.items():
        torch.testing.assert_close(made.program.weights[name], tensor, rtol=1e-7, atol=1e-7)
    assert make_plan(analysis, width=0.5, importance="fasp", calibration=data) == plan
