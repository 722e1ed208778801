"""Sample calls of recurrent layers: gates stacked in the first dimension, layers and directions in a list."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fxslim.graph.axes.oracle import Sample
from tests.graph.axes.samples_pointwise import real

aten = torch.ops.aten
UNITS = 3


def samples() -> Iterator[Sample]:
    """All samples of this file."""
    for op, gates in ((aten.lstm.input, 4), (aten.gru.input, 3), (aten.rnn_tanh.input, 1), (aten.rnn_relu.input, 1)):
        yield _sample(op, gates, layers=1, ways=1, biases=True)
        yield _sample(op, gates, layers=2, ways=1, biases=False)
        yield _sample(op, gates, layers=2, ways=2, biases=True)


def _sample(op: torch._ops.OpOverload, gates: int, *, layers: int, ways: int, biases: bool) -> Sample:
    batch, steps, inputs = 2, 4, 5
    state = real(layers * ways, batch, UNITS)
    states = [state, real(layers * ways, batch, UNITS)] if op is aten.lstm.input else state
    params = []
    for layer in range(layers):
        for _ in range(ways):
            params += [real(gates * UNITS, UNITS * ways if layer else inputs), real(gates * UNITS, UNITS)]
            params += [real(gates * UNITS), real(gates * UNITS)] if biases else []
    first = layers == 1
    x = real(batch, steps, inputs) if first else real(steps, batch, inputs)
    return Sample(
        op, (x, states, params, biases, layers, 0.0, False, ways == 2, first), note=f"{layers} layers, {ways} ways"
    )
