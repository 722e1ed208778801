"""Recipes that are run: several targets from one calibration, pinned inputs, and the recipe of a result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fxslim import subject as subjects
from fxslim import targets as targets_module
from fxslim.graph.errors import InputError
from fxslim.outputs import verify_manifest
from fxslim.passes import planning
from fxslim.pipeline import slim
from fxslim.recipe import Pinned, Recipe, load_recipe
from fxslim.slim_options import SlimOptions
from fxslim.targets import SUMMARY, WORK, run_recipe
from tests.fxslim.factories import CLASSIFIER, write_data


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> SlimOptions:
    data = str(write_data(tmp_path_factory.mktemp("data") / "data.npz"))
    return SlimOptions(CLASSIFIER, keep=0.6, calibration=data, evaluation=data, provider="cpu", latency_seconds=0.05)


@pytest.fixture(scope="module")
def result(options: SlimOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("result") / "out"
    slim(options, out)
    return out


def test_the_recipe_of_a_result_makes_it_again(result: Path, tmp_path: Path) -> None:
    recipe = load_recipe(result / "recipe.yaml")
    run_recipe(recipe, tmp_path / "again")
    for name in ("plan.json", "model.onnx", "slim/weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (result / name).read_bytes()


@pytest.mark.parametrize("what", ["model", "calibration", "evaluation"])
def test_pinned_inputs_have_to_be_the_same(result: Path, tmp_path: Path, what: str) -> None:
    recipe = load_recipe(result / "recipe.yaml")
    other = replace(recipe, pinned=replace(recipe.pinned, **{what: "0" * 64}))
    with pytest.raises(InputError, match=f"the {what}.* is not what the recipe was made with"):
        run_recipe(other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_versions_are_noted(options: SlimOptions, tmp_path: Path) -> None:
    report = slim(options, tmp_path / "out", pinned=Pinned(versions={"torch": "1.0"}))
    assert any("made with torch 1.0" in note for note in report["notes"])


def test_targets_share_the_model_the_data_and_the_survey(
    options: SlimOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, int] = {"open": 0, "survey": 0}

    def counted(name: str, module: Any, attribute: str) -> None:
        original = getattr(module, attribute)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, attribute, call)

    counted("open", subjects, "open_model")
    counted("survey", planning, "survey")
    slim(options, tmp_path / "alone")
    alone = calls["survey"]
    assert alone and calls["open"] == 1
    targets = {"most": options, "half": replace(options, keep=0.5), "int8": replace(options, quantize="dynamic")}
    outcomes = run_recipe(Recipe(options, targets), tmp_path / "out")
    assert calls == {"open": 2, "survey": 2 * alone}
    assert [o.exit_code for o in outcomes.values()] == [0, 0, 0]
    assert outcomes["int8"].report is not None and outcomes["int8"].report["resumed"] == ["plan"]
    kept = {n: o.report["costs"]["params"] for n, o in outcomes.items() if o.report is not None}
    assert kept["most"] == kept["int8"] and kept["half"][1] < kept["most"][1]
    for name in targets:
        assert verify_manifest(tmp_path / "out" / name) == []
    assert {f.name for f in (tmp_path / "out").iterdir()} == {"most", "half", "int8", SUMMARY}


def test_a_target_that_cannot_be_made_does_not_stop_the_others(options: SlimOptions, tmp_path: Path) -> None:
    targets = {
        "never": replace(options, keep=0.001),
        "slow": replace(options, min_speedup=1000.0),
        "good": replace(options, keep=0.7),
    }
    outcomes = run_recipe(Recipe(options, targets), tmp_path / "out")
    assert [o.exit_code for o in outcomes.values()] == [2, 1, 0]
    summary = json.loads((tmp_path / "out" / SUMMARY).read_text())["targets"]
    assert [s["verdict"] for s in summary.values()] == ["error", "FAILED", "ok"]
    assert not (tmp_path / "out" / "never").exists()
    report = json.loads((tmp_path / "out" / "slow" / "report.json").read_text())
    assert any("1000.00 is wanted" in failure for failure in report["failures"])


def test_what_is_there_is_left_and_what_was_changed_is_made_again(options: SlimOptions, tmp_path: Path) -> None:
    targets = {"a": options, "b": replace(options, keep=0.5)}
    out = tmp_path / "out"
    run_recipe(Recipe(options, targets), out)
    times = {name: (out / name / "report.json").stat().st_mtime_ns for name in targets}
    (out / "b" / "model.onnx").write_bytes(b"")
    outcomes = run_recipe(Recipe(options, targets), out, overwrite=True)
    assert (outcomes["a"].found, outcomes["b"].found) == (True, False)
    assert (out / "a" / "report.json").stat().st_mtime_ns == times["a"]
    assert verify_manifest(out / "b") == []


def test_one_run_at_a_time(options: SlimOptions, tmp_path: Path) -> None:
    with targets_module._alone(tmp_path), pytest.raises(InputError, match="another run is writing"):
        run_recipe(Recipe(options, {"a": options}), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_was_found_stays_until_all_targets_are_made(
    options: SlimOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full, and a defect: both end one target, and neither the others nor what was found so far."""
    (tmp_path / SUMMARY).write_text("of an earlier run")
    made = targets_module.slim_subject

    def breaks(subject: Any, own: SlimOptions, *rest: Any) -> Any:
        report = made(subject, own, *rest)
        if own.quantize:
            raise RuntimeError("a defect")
        return report

    monkeypatch.setattr(targets_module, "slim_subject", breaks)
    recipe = Recipe(options, {"int8": replace(options, quantize="dynamic"), "plain": options})
    outcomes = run_recipe(recipe, tmp_path)
    assert [o.exit_code for o in outcomes.values()] == [70, 0]
    assert outcomes["plain"].report is not None and outcomes["plain"].report["resumed"] == ["plan"]
    assert (tmp_path / WORK).is_dir() and not (tmp_path / "int8").exists()
    monkeypatch.undo()
    assert [o.found for o in run_recipe(recipe, tmp_path).values()] == [False, True]
    assert {f.name for f in tmp_path.iterdir()} == {"int8", "plain", SUMMARY}


def test_a_result_is_no_place_for_targets(result: Path, options: SlimOptions) -> None:
    with pytest.raises(InputError, match="is a result itself"):
        run_recipe(Recipe(options, {"a": options}), result)


def test_mistakes_of_any_target_are_told_before_the_work(options: SlimOptions, tmp_path: Path) -> None:
    targets = {"a": options, "b": replace(options, provider="abacus")}
    with pytest.raises(InputError, match="abacus"):
        run_recipe(Recipe(options, targets), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
