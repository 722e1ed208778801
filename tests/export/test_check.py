from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import nn

from fxslim.export.check import check_onnx
from fxslim.export.model_file import CONSTANTS
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.capture import capture
from fxslim.graph.errors import CheckError, InputError
from fxslim.graph.program import Program
from tests.export.nets import Exported, randomise

Edit = Callable[[onnx.ModelProto], None]


def edited(exported: Exported, folder: Path, edit: Edit) -> Path:
    path = exported.copy(folder)
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))
    return path


def set_weight(name: str, change: Callable[[np.ndarray], None]) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        values = onnx.numpy_helper.to_array(tensor).copy()
        change(values)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))

    return edit


def add_to_first(amount: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values.flat[0] += amount

    return change


def with_weight(program: Program, name: str, tensor: torch.Tensor) -> Program:
    changed = program.clone()
    changed.weights[name] = tensor
    return changed


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
def test_a_fresh_export_passes_at_every_shape(name: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(name)
    result = check_onnx(exported.program, exported.file.path, provider="cpu")
    assert result.ok, result.failures
    assert result.provider == "cpu"
    assert set(result.nodes_by_provider) == {"cpu"} and result.nodes_by_provider["cpu"] > 0
    assert result.off_provider == ()
    assert all(row.ok and row.outputs for row in result.shapes)
    batches = {row.sizes["batch"] for row in result.shapes}
    assert {1, 3} <= batches and max(batches) > exported.program.example_inputs[0].shape[0]


def test_dimensions_of_one_name_vary_together(attention: Exported) -> None:
    result = check_onnx(attention.program, attention.file.path, shapes=[{"batch": 3, "sequence": 2}] * 2)
    assert result.ok, result.failures
    assert [row.sizes for row in result.shapes] == [{"batch": 3, "sequence": 2}] * 2


def test_the_result_is_json(attention: Exported) -> None:
    result = check_onnx(attention.program, attention.file.path, original=attention.program)
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["ok"] is True
    assert read["shapes"][0]["outputs"][0]["name"] == "hidden"
    assert read["quality"] == [{"name": "hidden", "rmse": 0.0, "relative": 0.0, "not_comparable": None}]


def test_a_weight_changed_by_one_part_in_a_million_is_named(mlp: Exported, tmp_path: Path) -> None:
    path = edited(mlp, tmp_path, set_weight("up.weight", lambda values: np.multiply(values, 1 + 1e-6, out=values)))
    result = check_onnx(mlp.program, path)
    assert not result.ok
    assert any("'up.weight' of the file holds other values" in failure for failure in result.failures)


def test_a_changed_weight_of_the_program_is_named(attention: Exported) -> None:
    program = with_weight(attention.program, "norm.bias", attention.program.weights["norm.bias"] + 1)
    result = check_onnx(program, attention.file.path)
    assert any("'norm.bias'" in failure for failure in result.failures)
    assert not all(row.ok for row in result.shapes)


def test_a_weight_that_was_folded_is_caught_by_its_outputs(conv: Exported, tmp_path: Path) -> None:
    result = check_onnx(conv.program, edited(conv, tmp_path, set_weight("stem.weight", add_to_first(0.01))))
    assert not result.ok
    assert any("'output' differs" in failure for failure in result.failures)


def test_a_weight_that_is_not_a_number_is_named(conv: Exported, tmp_path: Path) -> None:
    result = check_onnx(conv.program, edited(conv, tmp_path, set_weight("stem.weight", add_to_first(float("nan")))))
    assert any("'stem.weight' of the file holds NaN" in failure for failure in result.failures)


def test_another_operator_with_the_same_weights_is_caught(mlp: Exported, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        (node,) = [n for n in model.graph.node if n.op_type == "Relu"]
        node.op_type = "LeakyRelu"

    result = check_onnx(mlp.program, edited(mlp, tmp_path, edit))
    assert not result.ok and all("differs" in failure for failure in result.failures)


def test_a_renamed_input_is_named_and_nothing_is_run(mlp: Exported, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "y"
        for node in model.graph.node:
            node.input[:] = ["y" if name == "x" else name for name in node.input]

    result = check_onnx(mlp.program, edited(mlp, tmp_path, edit))
    assert result.failures == ("the inputs of the file are y, those of the program x",)
    assert result.shapes == () and not result.ok


def test_a_dimension_that_became_static_is_named(mlp: Exported, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4

    result = check_onnx(mlp.program, edited(mlp, tmp_path, edit))
    assert "the input 'x' of the file has 4 as dimension 0, the program batch" in result.failures


def test_a_constant_output_with_another_value_is_named(tmp_path: Path) -> None:
    class WithLoss(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return x + 1, 0

    program = capture(WithLoss(), (torch.randn(2, 3),))
    path = export_onnx(program, tmp_path / "m.onnx").path
    for text, found in (('{"output_1": 0.0}', "0.0"), ("{}", "none"), ('{"output_1": 0, "x": 1}', "1")):
        model = onnx.load(str(path))
        onnx.helper.set_model_props(model, {CONSTANTS: text})
        onnx.save(model, str(path))
        (failure,) = check_onnx(program, path).failures
        assert f"is {found} in the file" in failure
    onnx.helper.set_model_props(model, {CONSTANTS: "[1]"})
    onnx.save(model, str(path))
    with pytest.raises(InputError, match="not a JSON object"):
        check_onnx(program, path)


def test_a_dimension_name_that_is_code_is_named(mlp: Exported, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "exit()"

    result = check_onnx(mlp.program, edited(mlp, tmp_path, edit))
    assert any("'exit()'" in failure for failure in result.failures)


def test_a_file_of_another_program_fails(mlp: Exported, attention: Exported) -> None:
    result = check_onnx(mlp.program, attention.file.path)
    assert not result.ok and result.shapes == ()


@pytest.mark.parametrize("keep", [0, 1, 0.3, 0.9])
def test_a_truncated_file_is_an_input_error(mlp: Exported, tmp_path: Path, keep: float) -> None:
    path = mlp.copy(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else 1])
    with pytest.raises(InputError, match="not a readable ONNX model"):
        check_onnx(mlp.program, path)


def test_truncated_external_data_is_refused(mlp: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(mlp.program, path, external_data="always")
    assert check_onnx(mlp.program, path).ok
    data = tmp_path / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises((InputError, CheckError)):
        check_onnx(mlp.program, path)
    data.unlink()
    with pytest.raises(InputError):
        check_onnx(mlp.program, path)


def test_a_file_that_is_missing_or_something_else_is_an_input_error(mlp: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        check_onnx(mlp.program, tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model\n" * 100)
    with pytest.raises(InputError, match="not a readable ONNX model"):
        check_onnx(mlp.program, tmp_path / "text.onnx")


class Positions(nn.Module):
    """A table of eight positions: the program cannot run longer sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table(torch.arange(x.shape[1]))


@pytest.fixture(scope="module")
def positions(build: Callable[..., Exported]) -> Exported:
    return build(randomise(Positions()), (torch.randn(2, 6, 4),), ({0: "batch", 1: "sequence"},))


def test_a_shape_that_the_program_cannot_run_does_not_apply(positions: Exported) -> None:
    result = check_onnx(positions.program, positions.file.path)
    assert result.ok, result.failures
    (skipped,) = [row for row in result.shapes if row.not_applicable]
    assert skipped.sizes["sequence"] == 13 and "index out of range" in str(skipped.not_applicable)
    assert any("sequence=13" in note for note in result.notes)


def test_fewer_than_two_runs_fail(positions: Exported) -> None:
    shapes = [{"batch": 2, "sequence": 4}, {"batch": 2, "sequence": 9}]
    result = check_onnx(positions.program, positions.file.path, shapes=shapes)
    assert len(result.failures) == 1
    assert result.failures[0].startswith("the program ran at 1 shapes, 2 are needed")


def test_two_runs_at_one_of_several_shapes_fail(positions: Exported) -> None:
    shapes = [{"batch": 2, "sequence": n} for n in (4, 4, 9)]
    assert not check_onnx(positions.program, positions.file.path, shapes=shapes).ok


class Cache(nn.Module):
    """`total` must be `past + new`, which nothing but the program itself knows."""

    def forward(self, new: torch.Tensor, past: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        return torch.cat([past, new], 1) + total[torch.arange(past.shape[1] + new.shape[1])]


def test_dimensions_that_depend_on_each_other_are_varied_one_at_a_time(build: Callable[..., Exported]) -> None:
    shapes = ({0: "batch", 1: "new"}, {0: "batch", 1: "past"}, {0: "total"})
    exported = build(Cache(), (torch.randn(2, 3), torch.randn(2, 5), torch.randn(8)), shapes)
    result = check_onnx(exported.program, exported.file.path)
    assert result.ok, result.failures
    ran = [row.sizes for row in result.shapes if row.outputs]
    assert {"batch": 5, "new": 3, "past": 5, "total": 8} in ran
    assert len(result.shapes) > len(ran)


def test_no_run_at_all_fails(positions: Exported) -> None:
    assert not check_onnx(positions.program, positions.file.path, shapes=[]).ok


def test_a_constant_output_is_noted(mlp: Exported, tmp_path: Path) -> None:
    program = with_weight(mlp.program, "down.weight", torch.zeros(12, 40))
    program.weights["down.bias"] = torch.zeros(12)
    file = export_onnx(program, tmp_path / "m.onnx")
    result = check_onnx(program, file.path)
    assert result.ok, result.failures
    assert result.notes == ("the output 'output' is constant in every run, so that agreeing with it proves little",)


def test_the_distance_to_the_original_is_reported_and_decides_nothing(mlp: Exported) -> None:
    original = with_weight(mlp.program, "down.bias", mlp.program.weights["down.bias"] + 2.0)
    result = check_onnx(mlp.program, mlp.file.path, original=original)
    assert result.ok, result.failures
    assert result.quality[0].rmse == pytest.approx(2.0, rel=1e-6)


def test_given_inputs_are_used(mlp: Exported) -> None:
    result = check_onnx(mlp.program, mlp.file.path, inputs=[[torch.randn(7, 12)], [torch.randn(2, 12)]])
    assert [row.sizes for row in result.shapes] == [{"batch": 7}, {"batch": 2}]
    assert result.ok, result.failures


def test_inputs_and_shapes_exclude_each_other(mlp: Exported) -> None:
    with pytest.raises(InputError, match="both"):
        check_onnx(mlp.program, mlp.file.path, inputs=[[torch.randn(7, 12)]], shapes=[{"batch": 2}])
    with pytest.raises(InputError, match="2 inputs were given"):
        check_onnx(mlp.program, mlp.file.path, inputs=[[torch.randn(7, 12)] * 2])


def test_a_reference_that_cannot_run_stops_the_check(mlp: Exported) -> None:
    def broken(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        raise NotImplementedError("no float64 kernel")

    with pytest.raises(CheckError, match="no float64 kernel"):
        check_onnx(mlp.program, mlp.file.path, reference64=broken)


def test_without_onnx_runtime_the_check_says_what_to_install(mlp: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckError, match=r"pip install fxslim\[cpu\]"):
        check_onnx(mlp.program, mlp.file.path)


def test_half_precision_is_checked_with_its_own_tolerance(mlp: Exported, build: Callable[..., Exported]) -> None:
    half = build(randomise(nn.Linear(8, 8)).half(), (torch.randn(4, 8).half(),), ({0: "batch"},))
    result = check_onnx(half.program, half.file.path)
    assert result.tolerance.name == "half"
    assert result.ok, result.failures


class Bounded(nn.Module):
    """A clamp whose upper bound is a number, infinity on request."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.a, self.b, self.most = nn.Linear(4, 6), nn.Linear(6, 3), most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).clamp(0.1, self.most))


def test_a_bound_of_infinity_is_no_failure_and_an_infinity_that_came_from_nowhere_is(tmp_path: Path) -> None:
    unbounded, bounded = (capture(Bounded(most).eval(), (torch.randn(2, 4),)) for most in (float("inf"), 9.0))
    path = tmp_path / "model.onnx"
    export_onnx(unbounded, path)
    assert check_onnx(unbounded, path, provider="cpu").ok
    failures = check_onnx(bounded, path, provider="cpu").failures
    assert any("holds plus infinity" in failure for failure in failures)


class Boxes(nn.Module):
    """Looks the width of a box up: no drawn corners fit, since they must ascend."""

    def __init__(self) -> None:
        super().__init__()
        self.widths = nn.Embedding(4, 3)

    def forward(self, corners: torch.Tensor) -> torch.Tensor:
        return self.widths(corners[:, 1] - corners[:, 0])


@pytest.mark.parametrize(("corners", "ok"), [([[0, 3], [5, 6], [7, 9]], True), ([[5, 6]], False)])
def test_rows_in_another_order_are_run_where_no_drawn_inputs_fit(
    tmp_path: Path, corners: list[list[int]], ok: bool
) -> None:
    program = capture(Boxes(), (torch.tensor(corners),))
    file = export_onnx(program, tmp_path / "model.onnx")
    result = check_onnx(program, file.path, provider="cpu")
    assert result.ok is ok
    assert len([row for row in result.shapes if row.not_applicable is None]) == (2 if ok else 1)
