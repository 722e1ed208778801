"""Shared weights through the command line: the plan names the branches, and each command goes back to the original."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fxslim.graph.serialize import load
from fxslim.passes.plan import Plan
from tests.fxslim.factories import write_data
from tests.fxslim.test_cli import FAST, refused, run

REPEATED = "tests.fxslim.factories:repeated"


def test_slim_apply_and_prove_share_and_refit_alike(tmp_path: Path) -> None:
    data, out, slim = write_data(tmp_path / "data.npz", labels=False), tmp_path / "out", tmp_path / "slim"
    words = ("--keep", "0.7", "--method", "foldgpt", "--calibration", data)
    result = run("slim", REPEATED, *words, "--json", *FAST, "-o", out)
    assert result.exit_code == 0, result.output
    report, plan = json.loads(result.stdout), Plan.load(out / "plan.json")
    assert report["verdict"] == "ok" and plan.prepare[0].startswith("share-branches{adds=")
    assert any("not the model faster" in note for note in report["plan"]["notes"])
    before, after = report["costs"]["initializer_bytes"]
    assert before - after == 4 * 2 * 24 * 8
    assert report["restoration"] is not None
    assert run("prove", REPEATED, out / "plan.json").exit_code == 0
    applied = run("apply", REPEATED, out / "plan.json", "--calibration", data, "-o", slim)
    assert applied.exit_code == 0, applied.output
    one, other = load(out / "slim"), load(slim)
    assert one.info.keys() == other.info.keys()
    for name in one.info:
        torch.testing.assert_close(one.weights[name], other.weights[name])
    again = run("slim", REPEATED, "--plan", out / "plan.json", "--calibration", data, *FAST, "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert load(tmp_path / "again" / "slim").fingerprint() == one.fingerprint()


def test_a_budget_of_macs_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.npz", labels=False)
    words = ("--keep", "0.7", "--of", "macs", "--method", "foldgpt", "--calibration", data)
    refused(run("plan", REPEATED, *words), "no multiply-accumulates", "--method shortgpt")
