"""Capture: what a program says of the model that it was made from, and what cannot be captured."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import CaptureError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from tests.models.nets import Attention, Tied, TwoByTwo

aten = torch.ops.aten
BS = {0: "batch", 1: "sequence"}


def test_dynamic_dimensions_go_by_their_names() -> None:
    inputs = {"left": torch.randn(2, 5, 4), "right": torch.randn(2, 5, 6)}
    program = capture(TwoByTwo(), (), inputs, {"left": BS, "right": BS})
    assert program.dynamic == {"left": BS, "right": BS}
    assert (program.input_names, program.output_names) == (("left", "right"), ("small", "big"))
    left, right = (n.meta["val"].shape for n in program.graph.find_nodes(op="placeholder"))
    assert (left[0], left[1]) == (right[0], right[1]), "equal names are one dimension"
    assert isinstance(left[0], torch.SymInt)


def test_other_names_are_other_dimensions() -> None:
    class Outer(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a[:, None] * b

    program = capture(Outer(), (torch.randn(5), torch.randn(7)), dynamic_shapes=({0: "rows"}, {0: "columns"}))
    assert program.dynamic == {"a": {0: "rows"}, "b": {0: "columns"}}
    assert Evaluator(program).run([torch.ones(1), torch.ones(9)])[0].shape == (1, 9)


def test_tied_weights_are_one_weight_with_an_alias() -> None:
    program = capture(Tied(), (torch.tensor([[1, 2, 3]]),))
    assert program.info["embed.weight"].aliases == ("head.weight",)
    assert "head.weight" not in program.info
    assert program.parameters() == 20 * 9 + 2 * 9 * 12 + 12 + 9
    module = program.module()
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")


def test_training_flags_are_left_as_they_were_even_after_a_failure() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return self.norm(x)
            return self.drop(x)

    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model[2].eval()
    program = capture(model, (torch.randn(3, 4),))
    assert [m.training for m in model] == [True, True, False]
    assert not [n for n in program.graph.nodes if "dropout" in str(n.target)]
    failing = Fails()
    failing.drop.eval()
    with pytest.raises(CaptureError):
        capture(failing, (torch.randn(3, 4),))
    assert (failing.training, failing.drop.training, failing.norm.training) == (True, False, True)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that the message must name
            return x
        return -x


def test_what_cannot_be_exported_names_the_models_line() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export cannot capture Branches") as caught:
        capture(Branches(), (torch.randn(3),))
    assert caught.value.at is not None
    assert "test_capture.py" in caught.value.at
    assert caught.value.at.endswith("in forward")
    assert caught.value.remedy


def test_a_model_that_writes_to_its_state_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x + self.calls

    with pytest.raises(CaptureError, match="writes to 'calls'"):
        capture(Counts(), (torch.randn(3),))


def test_inputs_that_are_no_tensors_are_refused() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, factor: float) -> Tensor:
            return x * factor

    with pytest.raises(CaptureError, match="type float cannot be an input"):
        capture(Scaled(), (torch.randn(3), 2.0))


def test_the_scale_of_attention_is_written_down() -> None:
    program = capture(Attention(), (torch.randn(2, 5, 8),))
    (node,) = program.graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default)
    assert node.kwargs["scale"] == 1 / math.sqrt(4)

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, scale=0.3)

    (node,) = capture(Own(), (torch.randn(1, 2, 3, 4),)).graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    )
    assert node.kwargs["scale"] == 0.3


def test_sizes_that_are_known_are_written_down() -> None:
    """An inferred -1 would be resolved when a saved program is loaded: another fingerprint of the same graph."""

    class Heads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(*x.shape[:-1], -1, 3)

    program = capture(Heads(), (torch.randn(4, 12),), dynamic_shapes=({0: "rows"},))
    (node,) = program.graph.find_nodes(op="call_function", target=aten.reshape.default)
    assert list(node.args[1])[1:] == [4, 3]


def test_a_model_on_the_meta_device_can_be_analysed() -> None:
    with torch.device("meta"):
        model, x = Attention(), torch.randn(2, 5, 8)
    assert {g.kind for g in analyze(capture(model, (x,))).prunable} == {"heads", "query-key dims", "value dims"}


def test_weights_are_shared_with_the_model() -> None:
    model = nn.Linear(4, 3)
    program = capture(model, (torch.randn(2, 4),))
    assert program.weights["weight"].data_ptr() == model.weight.data_ptr()


class Nested(nn.Module):
    """Attention weights over what was and what is new, with what was in a list of dictionaries."""

    def forward(self, x: Tensor, mask: Tensor, past: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        found = {}
        for number, layer in enumerate(past):
            found[f"present.{number}.key"] = torch.cat([layer["key"], x], 1)
            found[f"present.{number}.value"] = torch.cat([layer["value"], 2 * x], 1)
        return {"y": x + mask.sum(1)[:, None, None] + found["present.0.key"].sum(1, keepdim=True), **found}


def nested(**options: object) -> Program:
    past = [{"key": torch.randn(2, 4, 3), "value": torch.randn(2, 4, 3)} for _ in range(2)]
    shapes = {
        "x": {0: "batch", 1: "new"}, "mask": {0: "batch", 1: "past + new"},
        "past": [{"key": {0: "batch", 1: "past"}, "value": {0: "batch", 1: "past"}}] * 2,
    }  # fmt: skip
    return capture(Nested(), (torch.randn(2, 5, 3), torch.ones(2, 9), past), None, shapes, **options)  # type: ignore[arg-type]


def test_nested_dictionaries_have_dimensions_by_name_too() -> None:
    program = nested()
    assert program.input_names == ("x", "mask", "past_0_key", "past_0_value", "past_1_key", "past_1_value")
    assert program.dynamic["past_1_value"] == {0: "batch", 1: "past"}
    assert program.dynamic["mask"] == {0: "batch", 1: "past + new"}
    assert program.outside_names == program.input_names


def test_inputs_may_be_called_otherwise_outside() -> None:
    names = {"past_0_key": "past.0.key", "past_1_value": "past.1.value"}
    program = nested(names=names)
    assert program.outside_names == ("x", "mask", "past.0.key", "past_0_value", "past_1_key", "past.1.value")
    assert program.clone().outside_names == program.outside_names


@pytest.mark.parametrize(
    ("names", "said"),
    [({"nothing": "a"}, "there is no input 'nothing'"), ({"x": "mask"}, "two inputs are called 'mask'")],
)
def test_names_of_no_input_are_refused(names: dict[str, str], said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        nested(names=names)
