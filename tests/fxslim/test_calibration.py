"""What is said of calibration data: its sources, and whether it was enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fxslim.api import analyze, apply_plan, make_plan
from fxslim.batches import Batches, DataPart
from fxslim.calibration import data_facts, shortage, shortage_of, shortage_of_plan
from fxslim.data import Mixture, load_batches
from fxslim.opening import open_model
from fxslim.passes.sufficiency import Need
from tests.fxslim.factories import CLASSIFIER, write_data

NEEDS = (Need("up.weight", 100, 50), Need("down.weight", 400, 50))


def batches(*parts: DataPart) -> Batches:
    rows = sum(part.rows for part in parts)
    return Batches(("x",), ((torch.zeros(rows, 1),),), None, rows, 0, "a", "", "", parts)


def test_enough_is_not_mentioned() -> None:
    assert shortage((NEEDS[1],), None) is None
    assert shortage((), None) is None


def test_the_sentence_names_the_worst_and_what_would_do() -> None:
    said = shortage(NEEDS, batches(DataPart("/data/a.npz", 1.0, 64, 0, 200)))
    assert said is not None
    assert said.startswith(
        "too little calibration data for 1 of 2 refits: up.weight has 2 tokens for each of 50 columns"
    )
    assert "--samples 128" in said, "twice as many rows make it four tokens for each column"


@pytest.mark.parametrize(
    ("part", "remedy"),
    [
        (DataPart("/data/a.npz", 1.0, 64, 0, 100), "Give more data: 128 rows are wanted, and a.npz holds 100."),
        (DataPart("memory", 1.0, 64, 0, None), "Give --samples 128"),
        (DataPart("self", 1.0, 64, 640, None), "Give --samples 128"),
    ],
)
def test_the_remedy_is_one_that_helps(part: DataPart, remedy: str) -> None:
    assert remedy in str(shortage(NEEDS, batches(part)))


def test_the_part_that_lacks_rows_is_named() -> None:
    parts = DataPart("a.txt", 0.75, 48, 0, 1000), DataPart("b.txt", 0.25, 16, 0, 20)
    said = str(shortage(NEEDS, batches(*parts)))
    assert "128 rows are wanted, and b.txt holds 20" in said and "a.txt" not in said


def test_a_plan_warns_of_what_its_refits_will_lack(tmp_path: Path) -> None:
    source = open_model(CLASSIFIER)
    analysis = analyze(source.program)
    plan = make_plan(analysis, width=0.5)
    for rows in (40, 400):
        data = load_batches(write_data(tmp_path / f"{rows}.npz", rows), source)
        restoration = apply_plan(analysis, plan, calibration=data).restoration
        assert restoration is not None
        said = shortage_of(restoration, data)
        assert said == shortage_of_plan(analysis, plan, data)
        assert (said is None) == (rows == 400)
    few = load_batches(tmp_path / "40.npz", source)
    unrestored = replace(plan, options={**plan.options, "restore": "none"})
    assert shortage_of_plan(analysis, unrestored, few) is None
    assert shortage_of_plan(analysis, plan, None) is None


def test_the_facts_name_every_source_without_folders(tmp_path: Path) -> None:
    files = [write_data(tmp_path / f"{name}.npz", 20) for name in "ab"]
    data = load_batches(Mixture([(files[0], 3), (files[1], 1)]), open_model(CLASSIFIER), limit=8)
    facts = data_facts(data)
    assert [(p["source"], p["share"], p["rows"], p["available"]) for p in facts["parts"]] == [
        ("a.npz", 0.75, 6, 20),
        ("b.npz", 0.25, 2, 20),
    ]
    assert facts["rows"] == 8 and facts["sha256"] == data.sha256
    assert str(tmp_path) not in str(facts)
