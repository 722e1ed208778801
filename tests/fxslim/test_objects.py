"""Data in memory: texts, rows, batches, tables with the protocol of `datasets`, data loaders, and streams without an
end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxslim import objects
from fxslim.data import load_batches
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.sources import Source, load_model
from tests.fxslim.samples import TEXT

RECORDS = [f"{i} the fox and {i * i} dogs run away. " * 6 for i in range(60)]
WINDOW = 16


class Table:
    """What `datasets.Dataset` has: columns by name, a length, rows by number as dicts of Python values."""

    def __init__(self, **columns: list[Any]) -> None:
        self.column_names = list(columns)
        self._columns = columns
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(index)
        return {name: values[index] for name, values in self._columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


class Stream:
    """What `datasets.IterableDataset` has: columns by name (or None where nobody knows them) and rows, one by one."""

    def __init__(self, rows: Any) -> None:
        self.column_names = None
        self._rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


@pytest.fixture(scope="module")
def opt(pristine_opt: Path) -> Source:
    return load_model(str(pristine_opt))


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


@pytest.fixture(scope="module")
def scale() -> Program:
    """One input [batch, 3] float32."""
    return capture(Double(), (torch.zeros(2, 3),), None, ({0: "batch"},))


def first(batches: Any) -> torch.Tensor:
    return torch.cat([batch[0] for batch in batches])


def test_texts_are_what_a_file_of_them_is(opt: Source, tmp_path: Path) -> None:
    file = tmp_path / "joined.txt"
    file.write_text("\n\n".join(RECORDS))
    expected = load_batches(file, opt, window=WINDOW)
    for data in (
        RECORDS,
        iter(RECORDS),
        [{"text": t, "id": i} for i, t in enumerate(RECORDS)],
        Table(text=RECORDS, id=list(range(60))),
        Stream({"text": t} for t in RECORDS),
    ):
        found = load_batches(data, opt, window=WINDOW)
        assert torch.equal(first(found), first(expected)) and found.tokens == expected.tokens
        assert found.source == "memory" and found.parts[0].available == found.rows


def test_the_column_of_the_text_can_be_named(opt: Source) -> None:
    table = Table(body=RECORDS, text=["none"] * 60)
    found = load_batches(table, opt, window=WINDOW, text_field="body")
    assert torch.equal(first(found), first(load_batches(RECORDS, opt, window=WINDOW)))
    with pytest.raises(InputError, match="no field `title`") as caught:
        load_batches(table, opt, text_field="title")
    assert caught.value.at == "memory, item 0" and "body, text" in str(caught.value.remedy)


def test_a_limit_reads_no_more_texts_than_it_needs(opt: Source) -> None:
    """Without an end, the first ones; where they can be asked for by number, some at random."""
    endless = (f"{i} the lazy dog " for i in itertools.count())
    found = load_batches(endless, opt, window=WINDOW, limit=9)
    assert found.rows == 9 and found.parts[0].available is None
    assert next(endless) != "", "the stream was left alive"
    table = Table(text=RECORDS)
    drawn = load_batches(table, opt, window=WINDOW, limit=9, seed=1)
    assert drawn.rows == 9 and 1 < len(table.asked) < len(RECORDS) / 2
    assert sorted(table.asked[1:]) != list(range(len(table.asked) - 1))
    again, other = (load_batches(Table(text=RECORDS), opt, window=WINDOW, limit=9, seed=s) for s in (1, 2))
    assert again.sha256 == drawn.sha256 != other.sha256


def test_rows_become_batches(scale: Program) -> None:
    rows = torch.randn(10, 3)
    expected = load_batches([rows], scale)
    for data in (
        list(rows),
        rows,
        rows.numpy(),
        {"x": rows},
        [{"x": r.tolist()} for r in rows],
        Table(x=rows.tolist(), url=["u"] * 10),
    ):
        found = load_batches(data, scale, batch_size=4)
        assert [len(b[0]) for b in found] == [4, 4, 2]
        torch.testing.assert_close(first(found), first(expected))
    assert load_batches([3 * [1], 3 * [2]], scale_of_three()).rows == 2


def scale_of_three() -> Program:
    """Three inputs [batch] int64: a row is a list of three numbers."""

    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return a + b + c

    return capture(Sum(), (torch.zeros(2, dtype=torch.long),) * 3, None, ({0: "batch"},) * 3)


def test_a_limit_draws_rows_that_can_be_asked_for(scale: Program) -> None:
    table = Table(x=[[float(i)] * 3 for i in range(50)])
    found = load_batches(table, scale, limit=7, seed=3)
    values = first(found)[:, 0].tolist()
    assert len(set(values)) == 7 and values == sorted(values) != list(range(7))
    assert len(table.asked) <= 8, "no more rows were read than are used"
    assert "7 of 50 rows" in found.description


def test_a_stream_of_rows_without_an_end_is_bounded(scale: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[torch.Tensor]:
        return (torch.full((3,), float(i)) for i in itertools.count())

    assert first(load_batches(endless(), scale, limit=5))[:, 0].tolist() == [0, 1, 2, 3, 4]
    monkeypatch.setattr(objects, "_MOST_ITEMS", 100)
    with pytest.raises(InputError, match="may be endless"):
        load_batches(endless(), scale)
    assert load_batches(itertools.islice(endless(), 100), scale).rows == 100


def test_a_data_loader_yields_batches_with_labels_behind(scale: Program) -> None:
    x, y = torch.randn(10, 3), torch.arange(10)
    found = load_batches(DataLoader(TensorDataset(x, y), batch_size=4), scale)
    assert torch.equal(first(found), x) and found.labels is not None
    assert torch.equal(torch.cat(found.labels), y)
    assert load_batches(DataLoader(TensorDataset(x), batch_size=4), scale, limit=5).rows == 8


@pytest.mark.parametrize(
    ("data", "message", "where"),
    [
        (Table(body=["a"], id=[1]), "there is no input 'body'", "item 0"),
        ([torch.zeros(3), torch.zeros(4)], "shape does not fit", "item 1"),
        ([torch.zeros(3), torch.tensor([0, float("nan"), 1])], "1 of 3 values are NaN", "row 1"),
        ([torch.zeros(2, 3), torch.tensor([[0.0] * 3, [0, 1, float("inf")]])], "NaN", "item 1, input x, row 1"),
        ([torch.zeros(3, dtype=torch.float64)], "type does not fit", "item 0"),
        ([{"x": "abc"}], "a str is no tensor", "item 0"),
        ([{"x": [[1.0, 2.0], [1.0]]}], "a list is no array", "item 0"),
        (np.zeros((4, 5), np.float32), "shape does not fit", "memory"),
        (np.array([["a"]]), "holds no numbers", "memory"),
        (Table(x=[]), "no batch", "memory"),
        ({"train": Table(x=[[1.0] * 3]), "test": Table(x=[])}, "several tables, test and train", "memory"),
        (iter(()), "no batch", "memory"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(scale: Program, data: Any, message: str, where: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_batches(data, scale)
    assert where in str(caught.value.at)


def test_rows_of_two_lengths_cannot_be_put_together(opt: Source) -> None:
    rows = [{name: [1] * n for name in opt.program.input_names} for n in (5, 7)]
    with pytest.raises(InputError, match="different shapes"):
        load_batches(rows, opt)
    ragged = [{name: torch.ones(1, n, dtype=torch.long) for name in opt.program.input_names} for n in (5, 7)]
    assert load_batches(ragged, opt).rows == 2, "whole batches may differ"


def test_text_in_memory_needs_a_tokenizer(opt: Source, scale: Program) -> None:
    with pytest.raises(InputError, match="needs a tokenizer"):
        load_batches([TEXT], opt.program)
    with pytest.raises(InputError, match="does not follow from text"):
        load_batches([TEXT], scale, tokenizer=opt.tokenizer)
