"""What authors of plug-ins test with finds what is wrong, and lets pass what is right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import fxslim
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import CheckError, RuleError, VerifyError
from fxslim.graph.program import Program
from fxslim.graph.rewriter import Rewriter
from fxslim.testing import Sample, check_pass, check_rule
from tests.fxslim.plugin_distribution import forgotten

aten = torch.ops.aten
NORMED = (torch.randn(2, 3, 5), -1)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    with forgotten():
        yield


@pytest.fixture
def program() -> Program:
    return fxslim.capture(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU()), (torch.randn(3, 4),))


def test_a_right_rule_passes_in_float32_too() -> None:
    fxslim.register_rule(aten.softmax.int, "b s d -> b s d | tied d", replace=True)
    check_rule(aten.softmax.int, Sample(aten.softmax.int, NORMED))
    check_rule(aten.relu.default, (torch.randn(3, 4),), (torch.randn(2, 3, 5),))


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("b s d -> b s d", "`d` is claimed pass, but slicing it is"),
        ("b s d -> b s d | fixed s | tied d", "`s` is claimed fixed, but slicing it is exact: a missed chance"),
        ("b s d -> b s d | tied d | general s", "`s` is claimed general, but a random member"),
        ("b s d -> b s d | tied d | general d", "`d` is claimed general, but a random member"),
        ("b s -> b s", "has no rule for operands of shape"),
    ],
)
def test_a_wrong_rule_is_found(line: str, part: str) -> None:
    fxslim.register_rule(aten.softmax.int, line, replace=True)
    with pytest.raises(CheckError, match=part):
        check_rule(aten.softmax.int, NORMED)


def test_caution_has_a_reason() -> None:
    fxslim.register_rule(aten.relu.default, "b d -> b d | fixed b", replace=True)
    check_rule(aten.relu.default, (torch.randn(3, 4),), cautious={"b": "rows are a batch, which stays"})
    with pytest.raises(CheckError, match="`b` is claimed fixed"):
        check_rule(aten.relu.default, (torch.randn(3, 4),), cautious={"d": "the wrong letter"})


def test_nothing_checked_is_no_check() -> None:
    with pytest.raises(CheckError, match="nothing was checked"):
        check_rule(aten.relu.default)
    with pytest.raises(CheckError, match="has no rule"):
        check_rule(aten.cholesky.default, (torch.eye(3),))
    with pytest.raises(CheckError, match=r"a sample is a call of aten.relu.default, not of aten.neg.default"):
        check_rule(aten.neg.default, Sample(aten.relu.default, (torch.randn(3, 4),)))


def test_a_malformed_line_is_refused() -> None:
    with pytest.raises(RuleError, match="a rule needs '->'"):
        fxslim.register_rule(aten.cholesky.default, "a b")


@dataclass(frozen=True)
class Negated(fxslim.Pass):
    """Writes a weight, and its negative where it is read; `how` says what is wrong with it."""

    name: ClassVar[str] = "negated"
    how: str = "well"

    def apply(self, analysis: Analysis) -> fxslim.PassResult:
        rewriter = Rewriter(analysis.program, self.name)
        if self.how != "idle" and (self.how == "again" or "negated" not in str(analysis.program.history)):
            rewriter.set_weight("0.bias", rewriter.program.weights["0.bias"].clone())
        if self.how == "wrong":
            rewriter.set_weight("0.weight", -rewriter.program.weights["0.weight"])
        return fxslim.PassResult(rewriter.program, rewriter.edits)

    def ensures(self, result: Program, original: Program) -> None:
        return


def test_a_pass_that_keeps_its_promises(program: Program) -> None:
    assert check_pass(Negated(), program).modified


@pytest.mark.parametrize(
    ("how", "error", "part"),
    [
        ("wrong", VerifyError, "broke its promise"),
        ("again", CheckError, "changes its own result again"),
        ("idle", CheckError, "changes nothing of this program"),
    ],
)
def test_a_pass_that_does_not(how: str, error: type[Exception], part: str, program: Program) -> None:
    with pytest.raises(error, match=part):
        check_pass(Negated(how), program)
