"""Plans by latency: a fake machine with a known law, and once the real one from end to end."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from fxslim.api import analyze, apply, capture, make_plan
from fxslim.data import Batches
from fxslim.export import export_onnx
from fxslim.graph.errors import CheckError, InputError
from fxslim.graph.jobs import Job
from fxslim.graph.program import Program
from fxslim.latency_plans import Attempt, LatencyPlans, _better, _next_target, refuse_untimed
from fxslim.operator_times import OperatorTimes
from fxslim.passes.methods import settings
from fxslim.timing import parse_sizes, sized_inputs, timed_inputs
from tests.fxslim.factories import CLASSIFIER, write_data
from tests.fxslim.test_cli import refused, run
from tests.graph.test_jobs import MacsClock

WIDTH = 96


def net(width: int = WIDTH) -> Program:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
    return capture(module, (torch.randn(3, 16),), dynamic_shapes=({0: "batch"},))


def both(program: Program) -> dict[str, tuple[torch.Tensor, ...]]:
    return {"original": program.example_inputs, "slim": program.example_inputs}


class FakeMachine(LatencyPlans):
    """Models take the time of their MACs, widths rounded up to a multiple."""

    def __init__(self, tmp_path: Path, multiple: int = 1, width: int = WIDTH) -> None:
        program = net(width)
        self.lying, self.rounded = 1.0, multiple
        path = tmp_path / "original.onnx"
        export_onnx(program, path)
        super().__init__(
            analyze(program), path, both, provider="cpu", threads=1, scratch=tmp_path,
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


@pytest.mark.parametrize(("multiple", "width"), [(1, 96), (16, 64)])
def test_the_multiple_that_the_machine_likes_is_found_and_remembered(tmp_path: Path, multiple: int, width: int) -> None:
    machine = FakeMachine(tmp_path, multiple, width)
    assert machine.preferred_multiple() == multiple
    machine.rounded = 1
    assert machine.preferred_multiple() == multiple  # from the table
    assert list(OperatorTimes("cpu", 1, tmp_path).multiples.values()) == [multiple]  # which is on disk


def test_wide_groups_that_no_product_sums_over_like_any_multiple(tmp_path: Path) -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, WIDTH)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids).relu().sum(-1)

    program = capture(Summed(), (torch.arange(40_000).remainder(10).reshape(200, 200),))
    export_onnx(program, tmp_path / "original.onnx")
    times = OperatorTimes("cpu", 1, tmp_path)
    plans = LatencyPlans(
        analyze(program), tmp_path / "original.onnx", both, provider="cpu", threads=1, scratch=tmp_path, times=times
    )
    assert plans.preferred_multiple() == 1


def magnitude() -> dict[str, Any]:
    return dict(settings("magnitude", data=False).options())


def test_a_plan_meets_its_share_of_the_time(tmp_path: Path) -> None:
    made = FakeMachine(tmp_path).compress(0.5, round_to=1, **magnitude())
    assert made.attempts[-1].measured == pytest.approx(0.5, rel=0.03)
    assert made.plan.options["of"] == "latency"
    before, after = made.plan.predicted["latency"]
    assert after / before == pytest.approx(0.5, abs=0.01)


def test_a_clock_that_errs_is_corrected_by_what_the_whole_model_takes(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.lying = 1.4  # slim models take longer than their operators let expect
    made = machine.compress(0.6, round_to=1, **magnitude())
    assert len(made.attempts) > 1
    assert made.attempts[-1].target < 0.6
    assert made.chosen.measured == pytest.approx(0.6, rel=0.03)
    assert machine.share_of(made.applied.program) == made.chosen.measured
    assert made.keep == 0.6 and not made.missed


def test_a_share_out_of_reach_is_refused_at_once(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    with pytest.raises(CheckError, match=r"no plan pays: .* of the latency cannot be met"):
        machine.compress(0.05, round_to=32, **magnitude())
    with pytest.raises(CheckError, match="no plan pays: no cut of these groups saves any of the latency"):
        machine.compress(0.6, **{**magnitude(), "groups": ["0.weight[0]"]}, keep_fixed=["2.weight"])


def test_where_the_clock_misleads_a_plan_by_another_currency_is_taken(tmp_path: Path) -> None:
    class Misled(MacsClock):
        """Sees no time in anything but the first product."""

        def nanoseconds(self, job: Job, whole: tuple[int, ...], sizes: tuple[int, ...]) -> float:
            return super().nanoseconds(job, whole, sizes) if job.weight == "0.weight" else 0.0

    machine = FakeMachine(tmp_path)
    machine.clock = Misled(machine.inputs)  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(32, 16, generator=generator),) for _ in range(4)]
    asked = {**settings("best", data=True).options(), "restore": "least-squares", "calibration": data}
    made = machine.compress(0.6, round_to=1, **asked)
    assert {a.of for a in made.attempts} == {"latency", "macs", "params"}
    assert made.chosen.of != "latency"
    assert made.chosen.measured <= 0.6 * 1.03
    enough = [a.loss for a in made.attempts if a.measured <= 0.6 * 1.03 and a.loss is not None]
    assert made.chosen.loss == min(enough)
    assert any(a.of == "latency" and a.loss is not None and a.loss > min(enough) for a in made.attempts)


def test_the_next_target_lies_between_what_was_too_slow_and_too_fast() -> None:
    assert _next_target([Attempt(0.6, 0.8)], 0.6) == pytest.approx(0.45)
    between = _next_target([Attempt(0.6, 0.8), Attempt(0.45, 0.5)], 0.6)
    assert between == pytest.approx(0.45 + 0.15 / 3)
    assert 0.45 < _next_target([Attempt(0.6, 0.8), Attempt(0.45, 0.599)], 0.6) < 0.6


def test_of_several_plans_the_slowest_that_is_fast_enough_is_taken() -> None:
    tried: Any = [(Attempt(0.6, 0.7), "a"), (Attempt(0.4, 0.45), "b"), (Attempt(0.5, 0.59), "c")]
    for order in itertools.permutations(tried):
        assert functools.reduce(lambda x, y: _better(x, y, 0.6), order)[1] == "c"


def test_of_several_plans_that_say_what_they_lose_the_best_that_is_fast_enough_is_taken() -> None:
    tried: Any = [
        (Attempt(0.6, 0.7, "macs", 0.1), "slow"), (Attempt(0.4, 0.45, "latency", 0.5), "fast"),
        (Attempt(0.5, 0.55, "macs", 0.2), "good"), (Attempt(0.5, 0.59, "params", 0.3), "near"),
    ]  # fmt: skip
    for order in itertools.permutations(tried):
        assert functools.reduce(lambda x, y: _better(x, y, 0.6), order)[1] == "good"
    assert functools.reduce(lambda x, y: _better(x, y, 0.3), tried)[1] == "fast"


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
    for wrong in ("batch", "batch=-1", "=3", "batch=1,batch=2", "batch=²"):
        with pytest.raises(InputError, match="no size of a dimension"):
            parse_sizes(wrong)
    program = net()
    assert [tuple(t.shape) for t in sized_inputs(program, {"batch": 5})] == [(5, 16)]
    with pytest.raises(InputError, match="no dynamic dimension 'rows'"):
        sized_inputs(program, {"rows": 5})
    with pytest.raises(InputError, match="'batch' cannot be 0"):
        sized_inputs(program, {"batch": 0})


def test_one_row_of_data_is_timed_unless_sizes_are_given() -> None:
    program = net()
    data = Batches(("input_1",), ((torch.ones(8, 16),),), None, 8, 0, "here", "", "")
    assert timed_inputs(program, program, data)["slim"][0].shape == (1, 16)
    assert timed_inputs(program, program, None)["slim"][0].shape == (3, 16)
    assert timed_inputs(program, program, data, {"batch": 6})["original"][0].shape == (6, 16)


def test_what_no_clock_can_tell_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz")
    for words, said in (
        (("--method", "svd", "--calibration", data), "of latency: no effect where ranks are chosen"),
        (
            (
                "--uncounted",
                "first.*",
            ),
            "uncounted: no effect on latency",
        ),
    ):
        done = run("slim", CLASSIFIER, "--of", "latency", "--keep", "0.5", *words, "-o", tmp_path / "out")
        refused(done, said)
    with pytest.raises(InputError, match="of latency: no effect where residual branches share weights"):
        refuse_untimed({"share": True})


def test_a_law_that_is_not_linear_is_followed_and_a_miss_is_told(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path)
    machine.share_of = lambda p: (p.parameters() / net().parameters()) ** 3  # type: ignore[method-assign]
    cubic = machine.compress(0.6, of="params", round_to=1, **magnitude())
    assert cubic.attempts[0].measured < 0.3 and cubic.chosen.measured > 0.5
    machine.share_of = lambda p: 0.9 + 0.05 * p.parameters() / net().parameters()  # type: ignore[method-assign]
    flat = machine.compress(0.6, round_to=1, **magnitude())
    assert flat.missed and flat.chosen == min(flat.attempts, key=lambda a: a.measured)


def test_pairs_of_inputs_have_equal_shapes_but_for_the_widths_of_caches() -> None:
    """Also where a cache of the data holds something, which a slim program cannot read."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.keys, self.read = nn.Linear(4, 8, bias=False), nn.Linear(8, 4, bias=False)

        def forward(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen = torch.cat([past, self.keys(x)], 1)
            return self.read(seen), seen

    dims = {0: "batch", 1: "new"}, {0: "batch", 1: "past"}
    program = capture(
        Cached(), (torch.randn(6, 3, 4), torch.randn(6, 5, 8)), dynamic_shapes=dims, caches={"past": "output_1"}
    )
    slim = apply(program, make_plan(program, width=0.5))
    data = Batches(("x", "past"), ((torch.ones(8, 2, 4), torch.ones(8, 7, 8)),), None, 8, 0, "here", "", "")
    pair = timed_inputs(program, slim, data)
    assert [x.shape[:-1] for x in pair["original"]] == [x.shape[:-1] for x in pair["slim"]]
    assert pair["slim"][1].shape[-1] == 4


def test_a_plan_by_latency_from_end_to_end_on_this_machine(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--of", "latency", "--keep", "0.5", "--method", "magnitude", "--sizes", "batch=256", "--round-to", "16")
    done = run("slim", "tests.fxslim.test_latency_plans:heavy", *words, "--latency-seconds", "1", "--json", "-o", out)
    report = json.loads(done.stdout)
    plan = report["latency"]["plan"]
    assert plan["keep"] == 0.5 and plan["multiple"] == 16
    assert 1 <= len(plan["attempts"]) <= 4 and plan["measured"] in [a["measured"] for a in plan["attempts"]]
    assert report["costs"]["macs"][1] < 0.8 * report["costs"]["macs"][0]
    assert "was asked for 50.0% of the time" in (out / "report.md").read_text()
    # What this machine measures is its own affair; what is said of it has to fit.
    missed = plan["measured"] > 0.5 * 1.06
    told = [f for f in report["failures"] if f.startswith("latency: ")]
    assert bool(told) == (missed or not report["latency"]["faster"])
    assert done.exit_code == (1 if told else 0)


def heavy() -> tuple[Any, ...]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 512))
    return module, (torch.randn(8, 512),), None, ({0: "batch"},)
