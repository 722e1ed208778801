"""Rules of recurrent layers: every unit is fed all units of the step before, through weights that carry it twice."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.registry import Call, rule

__all__: list[str] = []

aten = torch.ops.aten
_GATES = {
    aten.lstm.input: 4, aten.gru.input: 3, aten.rnn_tanh.input: 1, aten.rnn_relu.input: 1,
}  # fmt: skip


@rule(*_GATES)
def recurrent_layer(call: Call) -> DimRule | None:
    """Layers of LSTM, GRU or plain cells with one hidden width `h`: all layers and directions share their states'
    tensor. Projections (two widths that feed each other) have no rule."""
    states = call.arg("hx") if isinstance(call.arg("hx"), list | tuple) else [call.arg("hx")]
    params = list(call.arg("params"))
    layers, ways = int(call.arg("num_layers")), 2 if call.arg("bidirectional") else 1
    each = 4 if call.arg("has_biases") else 2
    if len(params) != layers * ways * each or len({call.shape(s) for s in states}) > 1:
        return None
    gates = _concat(["h"] * _GATES[call.op])
    outputs = _concat(["h"] * ways)
    batch = "b s" if call.arg("batch_first") else "s b"
    state = f"{'n' if layers * ways > 1 else '1'} b h"
    rows = [f"{batch} k", *[state] * len(states)]
    costs: list[str] = []
    for layer in range(layers):
        width = outputs if layer else "k"
        rows += [f"{gates} {width}", f"{gates} h", *[gates] * (each - 2)] * ways
        inner = ["k"] if not layer else ["h"] * ways
        costs += [f"b s h {x}" for x in (*inner, "h")] * (ways * _GATES[call.op])
    fixed = "s n" if "n" in state else "s"
    return DimRule.parse(
        f"{', '.join(rows)} -> {batch} {outputs}, {', '.join([state] * len(states))}"
        f" | recurrent h | fixed {fixed} | general k",
        costs=costs, why="steps follow each other; states are stacked by layer and direction",
    )  # fmt: skip


def _concat(parts: list[str]) -> str:
    return f"[{'|'.join(parts)}]" if len(parts) > 1 else parts[0]
