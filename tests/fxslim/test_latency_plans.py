"""Plans by latency: a fake machine with a known law, and once the real one from end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from fxslim.api import analyze, capture, make_plan
from fxslim.data import Batches
from fxslim.export import export_onnx
from fxslim.graph.errors import InputError, PlanError
from fxslim.graph.program import Program
from fxslim.latency_plans import Attempt, LatencyPlans, _nearest, _next_target
from fxslim.operator_times import OperatorTimes
from fxslim.passes.methods import settings
from fxslim.timing import parse_sizes, sized_inputs, timed_inputs
from tests.graph.test_jobs import MacsClock

WIDTH = 96


def net() -> Program:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    return capture(module, (torch.randn(3, 16),), dynamic_shapes=({0: "batch"},))


class FakeMachine(LatencyPlans):
    """Models take the time of their MACs, widths rounded up to a multiple."""

    def __init__(self, tmp_path: Path, multiple: int = 1) -> None:
        program = net()
        self.lying, self.rounded = 1.0, multiple
        path = tmp_path / "original.onnx"
        export_onnx(program, path)
        super().__init__(
            analyze(program), path, lambda p: p.example_inputs, provider="cpu", threads=1, scratch=tmp_path,
            times=OperatorTimes("cpu", 1, tmp_path),
        )  # fmt: skip
        self.clock = MacsClock(self.inputs)  # type: ignore[assignment]

    def _up(self, size: int) -> int:
        return -(-size // self.rounded) * self.rounded if size > 16 else size

    def _shortest(self, models: dict[str, tuple[Path, Sequence[torch.Tensor]]]) -> dict[str, float]:
        found = {}
        for name, (path, _) in models.items():
            weights = [i for i in onnx.load(path).graph.initializer if len(i.dims) == 2]
            work = sum(self._up(i.dims[0]) * self._up(i.dims[1]) for i in weights)
            found[name] = self.lying ** (name == "slim") * work
        return found


@pytest.mark.parametrize("multiple", [1, 16])
def test_the_multiple_that_the_machine_likes_is_found_and_remembered(tmp_path: Path, multiple: int) -> None:
    machine = FakeMachine(tmp_path, multiple)
    assert machine.preferred_multiple() == multiple
    machine.rounded = 1
    assert machine.preferred_multiple() == multiple  # from the table
    assert OperatorTimes("cpu", 1, tmp_path).table  # which is on disk


def magnitude() -> dict[str, Any]:
    return dict(settings("magnitude", data=False).options())


def test_a_plan_meets_its_share_of_the_time(tmp_path: Path) -> None:
    made = FakeMachine(tmp_path).compress(0.5, **magnitude())
    assert made.attempts[-1].measured == pytest.approx(0.5, rel=0.03)
    assert made.plan.options["of"] == "latency"
    before, after = made.plan.predicted["latency"]
    assert after / before == pytest.approx(0.5, abs=0.01)


def test_a_clock_that_errs_is_corrected_by_what_the_whole_model_takes(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.lying = 1.4  # slim models take longer than their operators let expect
    made = machine.compress(0.6, **magnitude())
    assert len(made.attempts) > 1
    assert made.attempts[-1].target < 0.6
    assert min(abs(a.measured - 0.6) for a in made.attempts) <= 0.03 * 0.6


def test_a_share_out_of_reach_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="of the latency cannot be met"):
        FakeMachine(tmp_path).compress(0.6, **{**magnitude(), "groups": ["0.weight[0]"]}, keep_fixed=["2.weight"])


def test_the_next_target_lies_between_what_was_too_slow_and_too_fast() -> None:
    assert _next_target([Attempt(0.6, 0.8)], 0.6) == pytest.approx(0.45)
    between = _next_target([Attempt(0.6, 0.8), Attempt(0.45, 0.5)], 0.6)
    assert between == pytest.approx(0.45 + 0.15 / 3)
    assert 0.45 < _next_target([Attempt(0.6, 0.8), Attempt(0.45, 0.599)], 0.6) < 0.6


def test_of_several_plans_the_slowest_that_is_fast_enough_is_taken() -> None:
    tried: Any = [(Attempt(0.6, 0.7), "a", None), (Attempt(0.4, 0.45), "b", None), (Attempt(0.5, 0.59), "c", None)]
    assert _nearest(tried, 0.6)[1] == "c"
    assert _nearest(tried[:1], 0.6)[1] == "a"


def test_latency_without_a_clock_and_with_ranks_alone_is_refused() -> None:
    analysis = analyze(net())
    with pytest.raises(InputError, match="no clock"):
        make_plan(analysis, 0.5, of="latency")
    clock: Any = MacsClock(analysis.program.example_inputs)
    with pytest.raises(InputError, match="of latency: no effect where ranks are chosen"):
        make_plan(analysis, 0.5, of="latency", clock=clock, metric="whitened", calibration=[(torch.randn(8, 16),)])


def test_a_damaged_table_counts_as_empty(tmp_path: Path) -> None:
    times = OperatorTimes("cpu", 1, tmp_path)
    times.table["matmul"] = 3.0
    times.save()
    assert OperatorTimes("cpu", 1, tmp_path).table == {"matmul": 3.0}
    assert OperatorTimes("cpu", 2, tmp_path).table == {}
    document = json.loads(times.path.read_text())
    times.path.write_text(json.dumps({**document, "facts": {}}))
    assert OperatorTimes("cpu", 1, tmp_path).table == {}
    times.path.write_text("{")
    assert OperatorTimes("cpu", 1, tmp_path).table == {}


def test_sizes_are_read_and_refused_by_name() -> None:
    assert parse_sizes(None) is None
    assert parse_sizes("batch=4, past + new=7") == {"batch": 4, "past + new": 7}
    for wrong in ("batch", "batch=-1", "=3", "batch=1,batch=2"):
        with pytest.raises(InputError, match="no size of a dimension"):
            parse_sizes(wrong)
    program = net()
    assert [tuple(t.shape) for t in sized_inputs(program, {"batch": 5})] == [(5, 16)]
    with pytest.raises(InputError, match="no dynamic dimension 'rows'"):
        sized_inputs(program, {"rows": 5})


def test_one_row_of_data_is_timed_unless_sizes_are_given() -> None:
    program = net()
    data = Batches(("input_1",), ((torch.ones(8, 16),),), None, 8, 0, "here", "", "")
    assert timed_inputs(program, program, data)["slim"][0].shape == (1, 16)
    assert timed_inputs(program, program, None)["slim"][0].shape == (3, 16)
    assert timed_inputs(program, program, data, {"batch": 6})["original"][0].shape == (6, 16)


def test_what_no_clock_can_tell_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.preferred_multiple = lambda *_: pytest.fail("measured")  # type: ignore[method-assign, assignment]
    with pytest.raises(InputError, match="of latency: no effect where ranks are chosen"):
        machine.compress(0.5, metric="whitened", calibration=[(torch.randn(8, 16),)])
