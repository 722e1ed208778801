"""Whose activations a refit learns from: those of the compressed upstream, with those of the original one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.program import bind_symbols
from fxslim.passes.batch_norms import find_batch_norms
from fxslim.passes.consumers import Consumer
from fxslim.passes.statistics import HELD_OUT_EVERY

__all__ = ["PLENTY", "Upstream", "choose_upstream"]

# Every batch runs through both upstreams; through one of them in turn, which takes half of the time; through the
# compressed one alone.
Upstream = Literal["both", "in turn", "compressed"]

PLENTY = 16.0  # calibration tokens for each column: from here on half of them tell either upstream well enough


def choose_upstream(analysis: Analysis, consumers: Sequence[Consumer], batches: Sequence[Sequence[Tensor]]) -> Upstream:
    """`in turn` where the data is plenty for all consumers that are refitted, else `both`.

    Batch norms are compared between the upstreams batch by batch, which takes both; so does held-out data of a single
    batch.
    """
    if len(batches) < 2 * HELD_OUT_EVERY or not consumers or any(find_batch_norms(analysis.program)):
        return "both"
    program, kinds = analysis.program, Counter(tuple(tuple(t.shape) for t in batch) for batch in batches)
    of_kind = {tuple(tuple(t.shape) for t in batch): batch for batch in batches}
    symbols = [(bind_symbols(program, of_kind[kind]), count) for kind, count in kinds.items()]
    for consumer in consumers:
        tokens = sum(consumer.rows(program, values) * count for values, count in symbols)
        if tokens < PLENTY * consumer.shape(program)[2]:
            return "both"
    return "in turn"
