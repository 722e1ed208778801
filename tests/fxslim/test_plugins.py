"""Plug-ins: what is registered by a call or found by entry points is used, named, and refused where it is not right."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import fxslim
from fxslim import plugins
from fxslim.api import analyze, capture, make_plan, prepare
from fxslim.export.translations import TRANSLATIONS
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.axes.registry import REGISTRY
from fxslim.graph.errors import InputError, PlanError, RuleError, VerifyError
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.passes.methods import METHODS, Settings, settings
from fxslim.passes.prepare import PREPARATIONS
from tests.fxslim.plugin_distribution import TINY, forgotten, install
from tests.fxslim.plugin_distribution import fxslim as command

aten = torch.ops.aten
FAST = ("--latency-seconds", "0.1")


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    with forgotten():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("tiny"), "fxslim-tiny", TINY)


@pytest.fixture
def program() -> Program:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return capture(model, (torch.randn(3, 8),), dynamic_shapes=({0: "batch"},))


@dataclass(frozen=True)
class Renamed(fxslim.Pass):
    """Does what `change` says to the first weight."""

    name: ClassVar[str] = "renamed"
    change: str = "nothing"

    def apply(self, analysis: Analysis) -> fxslim.PassResult:
        rewriter = Rewriter(analysis.program, self.name)
        name = "0.weight"
        if self.change == "scale":
            rewriter.set_weight(name, rewriter.program.weights[name] * 2)
        if self.change == "input":
            analysis.program.weights[name] = analysis.program.weights[name] * 2
        if self.change == "crash":
            raise ZeroDivisionError
        if self.change == "none":
            return None  # type: ignore[return-value]
        return fxslim.PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        return


def test_a_distribution_is_used_from_model_to_report(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = command(tiny, "slim", "fxslim_tiny:model", "--keep", "0.6", "--method", "first-come", *FAST, "-o", out)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["unknown_operators"] == {} and report["verdict"] == "ok"
    assert report["versions"]["fxslim-tiny"] == "1.2"
    found = {(p["kind"], p["name"], p["distribution"], p["version"]) for p in report["plugins"]}
    named = ("rule", "tiny.gate.default"), ("translation", "tiny.gate.default"), ("pass", "unfold-gates")
    more = ("importance", "first-come"), ("method", "first-come")
    assert found == {(kind, name, "fxslim-tiny", "1.2") for kind, name in (*named, *more)}
    assert "plug-in fxslim-tiny 1.2: rule tiny.gate.default" in (out / "report.md").read_text()
    cuts = json.loads((out / "plan.json").read_text())["cuts"]
    assert [c["kept"] for c in cuts] == [list(range(len(c["kept"]))) for c in cuts], "the first positions stay"


@pytest.mark.slow
def test_a_pass_of_a_distribution_is_asked_for_and_repeated(tiny: Path, tmp_path: Path) -> None:
    plan, text = tmp_path / "plan.json", "unfold-gates{weights=gate}"
    ran = command(tiny, "plan", "fxslim_tiny:model", "--keep", "0.6", "--prepare", text, "-o", plan)
    assert ran.returncode == 0, ran.stderr
    assert text in json.loads(plan.read_text())["prepare"]
    assert command(tiny, "prove", "fxslim_tiny:model", plan).returncode == 0
    alone = command(tiny, "prove", "fxslim_tiny:model", plan, FXSLIM_PLUGINS="0")
    assert alone.returncode == 2 and "there is no preparation 'unfold-gates'" in alone.stderr


def test_without_the_rule_its_operator_is_named_and_nothing_around_it_is_cut(tiny: Path) -> None:
    ran = command(tiny, "groups", "fxslim_tiny:model", "--json", FXSLIM_PLUGINS="0")
    assert json.loads(ran.stdout)["unknown_operators"] == {"tiny.gate.default": 1}
    assert json.loads(ran.stdout)["groups"] == []
    assert json.loads(command(tiny, "groups", "fxslim_tiny:model", "--json").stdout)["groups"] != []


def test_the_doctor_lists_plugins_and_survives_a_broken_one(tiny: Path, tmp_path: Path) -> None:
    told = json.loads(command(tiny, "doctor", "--json").stdout)["findings"]
    (row,) = [f for f in told if f["name"] == "plug-ins"]
    assert row["state"] == "ok" and "fxslim-tiny 1.2: pass unfold-gates" in row["text"]
    broken = install(tmp_path, "broken-one", "raise ValueError('no licence')", {"fxslim.rules": "a = broken_one:f"})
    ran = command(broken, "doctor", "--json")
    (row,) = [f for f in json.loads(ran.stdout)["findings"] if f["name"] == "plug-ins"]
    assert ran.returncode == 1 and row["state"] == "failed" and "broken-one 1.2" in row["text"]


@pytest.mark.parametrize(
    ("entry", "source", "part"),
    [
        ("fxslim.rules", "import nowhere_at_all", "cannot be loaded: ModuleNotFoundError"),
        ("fxslim.rules", "def f(): pass", "registered no rule"),
        ("fxslim.rules", "f = 3", "is int"),
        (
            "fxslim.rules",
            "import fxslim, torch\ndef f():\n fxslim.register_rule(torch.ops.aten.cholesky.default, 'a b -> a b')\n"
            " fxslim.register_rule(torch.ops.aten.relu.default, 'a -> a')",
            "a rule for aten.relu.default is registered already",
        ),
        ("fxslim.importances", "def f():\n import fxslim\n fxslim.register_importance('obs', print)", "fxslim's own"),
        ("fxslim.methods", "def f(): return 1", "registered no method"),
    ],
)
def test_one_that_cannot_be_used_is_an_error_that_names_it(
    entry: str, source: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install(tmp_path, "broken-one", source, {entry: "mine = broken_one:f"})
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "broken_one", raising=False)
    registries = [dict(REGISTRY), dict(PREPARATIONS), dict(METHODS)]
    with pytest.raises(InputError) as caught:
        fxslim.load_plugins()
    for said in (part, "broken-one 1.2", f"'mine' ({entry}: broken_one:f)", "FXSLIM_PLUGINS=0"):
        assert said in str(caught.value)
    assert registries == [dict(REGISTRY), dict(PREPARATIONS), dict(METHODS)] and not plugins.active()


def test_the_command_line_says_so_and_does_nothing(tmp_path: Path) -> None:
    folder = install(tmp_path, "broken-one", "import nowhere_at_all", {"fxslim.rules": "mine = broken_one:f"})
    ran = command(folder, "groups", "bundled:digits-resnet")
    assert ran.returncode == 2 and "Traceback" not in ran.stderr and ran.stdout == ""
    assert "cannot be loaded: ModuleNotFoundError" in ran.stderr and "of broken-one 1.2" in ran.stderr
    ran = command(folder, "plan", "bundled:digits-resnet", "--method", "mine")  # before the command itself begins
    assert ran.returncode == 2 and "of broken-one 1.2" in ran.stderr


def test_a_rule_that_is_there_gives_way_only_when_told(program: Program) -> None:
    with pytest.raises(RuleError, match=r"(?s)relu.default is registered already.*replace=True"):
        fxslim.register_rule(aten.relu.default, "b d -> b d")
    fxslim.register_rule(aten.relu.default, "b d -> b d | fixed d", replace=True)
    assert not analyze(program).prunable
    (noted,) = plugins.active()
    assert noted.replaces and str(noted).endswith("rule aten.relu.default, in the place of another")


def test_a_line_declines_calls_with_other_dimensions() -> None:
    fxslim.register_rule(aten.relu.default, "b d -> b d", replace=True)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    analysis = analyze(capture(model, (torch.randn(3, 2, 8),)))
    assert analysis.unknown_ops == {"aten.relu.default": 1}


def test_a_rule_that_fails_fixes_and_is_named(program: Program) -> None:
    @fxslim.register_rule(aten.relu.default, replace=True)
    def rule_of(call: object) -> None:
        raise ZeroDivisionError

    analysis = analyze(program)
    (said,) = analysis.unknown_ops
    assert "the rule of aten.relu.default failed: ZeroDivisionError" in said and not analysis.prunable


def test_a_rule_by_decorator_and_a_translation_are_noted() -> None:
    @fxslim.register_rule(aten.cholesky.default)
    def rule_of(call: object) -> None:
        return None

    fxslim.register_translation(aten.cholesky.default, lambda x: x)
    assert [(p.kind, p.name, p.module) for p in plugins.active()] == [
        (kind, "aten.cholesky.default", __name__) for kind in ("rule", "translation")
    ]
    with pytest.raises(InputError, match="has a translation already"):
        fxslim.register_translation(aten.cholesky.default, lambda x: x)
    assert aten.cholesky.default in REGISTRY and aten.cholesky.default in TRANSLATIONS


def test_a_pass_is_registered_and_used_by_its_text(program: Program) -> None:
    fxslim.register_pass(Renamed)
    assert PREPARATIONS["renamed"] is Renamed
    assert prepare(program, ["renamed{change=nothing}"]).fingerprint() == program.fingerprint()
    with pytest.raises(InputError, match="there is a pass 'renamed' already"):
        fxslim.register_pass(Renamed)
    fxslim.register_pass(Renamed, replace=True)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("scale", "'renamed' broke its promise: the output .* changed"),
        ("input", "changed the program that it was given"),
        ("none", "'renamed' returned NoneType"),
        ("crash", "'renamed' failed: ZeroDivisionError"),
    ],
)
def test_a_pass_that_breaks_its_promise_is_stopped(change: str, part: str, program: Program) -> None:
    fxslim.register_pass(Renamed)
    with pytest.raises(VerifyError, match=part):
        prepare(program, [f"renamed{{change={change}}}"])


def test_a_pass_that_says_so_may_change_the_numerics(program: Program) -> None:
    @fxslim.register_pass
    @dataclass(frozen=True)
    class Scaled(Renamed):
        name: ClassVar[str] = "scaled"
        preserves: ClassVar[bool] = False

    scaled = prepare(program, ["scaled{change=scale}"])
    assert torch.equal(scaled.weights["0.weight"], program.weights["0.weight"] * 2)


@pytest.mark.parametrize(
    ("made", "part"),
    [
        (lambda: int, "no dataclass derived from"),
        (lambda: dataclass(frozen=True)(type("A", (Renamed,), {"name": "Not Kebab"})), "is called 'Not Kebab'"),
        (
            lambda: dataclass(frozen=True)(
                type("B", (Renamed,), {"name": "b", "rate": None, "__annotations__": {"rate": "dict"}})
            ),
            "'rate' of the pass 'b' has a type that plans cannot write down",
        ),
    ],
)
def test_what_is_no_pass_is_refused(made: object, part: str) -> None:
    with pytest.raises(InputError, match=part):
        fxslim.register_pass(made())  # type: ignore[operator]


def test_a_plan_names_the_pass_that_is_missing(program: Program) -> None:
    fxslim.register_pass(Renamed)

    @fxslim.register_pass
    @dataclass(frozen=True)
    class Scaled(Renamed):
        name: ClassVar[str] = "scaled"
        preserves: ClassVar[bool] = False

    plan = make_plan(prepare(program, ["scaled{change=scale}"]), width=0.5)
    again = fxslim.apply(program, plan)  # also where only values change, which no fingerprint shows
    assert torch.equal(
        again.weights["2.weight"], fxslim.apply(prepare(program, plan.prepare), plan).weights["2.weight"]
    )
    assert not torch.equal(
        again.weights["0.weight"], fxslim.apply(program, replace(plan, prepare=())).weights["0.weight"]
    )
    del PREPARATIONS["scaled"]
    with pytest.raises(PlanError, match="the plan needs the pass 'scaled', which is not registered here"):
        fxslim.prove(program, plan)


def test_an_importance_is_used_and_its_scores_are_looked_at(program: Program) -> None:
    fxslim.register_importance("last-come", lambda a, g, b: torch.arange(g.size).double().expand(g.shape))
    (cut,) = make_plan(program, width=0.5, importance="last-come").cuts  # type: ignore[arg-type]
    assert list(cut.kept) == list(range(8, 16))
    for score, part in (
        (lambda a, g, b: torch.zeros(3), r"gave \(3,\) instead of scores of shape \(16,\)"),
        (lambda a, g, b: torch.full(g.shape, float("nan")), "scores that are not finite"),
        (lambda a, g, b: 1.0, "gave float instead"),
        (lambda a, g, b: 1 / 0, "'last-come' failed: ZeroDivisionError"),
    ):
        fxslim.register_importance("last-come", score, replace=True)
        with pytest.raises(InputError, match=part):
            make_plan(program, width=0.5, importance="last-come")  # type: ignore[arg-type]


def test_an_importance_that_needs_data_says_so_early(program: Program) -> None:
    fxslim.register_importance("by-data", lambda a, g, b: torch.ones(g.shape), needs_data=True)
    with pytest.raises(InputError, match="the importance 'by-data' needs calibration data"):
        make_plan(program, width=0.5, importance="by-data")  # type: ignore[arg-type]
    fxslim.register_method("by-data", Settings("by-data", False, "uniform", "none"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the method 'by-data' needs calibration data"):
        settings("by-data", data=False)


def test_a_method_has_settings_that_make_sense_and_a_name_of_its_own() -> None:
    chosen = Settings("magnitude", False, "uniform", "none")
    fxslim.register_method("mine", chosen)
    assert settings("mine", data=False) == chosen
    for name, given, part in (
        ("best", chosen, "there is a method 'best' already"),
        ("other", Settings("nonsense", False, "uniform", "none"), "unknown importance 'nonsense'"),  # type: ignore[arg-type]
        ("Not Kebab", chosen, "is called 'Not Kebab'"),
        ("other", {"importance": "obs"}, "is dict, not Settings"),
    ):
        with pytest.raises(InputError, match=part):
            fxslim.register_method(name, given)  # type: ignore[arg-type]


def test_the_switch_leaves_everything_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.SWITCH, "0")
    monkeypatch.setattr(plugins, "_found", lambda: pytest.fail("entry points were looked for"))
    assert fxslim.load_plugins() == ()
