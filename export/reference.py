"""A program in float64: the reference that tells rounding from error."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program

__all__ = ["run_float64"]


def run_float64(program: Program, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The flat outputs of `program` for the flat `inputs`, computed in float64 throughout.

    Raises:
        CheckError: an operator has no meaning in float64.
        AnalysisError: an operator refuses float64.
    """
    return Evaluator(program, dtype=torch.float64).run([tensor.detach() for tensor in inputs])
