"""Weights on disk: read as they are, spilled and forgotten, and files that another reader understands."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError, LocalError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.stores import SPILLED_FROM, FileTensor, Spill, WeightStore, read_header, write_safetensors
from tests.models.nets import MLP

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-3, 4, (3, 5), generator=generator)
    found = {str(kind).removeprefix("torch."): values.abs().to(kind) for kind in KINDS}
    return {**found, "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "transposed": torch.randn(4, 6).T}


def test_a_file_says_what_it_holds_and_gives_it_back(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    found = read_header(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(found[name].read(), tensor), name


def test_what_is_written_one_by_one_is_read_by_the_library_of_the_format(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, WeightStore(tensors))
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype is tensor.dtype for name, tensor in tensors.items()
    )


@pytest.mark.parametrize("damage", ["cut", "length", "negative", "overlong", "dtype", "text", "deep", "infinite"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.safetensors"
    said = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    said |= {"negative": {"shape": [-2, -2]}, "overlong": {"data_offsets": [0, 160]}, "dtype": {"dtype": "Q3"}}.get(
        damage, {}
    )
    text = {"text": b"no json", "deep": b"[" * 100_000}.get(damage) or json.dumps({"a": said}).encode()
    text = text.replace(b"[2, 2]", b"[1e400]") if damage == "infinite" else text
    length = 2**40 if damage == "length" else len(text)
    data = b"\0" * (3 if damage == "cut" else 16)
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    with pytest.raises(InputError, match="damaged or cut off"):
        read_header(path)


def test_a_file_that_shrinks_in_use_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(100)}, path)
    found = read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="cut short"):
        found.read()
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        found.read()


def test_what_is_spilled_is_on_disk_until_nobody_needs_it(tmp_path: Path) -> None:
    store = WeightStore({}, Spill(tmp_path))
    large, small = torch.randn(SPILLED_FROM // 4), torch.randn(3)
    store["large"], store["small"] = large, small
    assert isinstance(store.entry("large"), FileTensor) and store.entry("small") is small
    assert torch.equal(store["large"], large)
    copy = store.copy()
    del store["large"]
    gc.collect()
    assert torch.equal(copy["large"], large)
    assert len(list(tmp_path.iterdir())) == 1
    copy["large"] = small
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_what_is_cast_keeps_the_file_it_is_read_from(tmp_path: Path) -> None:
    tensor = torch.randn(SPILLED_FROM // 4)
    cast = Spill(tmp_path).put(tensor).cast(torch.float16)
    gc.collect()
    assert torch.equal(cast.read(), tensor.half())


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be spilled"):
        WeightStore({}, Spill(tmp_path / "missing"))["a"] = torch.zeros(SPILLED_FROM)


def test_weights_are_read_once_while_they_are_held(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(3)}, path)
    store = WeightStore(read_header(path))
    assert store["a"] is not store["a"]
    with store.holding(["a"]):
        held = store["a"]
        assert store["a"] is held
        with store.holding(["a"]):
            assert store["a"] is held
        assert store["a"] is held
    assert store["a"] is not held


def test_a_program_runs_off_its_file(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    program = capture(MLP(), (x,))
    (expected,) = Evaluator(program).run([x])
    write_safetensors(tmp_path / "w.safetensors", program.weights)
    program.weights = WeightStore(read_header(tmp_path / "w.safetensors"))
    assert program.weights.on_disk
    (found,) = Evaluator(program).run([x])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("count", [0, 1, 8, 9, 20])
def test_a_cast_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Of none, whole ones and a shorter last one; a file that ends within is told."""
    monkeypatch.setattr("fxslim.graph.stores._CAST_AT_ONCE", 4)
    value = torch.randn(count).bfloat16()
    save_file({"w": value}, path := tmp_path / "w.safetensors")
    entry = read_header(path)["w"].cast(torch.float32)
    assert torch.equal(entry.read(), value.float()) and entry.besides == 0
    if count:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(LocalError, match="cut short"):
            entry.read()
