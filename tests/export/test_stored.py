"""Weights on disk, exported: the file of loaded weights byte for byte, each read once and freed; and checked."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fxslim.export.check import check_onnx
from fxslim.export.narrow import OnnxDtype
from fxslim.export.stored import StoredTensor, transposed
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.capture import capture
from fxslim.graph.program import Program
from fxslim.graph.stores import FileTensor, WeightStore, read_header

WIDTH = 64


class Tied(nn.Module):
    """An embedding that is the head as well, a transposed weight, a product with a bias, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(200, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 256, bias=False), nn.Linear(256, WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return nn.functional.linear(x, self.table.weight)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Program, Program]]:
    """The same program with its weights in memory and on disk."""

    @cache
    def made() -> tuple[Program, Program]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Tied()
        ids = torch.randint(0, 200, (2, 7), generator=torch.Generator().manual_seed(0))
        program = capture(model, (ids,), dynamic_shapes=({0: "batch", 1: "length"},))
        path = tmp_path_factory.mktemp("weights") / "w.safetensors"
        save_file({name: tensor.clone() for name, tensor in program.weights.items()}, path)
        stored = program.clone()
        stored.weights = WeightStore(read_header(path))
        return program, stored

    return made


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("external", ["always", "never"])
def test_the_file_is_the_same(
    programs: Callable[[], tuple[Program, Program]], tmp_path: Path, dtype: OnnxDtype, external: str
) -> None:
    files = []
    for name, program in zip(("memory", "disk"), programs(), strict=True):
        (tmp_path / name).mkdir()
        export_onnx(program, tmp_path / name / "model.onnx", dtype=dtype, external_data=external)  # type: ignore[arg-type]
        files.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert files[0].keys() == ({"model.onnx", "model.onnx_data"} if external == "always" else {"model.onnx"})
    assert files[0] == files[1]


def test_large_weights_are_read_once_and_none_is_kept(
    programs: Callable[[], tuple[Program, Program]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, reads, alive = FileTensor.read, Counter[int](), list[weakref.ref[torch.Tensor]]()
    most = 0

    def counted(self: FileTensor) -> torch.Tensor:
        nonlocal most
        value = read(self)
        if self.nbytes > 4 * 1024:  # smaller ones are looked at for repetitions
            gc.collect()
            reads[self.offset] += 1
            alive.append(weakref.ref(value))
            most = max(most, sum(one() is not None for one in alive))
        return value

    _, stored = programs()
    monkeypatch.setattr(FileTensor, "read", counted)
    export_onnx(stored, tmp_path / "model.onnx", external_data="always")
    large = [name for name in stored.info if stored.weights.entry(name).nbytes > 4 * 1024]
    assert len(reads) == len(large) == 3
    assert set(reads.values()) == {1}
    assert most == 1
    assert all(one() is None for one in alive)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_check_of_weights_on_disk_says_what_the_other_says(
    programs: Callable[[], tuple[Program, Program]], tmp_path: Path, dtype: OnnxDtype
) -> None:
    program, stored = programs()
    export_onnx(stored, tmp_path / "model.onnx", dtype=dtype, external_data="always")
    theirs, ours = (check_onnx(p, tmp_path / "model.onnx", original=p, dtype=dtype) for p in (program, stored))
    assert ours.ok
    assert not theirs.streamed
    assert ours.streamed
    assert any("stayed on disk" in note for note in ours.notes)
    assert not any("stayed on disk" in note for note in theirs.notes)
    for a, b in zip(ours.shapes, theirs.shapes, strict=True):
        assert a.sizes == b.sizes
        for x, y in zip(a.outputs, b.outputs, strict=True):
            assert (x.name, x.ok, x.noise_floor) == (y.name, y.ok, y.noise_floor)
    assert [(q.name, q.rmse) for q in ours.quality] == [(q.name, q.rmse) for q in theirs.quality]


def test_the_check_of_weights_on_disk_sees_a_changed_weight(
    programs: Callable[[], tuple[Program, Program]], tmp_path: Path
) -> None:
    _, stored = programs()
    path = tmp_path / "model.onnx"
    export_onnx(stored, path, external_data="always")
    data = path.with_name("model.onnx_data")
    values = np.fromfile(data, dtype=np.float32)
    values[len(values) // 2] += 1
    values.tofile(data)
    failures = check_onnx(stored, path).failures
    assert any("holds other values" in text for text in failures)
    assert any("differs" in text for text in failures)


def test_a_shape_that_the_program_cannot_run_is_said(
    programs: Callable[[], tuple[Program, Program]], tmp_path: Path
) -> None:
    program, stored = programs()
    export_onnx(stored, tmp_path / "model.onnx", external_data="always")
    ids = torch.full((1, 3), 1000)  # beyond the table
    found = [check_onnx(p, tmp_path / "model.onnx", inputs=[[ids]]) for p in (program, stored)]
    assert [check.ok for check in found] == [False, False]
    assert all(check.shapes[0].not_applicable for check in found)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_stored_tensor_is_the_tensor(tmp_path: Path, order: tuple[int, ...]) -> None:
    value = torch.randn(3, 5).to(torch.bfloat16)
    save_file({"w": value}, tmp_path / "w.safetensors")
    tensor = transposed(
        StoredTensor(read_header(tmp_path / "w.safetensors")["w"], ir.DataType.BFLOAT16, "w"), list(order)
    )
    wanted = value.permute(order).contiguous()
    assert isinstance(tensor, StoredTensor)
    assert list(tensor.shape) == list(wanted.shape)
    assert tensor.tobytes() == wanted.view(torch.uint8).numpy().tobytes()
