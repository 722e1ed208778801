from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fxslim.export.check import check_onnx
from fxslim.export.model_file import Interface, describe
from fxslim.export.narrow import DTYPE, narrow
from fxslim.export.providers import CPU, create_session
from fxslim.export.running import ort_value, run_session
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.capture import capture
from fxslim.graph.errors import CheckError, ExportError, InputError
from fxslim.graph.program import Program
from tests.export.nets import Attention, Exported, Mlp, randomise

CLOSE = 5e-3  # relative: a few units in the last place of float16, on outputs of size one


class Squares(nn.Module):
    """RMSNorm written out, on values whose squares are beyond float16."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = 400.0 * self.up(x)
        return self.scale * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + 1e-6))


class Angles(nn.Module):
    """Rotary angles: positions beyond 2,048, which float16 cannot tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.register_buffer("frequency", 0.7 ** torch.arange(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(3000, 3000 + ids.shape[1], device=ids.device).float()
        angles = positions[:, None] @ self.frequency[None]
        hidden = self.embed(ids)
        return torch.cat([hidden[..., :4] * angles.cos(), hidden[..., 4:] * angles.sin()], -1)


class Masked(nn.Module):
    """Scores under a mask of the most negative float32; one whole row is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        added = (1.0 - mask.float()) * torch.finfo(torch.float32).min
        return (self.query(x) @ x.transpose(1, 2) + added[:, None]).softmax(-1) @ x


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> dict[str, torch.Tensor]:
        present = torch.cat([past, self.value(x)], 1)
        return {"out": present.sum(1), "present": present}


def exported(program: Program, folder: Path, dtype: str = "float16", opset: int = 20) -> Path:
    path = folder / "narrow.onnx"
    export_onnx(program, path, dtype=dtype, opset=opset)  # type: ignore[arg-type]
    return path


def batch_of(model: nn.Module, *args: torch.Tensor) -> Program:
    return capture(randomise(model), args, {}, tuple({0: "batch"} for _ in args))


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
def test_a_file_in_float16_passes_its_check(
    name: str, opset: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    program: Program = request.getfixturevalue(name).program
    path = exported(program, tmp_path, opset=opset)
    found = check_onnx(program, path, provider="cpu", dtype="float16")
    assert found.ok, found.failures
    assert found.tolerance.name == "float16"


def test_weights_are_halved_and_the_interface_stays(attention: Exported, tmp_path: Path) -> None:
    file = describe(exported(attention.program, tmp_path))
    assert file.dtype == "float16"
    assert (file.inputs, file.outputs) == (attention.file.inputs, attention.file.outputs)
    assert file.initializer_bytes < 0.6 * attention.file.initializer_bytes
    assert "Softmax" in file.float32_ops
    assert "MatMul" not in file.float32_ops


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_each_weight_is_that_of_the_program_rounded(mlp: Exported, tmp_path: Path, dtype: str) -> None:
    found = ir.load(exported(mlp.program, tmp_path, dtype)).graph.initializers["up.weight"]
    assert found.const_value is not None
    rounded = mlp.program.weights["up.weight"].detach().to(getattr(torch, dtype)).contiguous()
    assert found.const_value.tobytes() == rounded.view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (Squares(), (torch.randn(4, 8),)),
        (Angles(), (torch.randint(0, 10, (2, 5)),)),
        (Masked(), (torch.randn(2, 3, 8), torch.tensor([[1, 1, 0], [0, 0, 0]]))),
    ],
    ids=["squares", "angles", "masked"],
)
def test_what_would_leave_the_range_of_float16_does_not(
    model: nn.Module, args: tuple[torch.Tensor, ...], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    program = batch_of(model, *args)
    path = exported(program, tmp_path)
    found = check_onnx(program, path, provider="cpu")
    assert found.ok, found.failures
    with torch.no_grad():
        expected = program.flat_module()(*args)[0]
    (got,) = run_session(create_session(path, CPU), args)
    assert float((got - expected).norm() / expected.norm()) < CLOSE


def test_caches_are_narrow_and_all_else_is_not(tmp_path: Path) -> None:
    dims = ({0: "batch", 1: "new"}, {0: "batch", 1: "past"})
    args = (torch.randn(2, 3, 6), torch.randn(2, 5, 4))
    program = capture(randomise(Cached()), args, {}, dims, caches={"past": "present"})
    path = exported(program, tmp_path)
    file = describe(path)
    assert [i.dtype for i in (*file.inputs, *file.outputs)] == ["FLOAT", "FLOAT16", "FLOAT", "FLOAT16"]
    found = check_onnx(program, path, provider="cpu")
    assert found.ok, found.failures


def test_a_weight_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    model = randomise(Mlp())
    with torch.no_grad():
        model.get_parameter("up.weight")[0, 0] = 1e5
    program = capture(model, (torch.randn(4, 12),))
    with pytest.raises(ExportError, match=r"'up.weight'(.|\n)*bfloat16"):
        exported(program, tmp_path)
    assert describe(exported(program, tmp_path, "bfloat16")).dtype == "bfloat16"


def test_bfloat16_that_does_not_run_is_not_checked(attention: Exported, tmp_path: Path) -> None:
    path = exported(attention.program, tmp_path, "bfloat16")
    with pytest.raises(CheckError, match=r"bfloat16 was not run(.|\n)*--provider cuda"):
        check_onnx(attention.program, path, provider="cpu")


def test_a_program_that_is_narrow_already_is_not_narrowed_again(tmp_path: Path) -> None:
    program = capture(randomise(Mlp()).half(), (torch.randn(4, 12).half(),))
    with pytest.raises(InputError, match="float16"):
        exported(program, tmp_path, "bfloat16")


def test_an_unknown_type_is_bad_input(mlp: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int4"):
        exported(mlp.program, tmp_path, "int4")


def edited(path: Path, key: str, value: str) -> Path:
    model = onnx.load(str(path))
    del model.metadata_props[:]
    model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


def test_a_file_in_float32_that_says_float16_is_found(mlp: Exported, tmp_path: Path) -> None:
    found = check_onnx(mlp.program, edited(mlp.copy(tmp_path), DTYPE, "float16"), provider="cpu")
    assert any("holds no weight of that type" in f for f in found.failures)


def test_the_type_that_was_asked_for_is_compared(mlp: Exported, tmp_path: Path) -> None:
    found = check_onnx(mlp.program, mlp.copy(tmp_path), provider="cpu", dtype="float16")
    assert "the file is in float32, float16 was asked for" in found.failures


def test_a_type_that_is_none_is_bad_input(mlp: Exported, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no type"):
        check_onnx(mlp.program, edited(mlp.copy(tmp_path), DTYPE, "int4"), provider="cpu")


def test_one_wrong_value_in_a_narrow_weight_is_found(mlp: Exported, tmp_path: Path) -> None:
    path = exported(mlp.program, tmp_path)
    model = onnx.load(str(path))
    (tensor,) = [t for t in model.graph.initializer if t.name == "down.weight"]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += np.float16(0.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(path))
    found = check_onnx(mlp.program, path, provider="cpu")
    assert not found.ok


def test_a_wrong_constant_is_found_by_the_outputs(tmp_path: Path) -> None:
    program = batch_of(Masked(), torch.randn(2, 3, 8), torch.tensor([[1, 1, 0], [0, 1, 0]]))
    path = exported(program, tmp_path)
    model = onnx.load(str(path))
    masks = [t for t in model.graph.initializer if float(onnx.numpy_helper.to_array(t).min()) < -1e4]
    assert masks
    for tensor in masks:
        tensor.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, str(path))
    found = check_onnx(program, path, provider="cpu")
    assert any("the output 'output' differs" in f for f in found.failures), found.failures


def test_statistics_stay_in_float32(tmp_path: Path) -> None:
    file = describe(exported(batch_of(Squares(), torch.randn(4, 8)), tmp_path))
    assert {"Pow", "ReduceMean", "Sqrt"} <= file.float32_ops.keys(), file.float32_ops


GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
agraph (float[1, 1, 4, 4] x, bool c) => (float[1, 1, 8, 8] y, float[1, 1, 4, 4] z)
<float w = {0.37}, float[4] scales = {1.0, 1.0, 2.0, 2.0}>
{
    h = Mul(x, w)
    y = Resize<mode="nearest">(h, , scales)
    z = If(c) <
        then_branch = then () => (float[1, 1, 4, 4] a) { a = Add(h, w) },
        else_branch = else () => (float[1, 1, 4, 4] b) { b = Neg(h) }
    >
}
"""


def test_branches_and_types_that_an_operator_fixes_stay_float32(tmp_path: Path) -> None:
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(GRAPH))
    model = ir.serde.deserialize_model(proto)
    narrow(model, "float16", {"w"})
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    x = torch.randn(1, 1, 4, 4)
    before, after = create_session(proto.SerializeToString(), CPU), create_session(path, CPU)
    for condition in (torch.tensor(True), torch.tensor(False)):
        for got, expected in zip(run_session(after, (x, condition)), run_session(before, (x, condition)), strict=True):
            assert 0 < float((got - expected).norm() / expected.norm()) < CLOSE


def test_bfloat16_goes_in_and_out_of_a_session() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (bfloat16[2] x) => (bfloat16[2] y) { y = Identity(x) }'
    )
    x = torch.tensor([1.5, -2.25])
    (got,) = run_session(create_session(proto.SerializeToString(), CPU), (x,))
    assert got.dtype is torch.bfloat16
    assert torch.equal(got.float(), x)
    assert ort_value(x.bfloat16()).data_type() == "tensor(bfloat16)"


def test_attention_of_opset_23_keeps_its_softmax_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(3)
    args = (torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64))
    program = capture(randomise(Attention()), args, {}, ({0: "b", 1: "s"}, {0: "b", 1: "s"}))
    (node,) = [n for n in ir.load(exported(program, tmp_path, opset=23)).graph if n.op_type == "Attention"]
    assert node.attributes["softmax_precision"].as_int() == onnx.TensorProto.FLOAT
    assert Interface("hidden", "FLOAT", ("b", "s", 16)) in describe(tmp_path / "narrow.onnx").outputs
