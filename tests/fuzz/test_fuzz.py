"""A fixed sample of random modules must pass, and the fuzzer itself must find, shrink and print what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from tests.fuzz.check import Failure, Outcome, examine, examine_program
from tests.fuzz.generate import generate
from tests.fuzz.grammar import LAYERS, Net, Node, Text, build, write
from tests.fuzz.mutants import LITERALS, Mutant, broken, reached
from tests.fuzz.run import Job, Record, run_all
from tests.fuzz.shrink import shrink
from tests.fuzz.worker import finding
from tests.fuzz.zeroed import positions


def _sample() -> list[int]:
    """Small nets of static sizes for the most part: dynamic ones take the exporter three times as long."""
    seeds = range(100_000, 100_160)
    nets = {seed: generate(seed).net for seed in seeds}
    small = [s for s, net in nets.items() if len(net.nodes) <= 6 and net.dynamic == "none"]
    return small[:44] + [s for s, net in nets.items() if len(net.nodes) <= 4 and net.dynamic != "none"][:10]


SAMPLE = _sample()
EXPORTED = frozenset(SAMPLE[7:30:22])  # an export takes longer than all else


@pytest.mark.parametrize("seed", SAMPLE)
def test_a_fixed_sample_of_random_modules_passes(seed: int) -> None:
    outcome = examine(generate(seed), onnx=seed in EXPORTED, thorough=seed % 4 == 0)
    assert outcome.failure is None
    assert outcome.captured == ""


def test_drawing_and_writing_again_give_the_same_text() -> None:
    for seed in range(30):
        text = generate(seed)
        assert text.source == generate(seed).source == write(text.net).source


def test_every_layer_is_drawn_and_every_module_runs() -> None:
    seen: set[str] = set()
    for seed in range(250):
        text = generate(seed)
        seen.update(node.layer for node in text.net.nodes)
        built = build(text)
        with torch.no_grad():
            built.model(*built.example())
    assert len(seen) > 0.9 * len(LAYERS)


def _plain_mlp() -> Text:
    options = (("width", 8),)
    nodes = (Node("source_vector", (), options), Node("mlp", ((0, 0),), (("hidden", 7),)), Node("head", ((1, 0),)))
    return write(Net(nodes, ((2, 0),)))


def test_a_planted_failure_shrinks_to_the_layer_that_has_it() -> None:
    seed = next(s for s in range(500) if "attention_fused" in generate(s).features and len(generate(s).net.nodes) > 5)
    text = generate(seed)
    small = shrink(text, lambda t: "attention_fused" in t.features, limit=400)
    assert [n.layer for n in small.net.nodes][-1] == "attention_fused"
    assert len(small.net.nodes) <= 3 < len(text.net.nodes)
    assert small.net.dynamic == "none"
    assert len(small.source) < len(text.source)


def test_a_printed_module_runs_on_its_own(tmp_path: Path) -> None:
    job = {"key": 1, "onnx": False, "thorough": False}
    path = tmp_path / "printed.py"
    path.write_text(finding(_plain_mlp(), "prove: none", job))
    done = subprocess.run(
        [sys.executable, str(path)], cwd=Path(__file__).parents[2], env={"PYTHONPATH": "."}, timeout=120
    )
    assert done.returncode == 0


@pytest.mark.parametrize(
    "mutant",
    [
        Mutant("aten.linear.default", "a summed letter not shared"),
        Mutant("aten.linear.default", "dimensions of operand 1 rolled"),
        Mutant("aten.relu.default", "a passed letter not shared"),
    ],
    ids=str,
)
def test_a_broken_rule_is_noticed(mutant: Mutant) -> None:
    built = build(_plain_mlp())
    program = capture(built.model, built.example())
    groups = len(analyze(program).prunable)
    assert groups
    assert reached(program, mutant)
    with broken(mutant):
        try:
            examine_program(built, program, Outcome(0), onnx=False, thorough=True)
        except Failure:
            return
        assert len(analyze(program).prunable) < groups


def test_forgotten_literals_are_noticed() -> None:
    nodes = (
        Node("source_tokens", (), (("width", 3),)),
        Node("attention_fused", ((0, 0),), (("heads", 2), ("dim", 4), ("layout", "3hd"), ("merge", "reshape"))),
        Node("head", ((1, 0),)),
    )
    built = build(write(Net(nodes, ((2, 0),), length=3)))
    program = capture(built.model, built.example())
    with broken(Mutant("aten.reshape.default", LITERALS)), pytest.raises(Failure, match=r"prune|prepare"):
        examine_program(built, program, Outcome(0), onnx=False, thorough=True)


def test_a_layout_names_the_positions_of_its_axis() -> None:
    assert positions("*", 3) == [(0,), (1,), (2,)]
    assert positions("2·*·2", 2) == [(0,), (0,), (1,), (1,), (0,), (0,), (1,), (1,)]
    assert positions("[2|*·2|*]", 2) == [(), (), (0,), (0,), (1,), (1,), (0,), (1,)]
    assert positions("*·*", 2) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def work(job: Job) -> Record:
    """A job that dies, one that raises, one that never ends, and good ones."""
    if job["key"] == 1:
        import os

        os.abort()
    if job["key"] == 2:
        raise ValueError("two")
    while job["key"] == 3:
        pass
    return {"key": job["key"], "good": True}


def test_processes_that_die_or_hang_are_findings_and_the_rest_goes_on() -> None:
    records = {r["key"]: r for r in run_all([{"key": k} for k in range(5)], work, workers=2, seconds=20)}
    assert sorted(records) == [0, 1, 2, 3, 4]
    assert records[0]["good"]
    assert records[4]["good"]
    assert "ended with -6" in records[1]["crash"]
    assert "two" in records[2]["crash"]
    assert "20 s" in records[3]["crash"]
