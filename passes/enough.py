"""How much of the calibration data the survey looks at: what ranks sizes needs fewer tokens than what is refitted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.program import bind_symbols
from fxslim.passes.consumers import find_consumers

__all__ = ["ENOUGH", "LEAST", "enough"]

ENOUGH = 4.0  # rows for each column of the weight that has the fewest
LEAST = 4096  # rows, whatever the columns: what is estimated from them is right to a few per cent


def enough(analysis: Analysis, batches: Sequence[Sequence[Tensor]]) -> Sequence[Sequence[Tensor]]:
    """As many batches as give every weight `ENOUGH` rows a column and `LEAST` in all, or all of them: evenly spaced, as
    batches may come source by source. Batches are taken to be of one size on the average.

    What a weight that becomes a pair reads stays the same: a plan is applied in the bases in which it was made.
    """
    program, parts = analysis.program, [bind_symbols(analysis.program, batch) for batch in batches]
    share = 0.0
    for consumer in find_consumers(analysis.axes)[0]:
        rows = sum(consumer.rows(program, symbols) for symbols in parts)
        share = max(share, max(LEAST, ENOUGH * consumer.shape(program)[2]) / max(rows, 1))
    count = min(len(batches), math.ceil(share * len(batches)))
    return [batches[i * len(batches) // count] for i in range(count)] if count else batches
