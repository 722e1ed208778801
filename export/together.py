"""Several evaluations of a program side by side, operator by operator: each weight on disk is read once for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxslim.graph.evaluate import Environment, Evaluator

__all__ = ["Answer", "run_together"]

Answer = list[Any] | Exception
"""The flat outputs of one evaluation, or why there are none."""


def run_together(evaluators: Sequence[Evaluator], batches: Sequence[Sequence[Tensor]]) -> list[list[Answer]]:
    """For each evaluator (all of one program) its answers to all batches, in order."""
    program = evaluators[0].program
    runs = [_Run(evaluator, batch) for evaluator in evaluators for batch in batches]
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        with program.weights.holding(str(n.target) for n in node.all_input_nodes if n.op == "get_attr"):
            for run in runs:
                run.advance(node)
    answers = [run.answer() for run in runs]
    return [answers[i : i + len(batches)] for i in range(0, len(answers), len(batches))]


class _Run:
    def __init__(self, evaluator: Evaluator, batch: Sequence[Tensor]) -> None:
        self._evaluator = evaluator
        self._problem: Exception | None = None
        self._values: Environment = {}
        try:
            self._values = evaluator.bind(batch)
        except Exception as error:  # as below
            self._problem = error

    def advance(self, node: Any) -> None:
        if self._problem is not None:
            return
        try:
            self._evaluator.advance(self._values, [node])
        except Exception as error:  # any operator may refuse a size or a type: the caller says what follows
            self._problem, self._values = error, {}

    def answer(self) -> Answer:
        return self._evaluator.outputs(self._values) if self._problem is None else self._problem
