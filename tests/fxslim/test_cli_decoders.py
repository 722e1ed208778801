"""Decoders from the command line: what `--task text-generation` writes, and plans that leave the caches as they are."""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from tests.fxslim.test_cli import run


def test_slim_makes_decoders_with_a_cache(pristine_opt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        "slim", pristine_opt, "--task", "text-generation", "--keep", "0.8", "--latency-seconds", "0.1", "-o", out
    )
    assert result.exit_code == 0, result.output
    graph = onnx.load(out / "model.onnx").graph
    caches = ["past_key_values.0.key", "past_key_values.0.value"]
    assert [v.name for v in graph.input] == ["input_ids", "attention_mask", "position_ids", *caches]
    assert [v.name for v in graph.output] == ["logits", "present.0.key", "present.0.value"]
    assert json.loads((out / "report.json").read_text())["loader"] is None
    assert (out / "config.json").read_text() == (pristine_opt / "config.json").read_text()


def test_caches_keep_their_shapes_where_that_is_asked_for(pristine_opt: Path, tmp_path: Path) -> None:
    words = [pristine_opt, "--task", "text-generation", "--width", "0.5", "--json"]
    free = json.loads(run("plan", *words).stdout)
    kept = run("plan", *words, "--loader-compatible")
    plan = json.loads(kept.stdout)
    assert {c["kind"] for c in plan["cuts"]} == {"neurons"} < {c["kind"] for c in free["cuts"]}
    assert any(note.startswith("the caches keep their shapes: 3 groups stay whole") for note in plan["notes"])
