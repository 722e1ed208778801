"""Work: FLOPs that are known, and sums that grow as the data and the model do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.graph.costs import CostModel
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.low_rank import find_matrices
from fxslim.passes.methods import settings
from fxslim.passes.stream_curve import SHARES
from fxslim.passes.survey import looked_at
from fxslim.passes.work import Rates, Work, count_work

RATES = Rates(single=2.0, double=4.0, solving=8.0, decomposing=16.0, bandwidth=32.0)
IN, WIDTH, OUT, ROWS = 6, 40, 5, 32


def net(width: int = WIDTH) -> Analysis:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(IN, width), nn.ReLU(), nn.Linear(width, OUT))
    return analyze(capture(module, (torch.randn(3, IN),), dynamic_shapes=({0: "rows"},)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(IN), nn.Linear(IN, OUT)
        self.up, self.down = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, IN)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.head(self.norm(x))


def residual() -> Analysis:
    torch.manual_seed(0)
    return analyze(capture(Residual(), (torch.randn(3, IN),), dynamic_shapes=({0: "rows"},)))


def data(count: int = 4, rows: int = ROWS) -> list[list[Tensor]]:
    return [[torch.randn(rows, IN)] for _ in range(count)]


def test_work_adds_up_and_takes_its_time_by_rate() -> None:
    work = Work(2, 4, 8, 16, 32) + Work(single=2)
    assert work.seconds(RATES) == 6
    assert (work * 2).seconds(RATES) == 12


def test_a_forward_pass_is_counted_as_torch_counts_it() -> None:
    analysis, batches = net(), data()
    found = count_work(analysis, batches, settings("flap", data=True))["forward"]
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            Evaluator(analysis.program).run(batch)
    walks = 2  # one to rank, one to restore biases by the compressed upstream
    assert found.single == walks * counter.get_total_flops()


def test_moments_are_half_of_their_products() -> None:
    found = count_work(net(), data(), settings("fasp", data=True))["moments"]
    passes = 2  # of the original and of the compressed upstream
    assert found.single == passes * 4 * ROWS * WIDTH**2


def test_a_probe_is_what_lies_behind_the_change() -> None:
    """The neurons begin with the first map; of the ranks one begins with each."""
    analysis, batches, first, second = net(), data(), 2 * ROWS * IN * WIDTH, 2 * ROWS * WIDTH * OUT
    neurons = count_work(analysis, batches, settings("osscar", budget="global", data=True))["probes"]
    assert neurons.single == first + second
    assert [m.weight for m in find_matrices(analysis)] == ["0.weight", "2.weight"]
    every = count_work(analysis, batches, settings("best", data=True))["probes"]
    assert every.single == 2 * (first + second) + second


def test_a_residual_stream_is_probed_at_every_share() -> None:
    """Each runs the whole model; its readers are solved, and the program without cut streams asks for bases."""
    wide, narrow = settings("best", data=True), replace(settings("best", data=True), streams=False)
    assert wide.streams and count_work(net(), data(), wide) == count_work(net(), data(), narrow)
    analysis, batches = residual(), data()
    with_streams, without = (count_work(analysis, batches, chosen) for chosen in (wide, narrow))
    forward = CostModel(analysis.axes, inputs=batches[0]).macs() * 2
    assert with_streams["probes"].single - without["probes"].single == len(SHARES) * forward
    assert with_streams["forward"].single - without["forward"].single == len(looked_at(analysis, batches)) * forward
    assert with_streams["curves"].solving > without["curves"].solving


@pytest.mark.parametrize("method", ["fasp", "osscar", "best", "svd-llm", "owl", "modegpt", "transact", "wanda-sp"])
def test_more_data_and_a_wider_model_are_more_work(method: str) -> None:
    def seconds(analysis: Analysis, batches: list[list[Tensor]]) -> float:
        parts = count_work(analysis, batches, settings(method, data=True))
        assert all(part.seconds(RATES) >= 0 for part in parts.values())
        return sum(part.seconds(RATES) for part in parts.values())

    less = seconds(net(), data())
    assert 0 < less < seconds(net(), data(8)) <= 2 * less
    assert less < seconds(net(2 * WIDTH), data())


def test_ranks_are_counted_by_patterns_of_weights() -> None:
    analysis, batches, chosen = net(), data(), settings("svd-llm", data=True)
    every, one = (count_work(analysis, batches, chosen, groups=g)["moments"].single for g in (None, ["2.*"]))
    assert one == 2 * len(batches) * ROWS * WIDTH**2 and every == one + 2 * len(batches) * ROWS * IN**2


def test_rates_of_this_machine_are_rates() -> None:
    from fxslim.machine import measure_rates

    rates = measure_rates()
    assert rates.double > 1e6 and rates.double < 2 * rates.single  # float64 is never much faster
    assert min(rates.solving, rates.decomposing, rates.bandwidth) > 1e6
