"""Bytes that a run holds, against what it holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.liveness import liveness, value_bytes
from fxslim.graph.program import bind_symbols
from tests.models.modules import Attention


class Branches(nn.Module):
    """A value that is needed again later, views of it, and one that dies at once."""

    def forward(self, x: Tensor) -> Tensor:
        a = x + 1
        b = a.transpose(1, 2).unsqueeze(0)
        c = torch.relu(b).sum(0)
        return c.transpose(1, 2) * a


def held(model: nn.Module, x: Tensor, rows: int) -> tuple[list[int], list[int]]:
    """Bytes before every call: counted, and those of the storages of a real run; inputs and weights left out."""
    program = capture(model.eval(), (x,), dynamic_shapes=({0: "rows"},))
    inputs = [torch.randn(rows, *x.shape[1:])]
    evaluator, found = Evaluator(program), []
    env = evaluator.bind(inputs)
    given = {id(v.untyped_storage()._cdata) for v in env.values()} | {
        v.untyped_storage().data_ptr() for v in env.values()
    }
    weights = {program.weights[n].untyped_storage().data_ptr() for n in program.weights}
    for node in program.graph.nodes:
        storages = {
            v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in env.values() if isinstance(v, Tensor)
        }
        found.append(sum(size for place, size in storages.items() if place not in given | weights))
        evaluator.advance(env, [node])
    return list(liveness(program, inputs).live[: len(found)]), found


def test_what_is_counted_is_what_a_run_holds() -> None:
    counted, found = held(Branches(), torch.randn(2, 3, 4), 5)
    assert counted == found and max(found) > 0


def test_attention_is_counted_with_its_views() -> None:
    counted, found = held(Attention(), torch.randn(2, 6, 8), 3)
    assert all(a >= b for a, b in zip(counted, found, strict=True)) and max(counted) <= 1.5 * max(found)


def test_sizes_are_those_of_the_inputs_given() -> None:
    program = capture(Branches(), (torch.randn(2, 3, 4),), dynamic_shapes=({0: "rows"},))
    small, large = (liveness(program, [torch.randn(rows, 3, 4)]) for rows in (2, 6))
    assert [3 * n for n in small.live] == list(large.live) and max(large.inner) >= max(large.live)
    wide = liveness(program, [torch.randn(2, 3, 4)], double=True)
    assert list(wide.live) == [2 * n for n in small.live]
    node = next(n for n in program.graph.nodes if n.op == "call_function")
    assert value_bytes(node, bind_symbols(program, [torch.randn(7, 3, 4)])) == 7 * 3 * 4 * 4
