"""Calibration and evaluation data: what is read, what is drawn, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fxslim.data import Batches, load_batches
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.inputs import input_specs
from fxslim.sources import Source, load_model
from tests.fxslim.samples import POSITIONS, TEXT, VOCABULARY


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.linear = nn.Linear(3, 4)

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.table(ids.view(-1, ids.shape[-1])).mean(1) + self.linear(x)


@pytest.fixture(scope="module")
def pair() -> Program:
    """Inputs ids [batch, length] int64 below 10 and x [batch, 3] float32."""
    ids, x = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 3)
    return capture(Pair(), (ids, x), None, ({0: "batch", 1: "length"}, {0: "batch"}))


@pytest.fixture(scope="module")
def single() -> Program:
    """One input [2, 3] float32 with a fixed batch."""
    return capture(nn.Linear(3, 3), (torch.zeros(2, 3),))


@pytest.fixture(scope="module")
def opt(pristine_opt: Path) -> Source:
    return load_model(str(pristine_opt))


def arrays(rows: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "ids": rng.integers(0, 10, (rows, 5)),
        "x": rng.standard_normal((rows, 3)).astype(np.float32),
        "labels": rng.integers(0, 4, rows),
    }


def stacked(batches: Batches, index: int) -> torch.Tensor:
    return torch.cat([batch[index] for batch in batches])


# Text


def test_text_becomes_windows_without_overlap(opt: Source, tmp_path: Path) -> None:
    file = tmp_path / "calib.txt"
    file.write_text(TEXT)
    ids = torch.tensor(opt.tokenizer(TEXT)["input_ids"])
    batches = load_batches(file, opt, window=16, batch_size=3)
    assert batches.input_names == ("input_ids", "attention_mask")
    assert batches.rows == len(ids) // 16
    assert batches.tokens == batches.rows * 16
    torch.testing.assert_close(stacked(batches, 0).flatten(), ids[: batches.tokens])
    assert stacked(batches, 1).eq(1).all()
    assert {len(b[0]) for b in batches.inputs[:-1]} == {3}
    assert batches.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert batches.labels is None


def test_the_window_is_what_the_model_takes(opt: Source, tmp_path: Path) -> None:
    file = tmp_path / "calib.txt"
    file.write_text(TEXT)
    assert load_batches(file, opt).inputs[0][0].shape[1] == POSITIONS
    with pytest.raises(InputError, match=f"at most {POSITIONS}"):
        load_batches(file, opt, window=POSITIONS + 1)


def test_a_limit_draws_without_replacement_and_repeats(opt: Source, tmp_path: Path) -> None:
    file = tmp_path / "calib.txt"
    file.write_text("".join(f"{i} fox {i * i} dog " for i in range(200)))
    everything = {tuple(w) for w in stacked(load_batches(file, opt, window=16), 0).tolist()}
    first, again, other = (stacked(load_batches(file, opt, window=16, limit=9, seed=s), 0) for s in (1, 1, 2))
    assert len(first) == len({tuple(w) for w in first.tolist()}) == 9
    assert {tuple(w) for w in first.tolist()} <= everything
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert "drawn with seed 1" in load_batches(file, opt, window=16, limit=9, seed=1).description


def test_the_field_of_the_text_can_be_named(opt: Source, tmp_path: Path) -> None:
    """Signs that only Python takes for the end of a line may stand inside a record."""
    records, plain = tmp_path / "calib.jsonl", tmp_path / "calib.txt"
    text = TEXT + "\u2028" + TEXT
    records.write_text(json.dumps({"body": text, "text": "no"}, ensure_ascii=False), encoding="utf-8")
    plain.write_text(text, encoding="utf-8")
    assert torch.equal(stacked(load_batches(records, opt, text_field="body"), 0), stacked(load_batches(plain, opt), 0))
    with pytest.raises(InputError, match="no field `content`") as caught:
        load_batches(records, opt, text_field="content")
    assert caught.value.at == f"{records}:1" and "body, text" in str(caught.value.remedy)


def test_records_are_joined(opt: Source, tmp_path: Path) -> None:
    records, plain = tmp_path / "calib.jsonl", tmp_path / "calib.txt"
    records.write_text("\n".join(json.dumps({"text": TEXT, "id": i}) for i in range(2)) + "\n\n")
    plain.write_text(f"{TEXT}\n\n{TEXT}")
    assert torch.equal(stacked(load_batches(records, opt), 0), stacked(load_batches(plain, opt), 0))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b" \n ", "no text"),
        ("a.txt", b"the fox", "fewer than one window"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{', "not JSON"),
        ("a.jsonl", b'{"body": "a"}', "no field `text`"),
        ("a.jsonl", b'["text"]', "no field `text`"),
        ("a.csv", b"1,2", "unknown"),
        ("a", b"1,2", "no suffix"),
    ],
)
def test_text_that_cannot_be_used_is_refused(
    opt: Source, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_batches(file, opt)


def test_text_needs_a_tokenizer_and_inputs_that_follow_from_text(pair: Program, opt: Source, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT)
    with pytest.raises(InputError, match="needs a tokenizer"):
        load_batches(file, opt.program)
    with pytest.raises(InputError, match="'ids' does not follow from text"):
        load_batches(file, pair, tokenizer=opt.tokenizer)
    assert load_batches(file, opt.program, tokenizer=opt.tokenizer, window=16).rows > 1


def test_ids_beyond_the_embedding_are_refused(opt: Source, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text(TEXT)

    def foreign(text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [VOCABULARY] * 64}

    with pytest.raises(InputError, match=f"embedding of {VOCABULARY} rows"):
        load_batches(file, opt, tokenizer=foreign)


# Arrays


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_are_read_by_name(pair: Program, tmp_path: Path, suffix: str) -> None:
    data, file = arrays(), tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(file, **data)
    else:
        save_file({k: torch.from_numpy(v) for k, v in data.items()}, file)
    batches = load_batches(file, pair, batch_size=4)
    assert [len(b[0]) for b in batches] == [4, 2]
    np.testing.assert_array_equal(stacked(batches, 1).numpy(), data["x"])
    assert batches.labels is not None
    np.testing.assert_array_equal(torch.cat(batches.labels).numpy(), data["labels"])
    assert (batches.rows, batches.tokens) == (6, 0)


def test_labels_are_drawn_with_their_rows(pair: Program, tmp_path: Path) -> None:
    data = arrays(30)
    data["labels"] = data["x"][:, 0] > 0
    np.savez(tmp_path / "a.npz", **data)
    batches = load_batches(tmp_path / "a.npz", pair, limit=7)
    assert batches.labels is not None
    assert torch.equal(torch.cat(batches.labels), stacked(batches, 1)[:, 0] > 0)


def test_one_array_serves_one_input(single: Program, pair: Program, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 3), np.float32))
    batches = load_batches(tmp_path / "x.npy", single)
    assert [tuple(b[0].shape) for b in batches] == [(2, 3), (2, 3)]
    assert "1 dropped to fill batches of 2" in batches.description
    with pytest.raises(InputError, match="2 inputs"):
        load_batches(tmp_path / "x.npy", pair)


def test_fewer_rows_than_a_fixed_batch_are_refused(single: Program, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    with pytest.raises(InputError, match="fewer than the program's batch of 2"):
        load_batches(tmp_path / "x.npy", single)


def changed(**changes: Any) -> dict[str, Any]:
    return {k: v for k, v in {**arrays(), **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(x=np.zeros((6, 3, 1), np.float32)), "rank 3 instead of 2"),
        (changed(x=np.zeros((6, 4), np.float32)), "shape does not fit"),
        (changed(x=np.zeros((6, 3))), "type does not fit"),
        (changed(ids=np.zeros((6, 5), np.int32)), "type does not fit"),
        (changed(x=np.full((6, 3), np.nan, np.float32)), "18 of 18 values are NaN or Inf"),
        (changed(x=np.full((6, 3), np.inf, np.float32)), "NaN or Inf"),
        (changed(ids=np.full((6, 5), 10)), "embedding of 10 rows"),
        (changed(ids=np.full((6, 5), -1)), "embedding of 10 rows"),
        (changed(other=np.zeros(6)), "no input 'other'"),
        (changed(x=None), "'x' is missing"),
        (changed(x=np.zeros((5, 3), np.float32)), "different numbers of rows"),
        (changed(x=np.float32(1)), "no dimension of rows"),
        ({k: v[:0] for k, v in arrays().items()}, "hold no rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(pair: Program, tmp_path: Path, data: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **data)
    with pytest.raises(InputError, match=message):
        load_batches(tmp_path / "a.npz", pair)


def test_the_bad_row_of_a_file_is_named(pair: Program, tmp_path: Path) -> None:
    data, file = arrays(30), tmp_path / "a.npz"
    data["x"][17, 1] = np.nan
    np.savez(file, **data)
    for limit in (None, 29):  # also where rows were drawn, by the number in the file
        with pytest.raises(InputError, match="1 of") as caught:
            load_batches(file, pair, batch_size=4, limit=limit)
        assert caught.value.at == f"{file}, input x, row 17"
    data["x"][17, 1], data["ids"][21, 0] = 0, -1
    np.savez(file, **data)
    with pytest.raises(InputError, match="ids from -1") as caught:
        load_batches(file, pair)
    assert caught.value.at == f"{file}, input ids, row 21"


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors"])
@pytest.mark.parametrize("content", [b"nonsense", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_damaged_arrays_are_refused(single: Program, tmp_path: Path, name: str, content: bytes) -> None:
    tmp_path.joinpath(name).write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as arrays"):
        load_batches(tmp_path / name, single)


def test_pickled_objects_are_not_loaded(single: Program, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"run": "code"}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="allow_pickle"):
        load_batches(tmp_path / "a.npy", single)


def test_a_missing_file_is_refused(single: Program, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data file"):
        load_batches(tmp_path / "nothing.npz", single)
    with pytest.raises(InputError, match="a directory"):
        load_batches(str(tmp_path), single)


# Objects


def test_objects_may_be_tensors_tuples_and_dicts(pair: Program, single: Program) -> None:
    ids, x = torch.arange(10).view(2, 5), torch.randn(2, 3)
    for item in ((ids, x), [ids, x], {"x": x, "ids": ids}, {"x": x.numpy(), "ids": ids}):
        (batch,) = load_batches([item], pair)
        assert torch.equal(batch[0], ids)
        assert torch.equal(batch[1], x)
    batches = load_batches((x for _ in range(3)), single)
    assert (len(batches), batches.rows, batches.source) == (3, 6, "memory")
    assert load_batches([{"input" if "input" in single.input_names else single.input_names[0]: x}], single).rows == 2


def test_the_digest_follows_the_values(single: Program) -> None:
    x = torch.randn(2, 3)
    assert load_batches([x], single).sha256 == load_batches([x.clone()], single).sha256
    assert load_batches([x], single).sha256 != load_batches([x + 1], single).sha256


def test_a_limit_counts_rows_of_whole_batches(single: Program) -> None:
    items = [torch.full((2, 3), float(i)) for i in range(6)]
    batches = load_batches(items, single, limit=3)
    assert batches.rows == 4
    values = [float(b[0][0, 0]) for b in batches]
    assert values == sorted(set(values))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no batch"),
        ([(torch.zeros(2, 5, dtype=torch.long),)], "1 tensors for 2 inputs"),
        ([3], "type int"),
        ([{"ids": "12345", "x": torch.zeros(1, 3)}], "a str is no tensor"),
        ([{"x": torch.zeros(1, 3)}], "'ids' is missing"),
        ([(torch.zeros(2, 5, dtype=torch.long), torch.zeros(3, 3))], "batch is 3 here and 2 in ids"),
    ],
)
def test_objects_that_do_not_fit_are_refused(pair: Program, items: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_batches(items, pair)


def test_labels_come_with_every_batch_or_none(pair: Program) -> None:
    item = {"ids": torch.zeros(2, 5, dtype=torch.long), "x": torch.zeros(2, 3)}
    with_labels = {**item, "labels": torch.tensor([1, 2])}
    assert load_batches([with_labels] * 2, pair).labels is not None
    with pytest.raises(InputError, match="some have none"):
        load_batches([item, with_labels], pair)


@pytest.mark.parametrize("option", ["limit", "window", "batch_size"])
def test_options_are_positive(single: Program, option: str) -> None:
    with pytest.raises(InputError, match=option):
        load_batches([torch.zeros(2, 3)], single, **{option: 0})


# What a program takes


def test_specifications_follow_from_the_graph(pair: Program, opt: Source) -> None:
    ids, x = input_specs(pair)
    assert (str(ids), ids.rows) == ("ids [batch, length] int64", 10)
    assert (str(x), x.rows) == ("x [batch, 3] float32", None)
    tokens, mask = input_specs(opt.program)
    assert (tokens.rows, mask.rows) == (VOCABULARY, None)
