"""Methods, budgets and subspaces through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxslim.graph.serialize import load
from fxslim.opening import open_model
from fxslim.passes.methods import METHODS
from fxslim.passes.plan import Plan
from tests.fxslim.factories import write_data
from tests.fxslim.test_cli import FAST, refused, run

BOTTLENECK = "tests.fxslim.factories:bottleneck"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.npz", labels=False)


@pytest.fixture(scope="module")
def best(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    result = run("plan", BOTTLENECK, "--keep", "0.6", "--method", "best", "--calibration", data, "-o", path)
    assert result.exit_code == 0, result.output
    return path


def test_slim_by_the_name_of_a_method(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (BOTTLENECK, "--keep", "0.7", "--method", "fasp", "--calibration", data, "--json", *FAST, "-o", out)
    result = run("slim", *words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["verdict"] == "ok" and "--method fasp" in report["command"]
    plan = Plan.load(out / "plan.json")
    assert plan.subspaces == ()
    assert (plan.options["importance"], plan.options["budget"]) == ("fasp", "uniform")
    before, after = report["costs"]["params"]
    assert abs(after / before - 0.7) < 0.01


def test_rounds_and_ranks_by_depth_are_written_down(data: Path, tmp_path: Path) -> None:
    words: tuple[object, ...] = ("--method", "fasp", "--rounds", "2", "--schedule", "linear", "--calibration", data)
    result = run("slim", BOTTLENECK, "--keep", "0.7", *words, "--json", *FAST, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    report, plan = json.loads(result.stdout), Plan.load(tmp_path / "out/plan.json")
    assert report["verdict"] == "ok" and "--rounds 2 --schedule linear" in report["command"]
    assert (plan.options["rounds"], plan.options["schedule"], plan.options["budget"]) == (2, "linear", "uniform")
    path = tmp_path / "plan.json"
    result = run("plan", BOTTLENECK, "--keep", "0.7", *words, "-o", path)
    assert result.exit_code == 0 and Plan.load(path).cuts == plan.cuts
    result = run("plan", BOTTLENECK, "--keep", "0.8", "--method", "lr-sms", "--slope", "-0.5", "-o", path)
    assert result.exit_code == 0, result.output
    assert (Plan.load(path).options["slope"], Plan.load(path).options["budget"]) == (-0.5, "linear")


def test_slim_takes_the_best_with_data_as_plan_does(best: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("slim", BOTTLENECK, "--keep", "0.6", "--calibration", data, "--json", *FAST, "-o", out)
    assert result.exit_code == 0, result.output
    plan = Plan.load(out / "plan.json")
    assert json.loads(result.stdout)["verdict"] == "ok"
    assert plan == Plan.load(best)
    assert plan.subspaces == ("down.weight[0]",) and plan.options["budget"] == "global"


def test_apply_finds_the_basis_again(best: Path, data: Path, tmp_path: Path) -> None:
    result = run("apply", BOTTLENECK, best, "--calibration", data, "-o", tmp_path / "slim")
    assert result.exit_code == 0, result.output
    (rank,) = [c for c in Plan.load(best).cuts if c.subspace]
    assert load(tmp_path / "slim").info["down.weight"].shape[0] == rank.count < 20


def test_a_subspace_is_proven_with_the_data_only(best: Path, data: Path) -> None:
    assert Plan.load(best).subspaces
    refused(run("prove", BOTTLENECK, best), "basis comes from calibration data", "--calibration FILE")
    result = run("prove", BOTTLENECK, best, "--calibration", data, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["ok"] and facts["effect"] > 0


def test_a_subspace_is_applied_with_the_data_only(best: Path, tmp_path: Path) -> None:
    refused(run("apply", BOTTLENECK, best, "-o", tmp_path / "out"), "basis comes from calibration data")
    refused(run("slim", BOTTLENECK, "--plan", best, *FAST, "-o", tmp_path / "out"), "basis comes from calibration data")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_what_is_a_subspace(best: Path) -> None:
    cuts = json.loads(best.read_text())["cuts"]
    assert {c["group"]: c["subspace"] for c in cuts}["down.weight[0]"] is True


@pytest.mark.parametrize("command", ["slim", "plan"])
def test_a_method_that_is_none_names_the_choices(command: str, tmp_path: Path) -> None:
    result = run(command, BOTTLENECK, "--keep", "0.7", "--method", "nonsense", "-o", tmp_path / "out")
    assert result.exit_code == 2 and result.stdout == ""
    said = "".join(result.stderr.split()).replace("│", "")  # the message is wrapped in a frame
    assert all(f"'{name}'" in said for name in METHODS)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--keep", "0.7", "--method", "best"), "the method 'best' needs calibration data"),
        (("--keep", "0.7", "--budget", "global"), "the budget 'global' needs calibration data"),
        (("--width", "0.7", "--budget", "global", "--calibration", "DATA"), "a global budget divides a share"),
        (("--plan", "plan.json", "--method", "fasp"), "--method: no effect"),
        (("--plan", "plan.json", "--budget", "global"), "--budget: no effect"),
        (("--plan", "plan.json", "--rounds", "2", "--slope", "0.1"), "--rounds, --slope: no effect"),
        (
            ("--keep", "0.7", "--rounds", "2", "--calibration", "DATA"),
            "2 rounds choose positions alone, and the method",
        ),
        (("--keep", "0.7", "--method", "fasp", "--rounds", "0", "--calibration", "DATA"), "rounds must be a whole"),
        (("--keep", "0.7", "--schedule", "linear"), "schedule: no effect with one round"),
        (("--keep", "0.7", "--slope", "-0.5"), "slope: no effect"),
        (("--keep", "0.7", "--budget", "linear"), "'linear' divides ranks"),
        (("--keep", "0.7", "--budget", "influence", "--calibration", "DATA"), "none holds a group"),
    ],
)
def test_bad_options(words: tuple[str, ...], part: str, data: Path, tmp_path: Path) -> None:
    given = (str(data) if w == "DATA" else w for w in words)
    refused(run("slim", BOTTLENECK, *given, *FAST, "-o", tmp_path / "out"), part)
    assert list(tmp_path.iterdir()) == []


def test_data_of_several_files(data: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other.npz", 40)
    words = ("--calibration", f"{data}=3", "--calibration", f"{other}=1", "--samples", "40")
    plan = tmp_path / "plan.json"
    made = run("plan", BOTTLENECK, "--keep", "0.6", "--method", "best", *words, "-o", plan)
    assert made.exit_code == 0, made.output
    assert Plan.load(plan).subspaces, "so that proving it needs the same data"
    assert run("prove", BOTTLENECK, plan, *words).exit_code == 0
    refused(run("prove", BOTTLENECK, plan, *words, "--seed", "1"), "data")
    refused(run("plan", BOTTLENECK, "--keep", "0.6", "--calibration", f"{data}=-1"), "weight of a part")


def test_apply_says_what_was_saved_of_the_model(tmp_path: Path) -> None:
    """Not of the program that the plan applies to, whose weights are pairs of full rank."""
    plan = tmp_path / "plan.json"
    assert run("plan", "bundled:digits-resnet", "--keep", "0.7", "--method", "svd", "-o", plan).exit_code == 0
    result = run("apply", "bundled:digits-resnet", plan, "-o", tmp_path / "slim")
    whole, slim = open_model("bundled:digits-resnet").program.parameters(), load(tmp_path / "slim").parameters()
    assert f"{whole:,} parameters -> {slim:,}" in result.stdout and slim < 0.75 * whole
