from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from fxslim.export import to_onnx
from fxslim.export.check import check_onnx
from fxslim.export.model_file import Interface, describe
from fxslim.export.to_onnx import DEFAULT_OPSET, export_onnx
from fxslim.export.weights import PERMUTATION
from fxslim.graph.capture import capture
from fxslim.graph.errors import ExportError, InputError
from tests.export.nets import Exported, Mlp, randomise

HERE = Path(__file__).resolve().parent


def initializers(path: Path) -> dict[str, ir.Value]:
    return dict(ir.load(path).graph.initializers)


def test_the_interface_keeps_names_and_dimension_names(attention: Exported) -> None:
    dims = ("batch", "sequence")
    assert attention.file.inputs == (
        Interface("input_ids", "INT64", dims),
        Interface("attention_mask", "INT64", dims),
    )
    assert attention.file.outputs == (Interface("hidden", "FLOAT", (*dims, 16)),)


def test_the_opset_is_the_default_one(mlp: Exported) -> None:
    assert mlp.file.opset == DEFAULT_OPSET
    assert onnx.load(mlp.file.path).opset_import[0].version == DEFAULT_OPSET


@pytest.mark.parametrize("opset", [18, 23, 24])
def test_the_opset_is_the_one_asked_for(mlp: Exported, tmp_path: Path, opset: int) -> None:
    assert export_onnx(mlp.program, tmp_path / "m.onnx", opset=opset).opset == opset


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_weights_keep_their_names_and_values(name: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(name)
    found = initializers(exported.file.path)
    assert exported.program.weights.keys() <= found.keys()
    for key, weight in exported.program.weights.items():
        order = [int(i) for i in found[key].metadata_props[PERMUTATION].split(",")]
        tensor = found[key].const_value
        assert tensor is not None
        assert torch.equal(torch.from_numpy(tensor.numpy().copy()), weight.detach().permute(order))


def test_a_weight_that_is_multiplied_transposed_is_stored_transposed(attention: Exported) -> None:
    found = initializers(attention.file.path)["qkv.weight"]
    assert found.shape == ir.Shape([16, 48])
    assert found.metadata_props[PERMUTATION] == "1,0"


def test_a_tied_weight_is_stored_once(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(300, 64)  # larger than what the optimizer would copy

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(self.embed(ids), self.embed.weight)

    program = capture(randomise(Tied()), (torch.randint(0, 300, (2, 3)),))
    file = export_onnx(program, tmp_path / "m.onnx")
    assert file.initializer_bytes < 2 * 300 * 64 * 4
    assert "embed.weight" in initializers(file.path)


def test_a_batch_norm_is_folded_and_its_convolution_keeps_its_name_but_not_its_mark(conv: Exported) -> None:
    found = initializers(conv.file.path)
    assert "BatchNormalization" not in conv.file.ops
    assert PERMUTATION not in found["stem.weight"].metadata_props
    assert PERMUTATION in found["branch.weight"].metadata_props


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
def test_nothing_of_this_machine_is_in_the_file(name: str, request: pytest.FixtureRequest) -> None:
    data = request.getfixturevalue(name).file.path.read_bytes()
    for text in (str(HERE), str(HERE.parents[1]), sys.prefix, str(Path.home()), ".py", "stack_trace", "File "):
        assert text.encode() not in data, text


def test_the_module_of_each_node_is_still_known(mlp: Exported) -> None:
    namespaces = [node.metadata_props.get("namespace", "") for node in ir.load(mlp.file.path).graph]
    assert any("up" in text for text in namespaces)


def test_sizes_are_those_of_the_file(mlp: Exported) -> None:
    assert mlp.file.file_bytes == mlp.file.path.stat().st_size
    assert mlp.file.initializer_bytes >= 4 * sum(w.numel for w in mlp.program.info.values())
    assert mlp.file.ops["Relu"] == 1
    assert mlp.file.external is None


@pytest.mark.parametrize("opset", [1, 17, 25])
def test_an_opset_outside_the_range_is_refused(mlp: Exported, tmp_path: Path, opset: int) -> None:
    with pytest.raises(InputError, match="18 to 24"):
        export_onnx(mlp.program, tmp_path / "m.onnx", opset=opset)


def test_an_exporter_that_ignores_the_opset_is_caught(
    mlp: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = to_onnx._torch_onnx_export
    monkeypatch.setattr(to_onnx, "_torch_onnx_export", lambda program, exported, _: real(program, exported, 18))
    with pytest.raises(ExportError, match="opset 21 was asked for, the exporter produced 18"):
        export_onnx(mlp.program, tmp_path / "m.onnx", opset=21)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a b", "batch;x", "__import__('os')", "a+b"])
def test_a_dimension_name_that_a_loader_could_misread_is_refused(mlp: Exported, tmp_path: Path, name: str) -> None:
    program = mlp.program.clone()
    program.dynamic = {"x": {0: name}}
    with pytest.raises(ExportError):
        export_onnx(program, tmp_path / "m.onnx")


def test_an_output_that_is_no_tensor_is_refused(mlp: Exported, tmp_path: Path) -> None:
    program = mlp.program.clone()
    (output,) = program.graph.find_nodes(op="output")
    output.args = ((3,),)
    with pytest.raises(ExportError, match="'output' is 3"):
        export_onnx(program, tmp_path / "m.onnx")


def test_an_output_that_is_a_size_is_refused(tmp_path: Path) -> None:
    class Count(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
            return x + 1, 2 * x.shape[0]

    program = capture(Count(), (torch.randn(2, 3),), {}, ({0: "batch"},))
    with pytest.raises(ExportError, match=r"'output_1'.*neither a tensor nor a constant"):
        export_onnx(program, tmp_path / "m.onnx")


class Constants(torch.nn.Module):
    """Constants before, between and behind tensors."""

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"loss": 0, "first": x + 1, "rate": 0.5, "none": None, "second": 2 * x, "text": "sum"}


def test_outputs_that_are_constants_are_metadata_of_the_file(tmp_path: Path) -> None:
    program = capture(Constants(), (torch.randn(2, 3),), {}, ({0: "batch"},))
    file = export_onnx(program, tmp_path / "m.onnx")
    assert [o.name for o in file.outputs] == ["first", "second"]
    assert file.constants == {"loss": 0, "rate": 0.5, "none": None, "text": "sum"}
    result = check_onnx(program, file.path, original=program)
    assert result.ok, result.failures
    assert result.constants == file.constants == result.to_dict()["constants"]
    assert [q.name for q in result.quality] == ["first", "second"]
    assert any("'loss' is always 0" in note for note in result.notes)


def test_a_size_that_is_no_sum_or_product_gets_one_name(tmp_path: Path) -> None:
    """Strides divide: `(height - 1)//2 + 1` is no name that every loader can read."""

    class Strides(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            half = torch.nn.functional.avg_pool2d(x, 3, stride=2)
            return half, half * 2, torch.nn.functional.avg_pool2d(x, 2, stride=3)

    program = capture(Strides(), (torch.randn(2, 3, 11, 11),), {}, ({0: "batch", 2: "height"},))
    file = export_onnx(program, tmp_path / "m.onnx")
    assert [o.dims for o in file.outputs] == [
        ("batch", 3, "size_0", 5), ("batch", 3, "size_0", 5), ("batch", 3, "size_1", 4),
    ]  # fmt: skip
    result = check_onnx(program, file.path)
    assert result.ok, result.failures


def test_outputs_that_share_a_tensor_keep_their_names(tmp_path: Path) -> None:
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = x + self.bias
            return x, y, y, self.bias

    program = capture(Shared(), (torch.randn(2, 3),), {}, ({0: "batch"},))
    file = export_onnx(program, tmp_path / "m.onnx")
    assert [i.name for i in file.inputs] == ["x"]
    assert [o.name for o in file.outputs] == [f"output_{i}" for i in range(4)]
    result = check_onnx(program, file.path)
    assert result.ok, result.failures


def test_an_operator_without_a_translation_is_an_export_error(tmp_path: Path) -> None:
    class Unsupported(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(ExportError, match="bessel"):
        export_onnx(capture(Unsupported(), (torch.randn(3),)), tmp_path / "m.onnx")


def test_external_data_lies_in_one_file_beside_the_model(mlp: Exported, tmp_path: Path) -> None:
    file = export_onnx(mlp.program, tmp_path / "model.onnx", external_data="always")
    assert file.external == "model.onnx_data"
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "model.onnx_data"]
    assert file.file_bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert describe(tmp_path / "model.onnx") == file


def test_existing_external_data_is_replaced_not_appended_to(mlp: Exported, tmp_path: Path) -> None:
    data = tmp_path / "model.onnx_data"
    data.write_bytes(b"x" * 100_000)
    export_onnx(mlp.program, tmp_path / "model.onnx", external_data="always")
    first = data.read_bytes()
    assert len(first) < 100_000
    export_onnx(mlp.program, tmp_path / "model.onnx", external_data="always")
    assert data.read_bytes() == first


def test_data_of_a_replaced_model_does_not_stay_behind(mlp: Exported, tmp_path: Path) -> None:
    export_onnx(mlp.program, tmp_path / "model.onnx", external_data="always")
    assert export_onnx(mlp.program, tmp_path / "model.onnx").external is None
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_weights_beyond_a_protobuf_go_to_external_data(
    mlp: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_onnx, "_PROTOBUF_LIMIT", 1000)
    assert export_onnx(mlp.program, tmp_path / "model.onnx").external == "model.onnx_data"
    with pytest.raises(ExportError, match="2 GiB"):
        export_onnx(mlp.program, tmp_path / "model.onnx", external_data="never")


def test_a_model_that_the_checker_refuses_replaces_nothing(
    mlp: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")

    def refuse(*_: Any, **__: Any) -> None:
        raise onnx.checker.ValidationError("no")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(ExportError, match="checker"):
        export_onnx(mlp.program, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_the_program_stays_as_it_was(tmp_path: Path) -> None:
    program = capture(Mlp(), (torch.randn(4, 12),), {}, ({0: "batch"},))
    before, weights = program.fingerprint(), dict(program.weights)
    export_onnx(program, tmp_path / "m.onnx")
    assert program.fingerprint() == before
    assert all(program.weights[k] is v for k, v in weights.items())


def test_exporting_prints_nothing(mlp: Exported, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(mlp.program, tmp_path / "m.onnx")
    assert tuple(capfd.readouterr()) == ("", "")
