from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fxslim.export.quantize import check_quantized, quantize_onnx
from fxslim.export.samples import draw_inputs
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.errors import ExportError, InputError
from tests.export.nets import Exported

NEAR = 0.2  # of the spread of the outputs: random weights in 8 bits


def batches(exported: Exported, count: int = 4) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = {name: 3 for dims in exported.program.dynamic.values() for name in dims.values()}
    return [draw_inputs(exported.program, sizes, generator) for _ in range(count)]


@pytest.mark.parametrize("how", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
def test_eight_bits_say_nearly_the_same(name: str, how: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    exported: Exported = request.getfixturevalue(name)
    path, data = tmp_path / "q.onnx", batches(exported)
    file = quantize_onnx(exported.file.path, path, how, data)  # type: ignore[arg-type]
    assert (file.inputs, file.outputs) == (exported.file.inputs, exported.file.outputs)
    found = check_quantized(exported.file.path, path, data, provider="cpu")
    assert found.ok, found.failures
    assert found.runs == len(data)
    assert all(0 < d.relative < NEAR for d in found.drift)


def test_attention_as_one_operator_is_left_alone(attention: Exported, tmp_path: Path) -> None:
    export_onnx(attention.program, tmp_path / "m.onnx", opset=23)
    file = quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", "dynamic")
    assert file.ops.get("Attention") == 1
    assert check_quantized(tmp_path / "m.onnx", tmp_path / "q.onnx", batches(attention), provider="cpu").ok


def test_static_without_data_is_refused(mlp: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs calibration data"):
        quantize_onnx(mlp.file.path, tmp_path / "q.onnx", "static")


def test_an_unknown_way_is_refused(mlp: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dynamic or static"):
        quantize_onnx(mlp.file.path, tmp_path / "q.onnx", "int4")  # type: ignore[arg-type]


def test_a_narrow_file_is_refused(mlp: Exported, tmp_path: Path) -> None:
    export_onnx(mlp.program, tmp_path / "m.onnx", dtype="float16")
    with pytest.raises(InputError, match="float16"):
        quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", "dynamic")


def test_what_the_quantiser_raises_is_an_export_error(
    mlp: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise AssertionError("no")

    monkeypatch.setattr("fxslim.export.quantize._quantize", broken)
    with pytest.raises(ExportError, match="AssertionError: no"):
        quantize_onnx(mlp.file.path, tmp_path / "q.onnx", "dynamic")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_which_nothing_is_quantised_fails(mlp: Exported, tmp_path: Path) -> None:
    found = check_quantized(mlp.file.path, mlp.copy(tmp_path), batches(mlp), provider="cpu")
    assert any("nothing was quantised" in f for f in found.failures)


def test_an_activation_in_eight_bits_alone_is_not_enough(mlp: Exported, tmp_path: Path) -> None:
    model = onnx.load(str(mlp.file.path))
    name = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = [f"{name}.back" if i == name else i for i in node.input]
    for array in (np.array(0.02, np.float32), np.array(0, np.int8)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, f"{name}.{array.dtype.name}"))
    around = [f"{name}.float32", f"{name}.int8"]
    model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", [f"{name}.q", *around], [f"{name}.back"]))
    model.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", [name, *around], [f"{name}.q"]))
    onnx.save(model, str(tmp_path / "q.onnx"))
    found = check_quantized(mlp.file.path, tmp_path / "q.onnx", batches(mlp), provider="cpu")
    assert any("nothing was quantised" in f for f in found.failures)


def test_another_interface_fails(mlp: Exported, conv: Exported, tmp_path: Path) -> None:
    quantize_onnx(conv.file.path, tmp_path / "q.onnx", "dynamic")
    found = check_quantized(mlp.file.path, tmp_path / "q.onnx", batches(mlp), provider="cpu")
    assert any("other inputs or outputs" in f for f in found.failures)


def test_outputs_that_say_nothing_fail(mlp: Exported, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    quantize_onnx(mlp.file.path, path, "dynamic")
    broken = tmp_path / "broken.onnx"
    shutil.copy(path, broken)
    model = onnx.load(str(broken))
    scale = next(t for t in model.graph.initializer if "weight" in t.name and t.name.endswith("scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(model, str(broken))
    assert check_quantized(mlp.file.path, path, batches(mlp), provider="cpu").ok
    found = check_quantized(mlp.file.path, broken, batches(mlp), provider="cpu")
    assert any("says nothing any more" in f for f in found.failures), found.drift
    assert check_quantized(mlp.file.path, broken, batches(mlp), provider="cpu", judged=False).ok


def test_no_batches_are_no_comparison(mlp: Exported) -> None:
    with pytest.raises(InputError, match="no inputs"):
        check_quantized(mlp.file.path, mlp.file.path, [], provider="cpu")
