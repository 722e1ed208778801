"""Placeholders: what is done to them is what is done to the data when they are read, and all else is refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxslim.graph.errors import InputError
from fxslim.graph.placeholder import AbsentTensor, ComposedTensor, Placeholder, entry_of, types_in_files
from fxslim.graph.stores import FileTensor, read_header

_A, _B = (torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Placeholder, Placeholder]:
    save_file({"a": _A, "b": _B}, tmp_path / "w.safetensors")
    entries = read_header(tmp_path / "w.safetensors")
    return Placeholder(entries["a"]), Placeholder(entries["b"])


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: a[...],
        lambda a, b: a.to(torch.bfloat16),
        lambda a, b: a.to(torch.bfloat16).to(torch.float32),
        lambda a, b: torch.stack([a, b]),
        lambda a, b: torch.cat([a, b], dim=1).transpose(0, 1),
        lambda a, b: torch.cat([a.T.contiguous(), b.T]).view(2, 24),
        lambda a, b: a.chunk(2, dim=1)[1],
        lambda a, b: a.split([1, 3])[1].unsqueeze(0).expand(3, 3, 6),
        lambda a, b: a[1:3, ::2],
        lambda a, b: a.reshape(2, 2, 6).permute(1, 0, 2).flip(0)[1],
        lambda a, b: torch.stack([torch.stack([a, b]), torch.stack([b, a])]).reshape(4, 4, 6).unbind()[2],
    ],
)
def test_what_was_written_down_is_what_is_read(
    pair: tuple[Placeholder, Placeholder], make: Callable[[Tensor, Tensor], Tensor]
) -> None:
    made, wanted = make(*pair), make(_A, _B)
    assert isinstance(made, Placeholder)
    assert (made.shape, made.dtype) == (wanted.shape, wanted.dtype)
    assert torch.equal(made.entry.read(), wanted)
    assert made.entry.read().is_contiguous()
    assert (made.entry.shape, made.entry.nbytes) == (tuple(wanted.shape), wanted.nbytes)


def test_what_keeps_the_data_keeps_the_entry(pair: tuple[Placeholder, Placeholder]) -> None:
    (a, _) = pair
    for same in (a.detach(), a[...], a.clone(), a.to(torch.float32), a.contiguous(), a.view(4, 6), nn.Parameter(a)):
        assert entry_of(same) is a.entry
    assert type(a.to(torch.float64).entry) is FileTensor
    assert isinstance(a.T.entry, ComposedTensor)


def test_equality_is_that_of_the_data(pair: tuple[Placeholder, Placeholder]) -> None:
    a, b = pair
    assert torch.equal(a, a.clone())
    assert torch.equal(a, torch.stack([a, b])[0])
    assert not torch.equal(a, b)
    assert not torch.equal(a, a[:2])


@pytest.mark.parametrize("use", [lambda a: a + 1, lambda a: a.sum(), lambda a: a.normal_(), lambda a: a.to("meta")])
def test_what_needs_the_data_is_refused(pair: tuple[Placeholder, Placeholder], use: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(InputError, match="still on disk"):
        use(pair[0])


def test_what_mixes_it_with_data_is_refused(pair: tuple[Placeholder, Placeholder]) -> None:
    with pytest.raises(InputError, match="mixes"):
        torch.cat([pair[0], _B])


def test_what_is_absent_has_a_shape_and_no_values() -> None:
    absent = Placeholder(AbsentTensor(Path("somewhere"), 0, (4, 6), torch.float32))
    for made in (absent, absent.T, absent.to(torch.float16), torch.stack([absent, absent])):
        assert isinstance(made, Placeholder)
        with pytest.raises(InputError, match="no weights here"):
            made.entry.read()


def test_a_cast_is_done_once(tmp_path: Path) -> None:
    save_file({"a": _A}, tmp_path / "w.safetensors")
    cast = read_header(tmp_path / "w.safetensors")["a"].cast(torch.float16)
    assert torch.equal(cast.read(), _A.half())
    assert cast.nbytes == _A.numel() * 2
    with pytest.raises(ValueError, match="already"):
        cast.cast(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("join", [torch.stack, torch.cat])
def test_parts_are_put_together_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, join: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    """No part is still there when the next is read, in whatever type it is asked for."""
    held = {f"w{i}": torch.randn(3, 4) for i in range(5)}
    save_file(held, tmp_path / "w.safetensors")
    made = join([Placeholder(entry) for entry in read_header(tmp_path / "w.safetensors").values()], 1).to(dtype)
    alive: list[weakref.ref[Tensor]] = []
    read = FileTensor.read

    def noted(self: FileTensor) -> Tensor:
        assert not any(one() is not None for one in alive)
        value = read(self)
        alive.append(weakref.ref(value))
        return value

    monkeypatch.setattr(FileTensor, "read", noted)
    entry = entry_of(made)
    assert isinstance(entry, ComposedTensor) and entry.besides == 3 * 4 * 4
    assert torch.equal(entry.read(), join(list(held.values()), 1).to(dtype)) and len(alive) == 5


def test_the_types_in_files_are_those_of_all_parts(tmp_path: Path) -> None:
    held = {"a": torch.randn(7), "b": torch.arange(7, dtype=torch.int8)}
    save_file(held, tmp_path / "w.safetensors")
    a, b = (Placeholder(entry) for entry in read_header(tmp_path / "w.safetensors").values())
    for made, wanted in ((a, {torch.float32}), (b.float(), {torch.int8}), (torch.stack([a, b.float()]).double(), None)):
        entry = entry_of(made)
        assert isinstance(entry, FileTensor)
        assert types_in_files(entry) == (wanted or {torch.float32, torch.int8})


def test_what_is_cast_twice_is_rounded_twice(tmp_path: Path) -> None:
    held = {"a": torch.randn(7), "b": torch.randn(7)}
    save_file(held, tmp_path / "w.safetensors")
    both = torch.stack([Placeholder(entry) for entry in read_header(tmp_path / "w.safetensors").values()])
    made = entry_of(both.to(torch.bfloat16).to(torch.float64))
    assert isinstance(made, FileTensor)
    assert torch.equal(made.read(), torch.stack(list(held.values())).bfloat16().double())
    assert made.besides >= 14 * 2
