"""Programs that run off their files: the same results to the last bit, each weight read once, few of them held."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fxslim.api import Applied, compress, make_plan, prove
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.stores import FileTensor, WeightStore
from fxslim.passes.methods import settings
from fxslim.passes.plan import Plan
from fxslim.passes.restore import restore_weights
from fxslim.passes.statistics import CalibrationWalk
from tests.models.stored import count_reads, stored
from tests.passes.residual import batches, layered

METHODS = ["fasp", "flap", "wanda-sp", "osscar", "transact", "owl", "modegpt", "svd", "svd-llm", "magnitude", "best"]


def compressed(analysis: Analysis, method: str) -> tuple[Plan, Applied]:
    chosen = settings(method, data=True)
    options: dict[str, Any] = {**chosen.options(), "restore": chosen.restore}
    return compress(analysis, 0.8, calibration=batches(3), **options)


def same(a: WeightStore, b: WeightStore) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_off_disk_does_what_it_does_in_memory(method: str, offload: bool, tmp_path: Path) -> None:
    analysis = layered()
    plan, applied = compressed(analysis, method)
    streamed_plan, streamed = compressed(stored(analysis, tmp_path, offload=offload), method)
    assert streamed_plan.to_json() == plan.to_json()
    assert same(streamed.program.weights, applied.program.weights)
    entries = [streamed.program.weights.entry(n) for n in streamed.program.weights]
    assert all(isinstance(e, FileTensor) for e in entries)


@pytest.mark.parametrize("count", [3, 16])  # batches that run through both upstreams, and through one in turn
def test_every_weight_is_read_once_in_a_walk(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = stored(layered(), tmp_path)
    plan = make_plan(analysis, width=0.5)
    reads = count_reads(monkeypatch)
    restored = restore_weights(analysis, plan.selection(analysis), batches(count))
    assert restored.rows and all(isinstance(restored.weights.entry(n), FileTensor) for n in restored.weights)  # type: ignore[attr-defined]
    original = {key: n for key, n in reads.items() if key[0] == "weights.safetensors"}
    assert len(original) >= len(restored.rows) and set(original.values()) == {1}
    assert set(reads.values()) == {1}  # those that were refitted too


def test_no_weight_is_held_when_a_walk_is_over(tmp_path: Path) -> None:
    analysis = stored(layered(), tmp_path)
    walk = CalibrationWalk(Evaluator(analysis.program), batches(2))
    calls = [n for n in analysis.program.graph.nodes if n.op == "call_function"]
    walk.advance_to(calls[-1])
    del walk
    gc.collect()
    weights = analysis.program.weights
    assert all(weights[n] is not weights[n] for n in weights)


def test_activations_on_disk_are_gone_when_a_walk_is_over(tmp_path: Path) -> None:
    analysis = stored(layered(), tmp_path, offload=True)
    before = set(tmp_path.iterdir())
    walk = CalibrationWalk(Evaluator(analysis.program), batches(2))
    calls = [n for n in analysis.program.graph.nodes if n.op == "call_function"]
    walk.advance_to(calls[len(calls) // 2])
    assert set(tmp_path.iterdir()) > before
    del walk
    gc.collect()
    assert set(tmp_path.iterdir()) == before


def test_a_proof_off_disk_is_the_one_in_memory(tmp_path: Path) -> None:
    analysis = layered()
    plan = make_plan(analysis, width=0.5)
    found, streamed = prove(analysis, plan), prove(stored(analysis, tmp_path), plan)
    assert found.ok and streamed == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_on_disk_in_its_type(dtype: torch.dtype, tmp_path: Path) -> None:
    analysis = layered()
    program = analysis.program
    data: list[tuple[Tensor, ...]] = [tuple(t.to(dtype) for t in batch) for batch in batches(3)]
    half = stored(halved(program, dtype), tmp_path)
    plan, applied = compress(half, 0.8, calibration=data, importance="fasp")
    expected_plan, expected = compress(halved(program, dtype), 0.8, calibration=data, importance="fasp")
    assert plan.to_json() == expected_plan.to_json() and same(applied.program.weights, expected.program.weights)
    assert {e.dtype for e in map(applied.program.weights.entry, applied.program.weights)} == {dtype}


def halved(program: Any, dtype: torch.dtype) -> Analysis:
    from fxslim.graph.axes.groups import analyze
    from fxslim.graph.capture import capture

    inputs = tuple(t.to(dtype) for t in program.example_inputs)
    return analyze(capture(program.flat_module().to(dtype), inputs))
