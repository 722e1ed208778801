"""Mixtures: shares within one row, nothing drawn twice, parts spread evenly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxslim import data as data_module
from fxslim.batches import Rows
from fxslim.data import Mixture, load_batches
from fxslim.graph.errors import InputError
from fxslim.mixtures import apportion, largest_total, mixed
from fxslim.passes.statistics import digest
from fxslim.sources import Source, load_model

WINDOW = 16


@pytest.fixture(scope="module")
def opt(pristine_opt: Path) -> Source:
    return load_model(str(pristine_opt))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Code of about 200 windows, records of about 40."""
    code, wiki = tmp_path / "code.txt", tmp_path / "wiki.jsonl"
    code.write_text("".join(f"{i} fox {i * i} dog " for i in range(200)))
    wiki.write_text("\n".join(json.dumps({"text": f"the lazy {i} runs over {i + 7}. "}) for i in range(50)))
    return code, wiki


def windows(batches: data_module.Batches) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch[0].tolist()]


shares = st.lists(st.integers(1, 1000), min_size=1, max_size=6).map(lambda w: [x / sum(w) for x in w])


@given(st.integers(0, 5000), shares)
def test_shares_are_met_within_one_row(total: int, shares: list[float]) -> None:
    counts = apportion(total, shares)
    assert sum(counts) == total
    assert all(abs(c - total * s) < 1 for c, s in zip(counts, shares, strict=True))


@given(st.integers(1, 60), shares, st.data())
def test_the_largest_total_is_the_largest(limit: int, shares: list[float], data: st.DataObject) -> None:
    available = data.draw(st.lists(st.integers(1, 60), min_size=len(shares), max_size=len(shares)))

    def fits(total: int) -> bool:
        return all(c <= n for c, n in zip(apportion(total, shares), available, strict=True))

    assert largest_total(limit, shares, available) == max(t for t in range(limit + 1) if fits(t))


def test_any_stretch_holds_the_parts_in_their_shares() -> None:
    """The last batches judge the refits: they must not be one part alone."""
    parts = [Rows.every({"x": torch.full((n, 1), float(i))}, str(i)) for i, n in enumerate((60, 30, 10))]
    order = mixed(parts).arrays["x"].flatten()
    assert len(order) == 100
    for start in range(0, 100, 10):
        counts = [int((order[start : start + 10] == i).sum()) for i in range(3)]
        assert all(abs(c - want) <= 1 for c, want in zip(counts, (6, 3, 1), strict=True)), (start, counts)


def test_files_are_mixed(opt: Source, files: tuple[Path, Path]) -> None:
    code, wiki = files
    mixture = Mixture([(code, 0.7), (wiki, 0.3)])
    found = load_batches(mixture, opt, window=WINDOW, limit=20, seed=5)
    assert [(p.rows, p.share) for p in found.parts] == [(14, 0.7), (6, pytest.approx(0.3))]
    assert found.rows == 20 and found.tokens == 20 * WINDOW
    every = [set(windows(load_batches(f, opt, window=WINDOW))) for f in files]
    drawn = windows(found)
    assert len(set(drawn)) == 20, "no window is drawn twice"
    assert len(set(drawn) & every[0]) == 14 and len(set(drawn) & every[1]) == 6
    again, other = (load_batches(mixture, opt, window=WINDOW, limit=20, seed=s) for s in (5, 6))
    assert found.sha256 == again.sha256 == digest(found.inputs) != other.sha256
    assert "code.txt" in found.description and "share 70%" in found.description


def test_a_part_that_is_small_bounds_all(opt: Source, files: tuple[Path, Path]) -> None:
    held = load_batches(files[1], opt, window=WINDOW).rows
    for limit in (500, None):
        found = load_batches(Mixture([(files[0], 1), (files[1], 1)]), opt, window=WINDOW, limit=limit)
        assert abs(found.rows - 2 * held) <= 1
        assert abs(found.parts[0].rows - found.parts[1].rows) <= 1
    assert (
        "asked for 500"
        in load_batches(Mixture([(files[0], 1), (files[1], 1)]), opt, window=WINDOW, limit=500).description
    )


def test_the_model_may_write_a_part(opt: Source, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def written(program: object, specs: object, rows: int, window: int, seed: int) -> torch.Tensor:
        asked.append(rows)
        return torch.full((rows, window), 7)

    monkeypatch.setattr(data_module, "generated_windows", written)
    found = load_batches(Mixture([("self", 1), (files[0], 3)]), opt, window=WINDOW, limit=8)
    assert asked == [2] and windows(found).count((7,) * WINDOW) == 2
    assert found.parts[0].source == "self" and found.source.startswith("self + ")


def test_objects_may_be_parts(opt: Source, files: tuple[Path, Path]) -> None:
    ids = torch.full((5, WINDOW), 9)
    batches = [(ids, torch.ones_like(ids))]
    found = load_batches(Mixture([(batches, 0.5), (files[0], 0.5)]), opt, window=WINDOW, limit=6)
    assert windows(found).count((9,) * WINDOW) == 3
    with pytest.raises(InputError, match=r"different shapes: \[16\] in memory, \[8\] in .*code.txt"):
        load_batches(Mixture([(batches, 0.5), (files[0], 0.5)]), opt, window=8, limit=6)


def test_the_command_line_names_weights(tmp_path: Path) -> None:
    odd = tmp_path / "a=1"
    odd.write_text("a name with the sign")
    parts = Mixture.parse(["code.txt=0.7", "self", "b=c.jsonl=3", str(odd)]).parts
    assert list(parts) == [("code.txt", 0.7), ("self", 1.0), ("b=c.jsonl", 3.0), (str(odd), 1.0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.txt=much"], "'much' is not a weight"),
        (["a.txt=0"], "weight of a part is 0"),
        (["a.txt=-1"], "weight of a part is -1"),
        (["a.txt=inf"], "weight of a part is inf"),
        (["a.txt=nan"], "weight of a part is nan"),
        (["a.txt", "a.txt=2"], "given twice"),
        (["a.txt", "./a.txt=2"], "given twice"),
        (["self", "self=2"], "given twice"),
        ([], "mixture of nothing"),
    ],
)
def test_bad_mixtures_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mixture.parse(words)


def test_a_share_below_one_row_is_refused(opt: Source, files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="less than one of 8 rows"):
        load_batches(Mixture([(files[0], 99), (files[1], 1)]), opt, window=WINDOW, limit=8)
