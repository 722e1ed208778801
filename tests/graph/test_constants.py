"""Numbers read out of constant tensors are literals after capture, and sizes that depend on them are numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.passes.planner import make_plan
from fxslim.passes.prove import prove
from fxslim.passes.prune import Prune

aten = torch.ops.aten
SAME = 1e-6  # float32


class Distances(nn.Module):
    """A table of the distances between positions, as long as the tensor of positions says."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], dtype=torch.float32)
        first, last = positions[0] - positions[-1], positions[-1] - torch.tensor([0.0, 1.0])[0]
        table = torch.arange(first, last + 1, dtype=torch.int64)
        bias = torch.cos(table[:, None].expand(table.shape[0], 6) / 3)
        hidden = torch.relu(self.up(x))
        return self.down(hidden + bias[torch.arange(x.shape[1])])


def test_a_size_read_out_of_a_constant_tensor_is_a_number() -> None:
    model, x = Distances().eval(), torch.randn(2, 5, 4)
    program = capture(model, (x,))
    assert not program.graph.find_nodes(op="call_function", target=aten.item.default)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        assert not isinstance(value, Tensor) or all(isinstance(size, int) for size in value.shape), node
    (found,) = Evaluator(program).run((x,))
    torch.testing.assert_close(found, model(x), rtol=SAME, atol=SAME)
    analysis = analyze(program)
    plan = make_plan(analysis, width=0.5)
    assert prove(analysis, plan).ok and Prune(plan).apply(analysis).program.info["up.weight"].shape == (3, 4)


class Threshold(nn.Module):
    """A number that a checkpoint may change, and one that the inputs decide."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("most", torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.most.item() + x.sum().item()


def test_numbers_of_inputs_and_buffers_are_read_at_run_time() -> None:
    program = capture(Threshold(), (torch.randn(2, 5),))
    assert len(program.graph.find_nodes(op="call_function", target=aten.item.default)) == 2
