"""Whose activations a refit learns from: those of the compressed upstream, with those of the original one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.program import bind_symbols
from fxslim.passes.batch_norms import find_batch_norms
from fxslim.passes.consumers import Consumer
from fxslim.passes.statistics import HELD_OUT_EVERY, learned_of

__all__ = ["PLENTY", "Upstream", "choose_upstream", "turns_of"]

# Every batch runs through both upstreams; through one of them in turn, which takes half of the time; through the
# compressed one alone.
Upstream = Literal["both", "in turn", "compressed"]

PLENTY = 16.0  # calibration tokens for each column of a weight: half of them tell either upstream well enough


def choose_upstream(analysis: Analysis, consumers: Sequence[Consumer], batches: Sequence[Sequence[Tensor]]) -> Upstream:
    """`in turn` where the data is plenty for all consumers that are refitted, in either upstream's turns; else `both`.

    Batch norms are compared between the upstreams batch by batch, which takes both.
    """
    if len(batches) < 2 * HELD_OUT_EVERY or not consumers or any(find_batch_norms(analysis.program)):
        return "both"
    program, shapes = analysis.program, [tuple(tuple(t.shape) for t in batch) for batch in batches]
    symbols = {shape: bind_symbols(program, batch) for shape, batch in zip(shapes, batches, strict=True)}
    turns = turns_of(batches)
    for consumer in consumers:
        rows, tokens = {shape: consumer.rows(program, values) for shape, values in symbols.items()}, [0, 0]
        for shape, turn in zip(shapes, turns, strict=True):
            tokens[turn] += rows[shape]
        if min(tokens) < PLENTY / 2 * consumer.shape(program)[2]:
            return "both"
    return "in turn"


def turns_of(batches: Sequence[Sequence[Tensor]]) -> list[int]:
    """For each batch 0 or 1, the same in every process: drawn at random, as batches may come in a rhythm (sources in
    turn), so that both get as much of what is learned from, and of what is held out."""
    turns, generator = [0] * len(batches), torch.Generator().manual_seed(0)
    learned = learned_of(len(batches))
    for part in (range(learned), range(learned, len(batches))):
        sizes = [0, 0]
        for i in torch.randperm(len(part), generator=generator).tolist():
            turn = int(sizes[1] < sizes[0])
            turns[part[i]] = turn
            sizes[turn] += batches[part[i]][0].numel()
    return turns
