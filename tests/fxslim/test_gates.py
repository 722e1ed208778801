"""Gates: what they look at, and that nothing passes one that was not measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fxslim.evaluate import Score
from fxslim.export import LatencyReport, OnnxCheck, OnnxFile
from fxslim.export.check import ShapeCheck
from fxslim.export.latency import Ratio
from fxslim.export.tolerance import FLOAT32, Comparison
from fxslim.gates import Gate, Measured, judge, quality_loss, refuse_unmeasured
from fxslim.graph.errors import InputError
from fxslim.slim_options import SlimOptions
from fxslim.variants import Variant


def perplexity(value: float) -> Score:
    return Score("perplexity", value, False, 100)


def accuracy(value: float) -> Score:
    return Score("accuracy", value, True, 100)


def latency(low: float, value: float = 1.5) -> LatencyReport:
    ratio, control = Ratio(value, low, 2 * value), Ratio(1.0, 0.99, 1.01)
    return LatencyReport("original", "slim", {"original": 2.0, "slim": 1.0}, ratio, control, "cpu", 1, 10, 1.0)


def file(size: int, name: str = "model.onnx") -> OnnxFile:
    return OnnxFile(Path(name), 20, 10, size, size, None, (), (), {})


def check(*errors: float) -> OnnxCheck:
    outputs = tuple(Comparison("y", e, e, e, e, 1.0, True) for e in errors)
    return OnnxCheck("cpu", {}, (), FLOAT32, (ShapeCheck({}, outputs),), ())


def measured(**changes: object) -> Measured:
    base = Measured((perplexity(10.0), perplexity(10.2)), latency(1.2), file(1000), check(1e-6, 3e-6), ())
    return replace(base, **changes)  # type: ignore[arg-type]


def only(options: SlimOptions, found: Measured) -> Gate:
    (gate,) = judge(options, found)
    return gate


def asked(**gates: float) -> SlimOptions:
    return SlimOptions("m", keep=0.5, **gates)  # type: ignore[arg-type]


def test_without_gates_nothing_is_judged() -> None:
    assert judge(asked(), measured()) == ()


@pytest.mark.parametrize(("limit", "ok"), [(0.03, True), (0.01, False)])
def test_quality_is_lost_as_a_share_of_the_original(limit: float, ok: bool) -> None:
    gate = only(asked(max_quality_loss=limit), measured())
    assert gate.ok is ok
    assert gate.found == pytest.approx(0.02)
    assert "perplexity 10 -> 10.2, 2.00% worse" in gate.text


def test_a_score_may_be_better_when_higher() -> None:
    assert quality_loss(accuracy(0.9), accuracy(0.873)) == pytest.approx(0.03)
    assert quality_loss(accuracy(0.9), accuracy(0.99)) == pytest.approx(-0.1)
    for nothing, after in ((accuracy(0.0), accuracy(0.0)), (perplexity(0.0), perplexity(1.0))):
        assert not only(asked(max_quality_loss=9.0), measured(scores=(nothing, after))).ok
    assert only(asked(max_quality_loss=0.0), measured(scores=(accuracy(0.9), accuracy(0.9)))).ok


def test_the_lower_end_of_the_interval_has_to_be_fast_enough() -> None:
    assert only(asked(min_speedup=1.2), measured()).ok
    assert not only(asked(min_speedup=1.3), measured()).ok  # 1.5 is not sure


def test_what_the_original_differs_from_itself_is_no_speed_up() -> None:
    noisy = replace(latency(1.06, 1.2), control=Ratio(1.0, 0.85, 1.2))
    gate = only(asked(min_speedup=1.05), measured(latency=noisy))
    assert not gate.ok and "differs from itself by up to 1.20" in gate.text
    assert only(asked(min_speedup=0.9), measured(latency=noisy)).ok  # may be slower: then noise does not matter


def test_a_score_of_nothing_cannot_get_worse_and_is_no_measurement() -> None:
    assert not only(asked(max_quality_loss=0.5), measured(scores=(accuracy(0.0), accuracy(0.0)))).ok


def test_bytes() -> None:
    assert only(asked(max_bytes=1000), measured()).ok
    gate = only(asked(max_bytes=999), measured())
    assert not gate.ok and gate.text == "model.onnx: 1,000 bytes; 999 are allowed"


@pytest.mark.parametrize(
    ("errors", "ok"), [((1e-6, 3e-6), True), ((1e-4,), False), ((math.nan, 1e-6), False), ((), False)]
)
def test_parity(errors: tuple[float, ...], ok: bool) -> None:
    assert only(asked(max_parity_error=1e-5), measured(check=check(*errors))).ok is ok


def test_gates_hold_for_the_files_that_are_to_be_served() -> None:
    int8 = Variant("dynamic", file(300, "q.onnx"), {}, perplexity(10.5), latency(1.1), ())
    found = judge(asked(max_bytes=500, max_quality_loss=0.1, min_speedup=1.3), measured(variants=(int8,)))
    assert [(g.name, g.file, g.ok) for g in found] == [
        ("max_quality_loss", "dynamic", True), ("min_speedup", "dynamic", True), ("max_bytes", "dynamic", True),
    ]  # fmt: skip
    assert found[1].found == pytest.approx(1.2 * 1.1)  # original / slim * slim / int8


def test_what_was_not_measured_does_not_pass() -> None:
    broken = Variant("float16", None, None, None, None, ("it cannot be written",))
    found = judge(asked(max_bytes=10**9, max_quality_loss=9.0, min_speedup=0.1), measured(variants=(broken,)))
    assert [g.ok for g in found] == [False] * 3
    assert not only(asked(max_quality_loss=9.0), measured(scores=None)).ok


def test_a_gate_on_quality_without_data_is_refused_before_the_work() -> None:
    refuse_unmeasured(asked(max_quality_loss=0.1), scored=True)
    refuse_unmeasured(asked(min_speedup=1.1), scored=False)
    with pytest.raises(InputError, match="needs evaluation data"):
        refuse_unmeasured(asked(max_quality_loss=0.1), scored=False)
