"""The contract of a pass: counted edits, verified results, graphs on request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import VerifyError
from fxslim.graph.program import Program
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.planner import make_plan
from fxslim.passes.prune import Prune
from tests.models.nets import captured


@pytest.mark.parametrize("name", ["mlp", "resnet", "grouped", "attention", "decoder"])
def test_keeping_everything_edits_nothing(name: str) -> None:
    analysis = captured(name).analysis
    full = tuple(
        Cut.from_mask(g, torch.ones([int(a.size) for a in (*g.batch, g.axis)], dtype=torch.bool))
        for g in analysis.prunable
    )
    for plan in (Plan(analysis.program.fingerprint(), ()), Plan(analysis.program.fingerprint(), full)):
        result = Prune(plan)(analysis)
        assert result.edits == Counter()
        assert not result.modified
        assert result.program.fingerprint() == analysis.program.fingerprint()


def test_edits_are_counted(pair: Analysis) -> None:
    result = Prune(make_plan(pair, width=0.5))(pair)
    assert result.modified
    assert result.edits == Counter(weight=3)  # up.weight, up.bias, down.weight; no shape constant in this graph


def test_a_convolution_without_groups_has_no_argument_to_edit() -> None:
    """The default `groups=1` is not written down: it would count as an edit, and change the fingerprint."""
    analysis = captured("unet").analysis
    assert Prune(make_plan(analysis, width=0.5))(analysis).edits["arguments"] == 0


def test_the_program_analysed_is_left_as_it_is(pair: Analysis) -> None:
    before, graph = pair.program.fingerprint(), str(pair.program.graph)
    Prune(make_plan(pair, width=0.5))(pair)
    assert (pair.program.fingerprint(), str(pair.program.graph)) == (before, graph)
    assert pair.program.history == []


@dataclass(frozen=True)
class Spoil(Pass):
    """Hands back another program than the one analysed, and records which one it is asked about."""

    name: ClassVar[str] = "spoil"
    good: bool = True

    def apply(self, analysis: Analysis) -> PassResult:
        return PassResult(analysis.program.clone(), Counter(spoiled=1))

    def ensures(self, result: Program, original: Program) -> None:
        if result is original or not self.good:
            raise VerifyError("spoiled")


def test_the_result_is_what_is_verified(pair: Analysis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = Spoil()(pair)
    assert result.program.history == ["spoil{good=True}"]
    monkeypatch.setenv("FXSLIM_DUMP", str(tmp_path / "dump"))
    with pytest.raises(VerifyError, match="spoiled"):
        Spoil(good=False)(pair)
    assert not (tmp_path / "dump").exists(), "a pass that failed leaves no graph"


def test_graphs_are_written_where_the_environment_says(
    pair: Analysis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FXSLIM_DUMP", str(tmp_path / "dump"))
    slim = Prune(make_plan(pair, width=0.5))(pair).program
    (file,) = (tmp_path / "dump").iterdir()
    assert file.name == "01_after_prune.txt"
    assert file.read_text(encoding="utf-8") == f"{slim.graph}\n"
    assert slim.history == ["prune"]
