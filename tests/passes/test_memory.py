"""What a walk is said to need: of the right things, and less where less is held."""

from __future__ import annotations

from pathlib import Path

import torch

from fxslim.passes.memory import proof_memory, slice_memory, walk_memory
from tests.models.stored import stored
from tests.passes.residual import batches, layered


def test_activations_count_for_every_batch_and_not_on_disk(tmp_path: Path) -> None:
    analysis = stored(layered(), tmp_path / "a")
    few, many = (walk_memory(analysis, batches(n), upstream="compressed").parts["activations"] for n in (4, 8))
    assert few < many <= 2 * few
    assert walk_memory(analysis, batches(8)).parts["activations"] > many  # those of the original too
    offloaded = stored(layered(), tmp_path / "b", offload=True)
    held = {walk_memory(offloaded, batches(n)).parts["activations"] for n in (4, 8)}
    assert len(held) == 1 and held.pop() < few


def test_second_moments_are_those_of_the_widest_call(tmp_path: Path) -> None:
    peak = walk_memory(stored(layered(), tmp_path), batches(2))
    assert peak.parts["second moments"] == 2 * 8 * 17**2 and peak.bytes == sum(peak.parts.values())
    more = walk_memory(stored(layered(), tmp_path), batches(2), eliminates=True)
    assert more.bytes >= peak.bytes


def test_weights_count_where_they_are_on_disk(tmp_path: Path) -> None:
    analysis = layered()
    assert walk_memory(analysis, batches(2)).parts["weights"] == 0
    assert walk_memory(stored(analysis, tmp_path), batches(2)).parts["weights"] > 0
    largest = max(analysis.program.info.values(), key=lambda w: w.numel)
    assert slice_memory(analysis.program).parts["weights"] == 3 * 8 * largest.numel
    proof = proof_memory(analysis.program, [torch.randn(3, 5, dtype=torch.float64)])
    assert 8 * largest.numel < proof.parts["weights"] < 2 * 8 * largest.numel  # its bias too
    assert proof.parts["activations"] > 0
