"""The clock: models of single operators at their sizes, and sums that are what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fxslim.export.clock import OperatorClock, measure_clock
from fxslim.export.operators import operator_model
from fxslim.export.providers import create_session, resolve_provider
from fxslim.export.running import run_session
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import CheckError
from fxslim.graph.jobs import Job
from fxslim.graph.latency import TimeModel

CONV = (2, False, (2, 1), (1, 0), (1, 1))
LINEAR = Job("linear", "matmul", (True,), ())


def run(job: Job, sizes: tuple[int, ...], inputs: list[torch.Tensor] | None = None) -> torch.Tensor:
    model, drawn = operator_model(job, sizes)
    (result,) = run_session(create_session(model, resolve_provider("cpu"), threads=1), inputs or drawn)
    return result


@pytest.mark.parametrize(
    ("job", "sizes", "shape"),
    [
        (LINEAR, (1, 5, 7, 3), (5, 3)),
        (LINEAR, (2, 5, 7, 3), (2, 5, 3)),
        (Job("bmm", "matmul", (False,), ()), (4, 5, 7, 3), (4, 5, 3)),
        (Job("sdpa", "attention", (True,), ()), (4, 5, 6, 8, 3), (4, 5, 3)),
        (Job("sdpa", "attention", (False,), ()), (4, 5, 6, 8, 3), (4, 5, 3)),
        (Job("conv", "conv", CONV, ()), (2, 3, 4, 2, 9, 8, 3, 1), (2, 8, 5, 8)),
        (Job("conv", "conv", (1, False, (1,), "same", (1,)), ()), (2, 3, 4, 1, 9, 3), (2, 4, 9)),
        (Job("up", "conv", (2, True, (2, 2), (0, 0), (1, 1)), ()), (2, 3, 4, 1, 5, 5, 2, 2), (2, 4, 10, 10)),
        (Job("einsum", "product", (), ()), (8192,), (2, 64)),
        (Job("gelu", "pointwise", ("Gelu",), ()), (1000,), (4, 256)),
        (Job("norm", "pointwise", ("LayerNormalization",), ()), (30,), (1, 30)),
    ],
)
def test_every_kind_of_operator_runs_at_its_sizes(job: Job, sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    assert run(job, sizes).shape == shape


def test_the_model_of_attention_computes_attention() -> None:
    sizes = (4, 5, 6, 8, 3)
    q, k, v, mask = operator_model(Job("sdpa", "attention", (True,), ()), sizes)[1]
    found = run(Job("sdpa", "attention", (True,), ()), sizes, [q, k, v, mask])
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k.mT, v, mask, scale=1.0)
    torch.testing.assert_close(found, wanted)


def test_a_masked_attention_that_sees_nothing_gives_zero_as_the_exporter_has_it() -> None:
    job = Job("sdpa", "attention", (True,), ())
    inputs = operator_model(job, (1, 2, 3, 4, 5))[1]
    inputs[3][0, 0] = float("-inf")  # the mask
    result = run(job, (1, 2, 3, 4, 5), inputs)
    assert (result[0, 0] == 0).all()
    assert (result[0, 1] != 0).all()


class Table(OperatorClock):
    """A clock whose operators take as many ns as they have elements or products, plus 100."""

    def __init__(self) -> None:
        super().__init__((), "cpu", 1)
        self.asked: set[tuple[int, ...]] = set()

    def _run(self, job: Job, sizes: tuple[int, ...]) -> float:
        self.asked.add(sizes)
        total = 1.0
        for size in sizes:
            total *= size
        return 100.0 + total - (job.node == "")  # the empty model does nothing

    @property
    def overhead(self) -> float:
        return 100.0


def test_times_between_measured_sizes_are_interpolated_and_few_are_measured() -> None:
    clock, whole = Table(), (1, 8, 64, 80)
    for k in range(1, 65):
        for n in range(1, 81):
            assert clock.nanoseconds(LINEAR, whole, (1, 8, k, n)) == pytest.approx(8 * k * n)
    assert len(clock.asked) <= 10 * 10


def test_a_slow_measurement_of_a_small_size_counts_as_that_of_a_larger_one() -> None:
    class Disturbed(Table):
        def _run(self, job: Job, sizes: tuple[int, ...]) -> float:
            return super()._run(job, sizes) * (10 if sizes == (1, 8, 32, 80) else 1)

    clock, whole = Disturbed(), (1, 8, 64, 80)
    assert clock.nanoseconds(LINEAR, whole, (1, 8, 32, 80)) == pytest.approx(8 * 40 * 80)  # the next larger level
    times = [clock.nanoseconds(LINEAR, whole, (1, 8, k, 80)) for k in range(1, 65)]
    assert times == sorted(times)


def test_what_is_empty_takes_no_time_and_is_not_run() -> None:
    clock = Table()
    assert clock.nanoseconds(LINEAR, (1, 0, 64, 80), (1, 0, 64, 80)) == 0
    assert clock.nanoseconds(Job("cat", "pointwise", ("Add",), ()), (0,), (0,)) == 0
    assert not clock.asked


def test_measured_sizes_fall_on_the_unit() -> None:
    clock = Table()
    clock.unit = 16
    clock.nanoseconds(LINEAR, (1, 1, 512, 200), (1, 1, 100, 70))
    assert {s[2] % 16 for s in clock.asked} == {0}
    assert {s[3] % 16 for s in clock.asked if s[3] != 200} == {0}  # the whole is what it is


@pytest.mark.parametrize("measured", [0.5, 1.5, 20.0])
def test_calibrated_jobs_sum_to_what_was_measured(measured: float) -> None:
    module = nn.Sequential(nn.Linear(6, 50), nn.GELU(), nn.Linear(50, 4))
    axes = analyze(capture(module, (torch.randn(2, 6),))).axes
    clock = Table()
    clock.inputs = (torch.randn(2, 6),)
    model = TimeModel(axes, clock)
    alone = model.nanoseconds(None, None)
    clock.calibrate(model, measured * alone)
    assert TimeModel(axes, clock).nanoseconds(None, None) == pytest.approx(measured * alone)
    assert clock.scales["pointwise"] <= 3.0  # the rest is fixed: nothing that a plan could save


def test_a_model_without_work_cannot_be_calibrated() -> None:
    axes = analyze(capture(nn.Flatten(), (torch.randn(2, 6),))).axes
    clock = Table()
    clock.inputs = (torch.randn(2, 6),)
    with pytest.raises(CheckError, match="no operator of the model takes any time"):
        clock.calibrate(TimeModel(axes, clock), 1.0)


def test_the_clock_of_this_machine_says_that_less_work_takes_less_time(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512))
    inputs = (torch.randn(64, 512),)
    program = capture(module, inputs)
    axes = analyze(program).axes
    export_onnx(program, tmp_path / "m.onnx")
    table: dict[str, float] = {}
    clock = measure_clock(axes, tmp_path / "m.onnx", inputs, provider="cpu", threads=1, table=table)
    whole = (1, 64, 512, 2048)
    assert clock.nanoseconds(LINEAR, whole, (1, 64, 512, 256)) < 0.6 * clock.nanoseconds(LINEAR, whole, whole)
    assert any(key.startswith("matmul") for key in table)
    known = OperatorClock(inputs, "cpu", 1, dict.fromkeys(table, 7.0))
    assert known.nanoseconds(LINEAR, whole, whole) == 7.0  # a table that is known is not measured again


def test_an_operator_that_does_not_run_is_a_failed_check() -> None:
    job = Job("conv", "conv", (2, False, (1, 1), (0, 0), (1, 1)), ())
    with pytest.raises(CheckError, match="does not run on cpu"):
        OperatorClock((), "cpu", 1).measured(job, (1, 3, 4, 1, 2, 2, 5, 5))  # the kernel is larger than the image
