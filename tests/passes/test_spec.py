"""Passes as text and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.passes.base import Pass, PassResult
from fxslim.passes.prepare import PREPARATIONS
from fxslim.passes.spec import parse_pass, spec_name


@dataclass(frozen=True)
class Every(Pass):
    """A pass with an option of every type that has a text."""

    name: ClassVar[str] = "every-type"
    names: tuple[str, ...]
    text: str = "a"
    count: int = 1
    share: float = 0.5
    deep: bool = False
    other: object = None  # has no text

    def apply(self, analysis: Analysis) -> PassResult:
        raise NotImplementedError

    def ensures(self, result: Program, original: Program) -> None:
        raise NotImplementedError


KNOWN = {Every.name: Every}
AWKWARD = ("a.b", "c+d", "e,f=g", "{h}", "100%", "%2B", "ü i")


@pytest.mark.parametrize(
    "made",
    [Every(AWKWARD), Every((), "x,y}", -3, 1e-9, True), Every(("one",), "", 0, float("inf"))],
)
def test_text_and_back(made: Every) -> None:
    assert parse_pass(made.spec(), KNOWN) == made
    assert spec_name(made.spec()) == "every-type"


def test_the_text_is_what_people_write() -> None:
    made = Every(("a.weight", "b.0.weight"), count=2)
    assert made.spec() == "every-type{names=a.weight+b.0.weight,text=a,count=2,share=0.5,deep=False}"
    assert parse_pass("every-type{count=2,names=a.weight+b.0.weight}", KNOWN) == made
    assert [parse_pass(name, PREPARATIONS).spec() for name in ("fold-constants", "split-fused")] == [
        "fold-constants", "split-fused",
    ]  # fmt: skip


REFUSED = {
    "": "there is no preparation ''",
    "melt": "there is no preparation 'melt'",
    "melt{names=a}": "there is no preparation 'melt'",
    " every-type{names=a}": "there is no preparation",
    "every-type{names=a": "malformed",
    "every-type{names=a}}": "malformed",
    "every-type{names=a} ": "malformed",
    "every-type{{names=a}": "malformed",
    "every-type": "needs names",
    "every-type{}": "needs names",
    "every-type{names}": "'names' cannot be used",
    "every-type{names=a,}": "'' cannot be used",
    "every-type{names=a,names=b}": "'names=b' cannot be used",
    "every-type{names=a,size=3}": "'size=3' cannot be used",
    "every-type{names=a,count=x}": "count='x' is not a int",
    "every-type{names=a,count=1.5}": "count='1.5' is not a int",
    "every-type{names=a,share=}": "share='' is not a float",
    "every-type{names=a,deep=yes}": "deep='yes' is not a bool",
    "every-type{names=a,other=b}": "other='b' is not a object",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_no_pass_prints_is_refused(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_pass(text, KNOWN)
    assert REFUSED[text] in str(error.value)


def test_a_pass_without_options_takes_none() -> None:
    with pytest.raises(InputError, match="it has no options"):
        parse_pass("fold-constants{weights=a}", PREPARATIONS)
