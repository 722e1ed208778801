"""The notation: what parses, what it means, what is refused."""

from __future__ import annotations

import pytest

from fxslim.graph.axes.notation import Concat, DimRule, Kind, Product, Symmetry, letters_of, parse_dims
from fxslim.graph.errors import RuleError


def test_dimensions() -> None:
    assert parse_dims("b (g c) 1 [p|s q]") == (
        "b",
        Product(("g", "c")),
        Product(()),
        Concat(("p", Product(("s", "q")))),
    )
    assert parse_dims("()") == ()
    assert parse_dims("(a)") == ("a",)
    assert parse_dims("(a 1 b)") == (Product(("a", "b")),)


def test_letters_are_words() -> None:
    assert list(letters_of(parse_dims("ba (h1 [x|x])"))) == ["ba", "h1", "x", "x"]


@pytest.mark.parametrize(
    "text",
    [
        "linear: b k -> b",
        "a (b -> a",
        "a b) -> a",
        "a [b|c -> a",
        "a | b] -> a",
        "a + b -> a",
        "a b",
        "a ( b ] -> a",
        "",
    ],
)
def test_malformed_rules_are_refused(text: str) -> None:
    with pytest.raises(RuleError):
        DimRule.parse(text)


def test_a_clause_names_only_letters_of_the_rule() -> None:
    with pytest.raises(RuleError, match=r"does not have: \['z'\]"):
        DimRule.parse("a b -> a b | tied z")


def test_an_unknown_clause_lists_the_known_ones() -> None:
    with pytest.raises(RuleError, match=r"unknown clause 'free'.*tied, recurrent, fixed, paired, permutation"):
        DimRule.parse("a -> a | free a")


def test_kinds_follow_from_where_letters_stand() -> None:
    rule = DimRule.parse("b s k, n k, t -> b s n | tied s | fixed b")
    assert {x: rule.kind(x) for x in "bsknt"} == {
        "b": Kind.FIXED, "s": Kind.TIED, "k": Kind.REDUCE, "n": Kind.PASS, "t": Kind.REDUCE,
    }  # fmt: skip


def test_symmetry_of_a_letter() -> None:
    rule = DimRule.parse("a b c -> a b c | fixed a | orthogonal b", default=Symmetry.GENERAL)
    assert [rule.symmetry_of(x) for x in "abc"] == [Symmetry.FIXED, Symmetry.ORTHOGONAL, Symmetry.GENERAL]


@pytest.mark.parametrize("a", Symmetry)
@pytest.mark.parametrize("b", Symmetry)
def test_meet_is_commutative_and_below_both(a: Symmetry, b: Symmetry) -> None:
    assert a.meet(b) == b.meet(a) <= min(a, b)


@pytest.mark.parametrize("a", Symmetry)
def test_meet_is_idempotent_and_associative(a: Symmetry) -> None:
    assert a.meet(a) is a
    for b in Symmetry:
        for c in Symmetry:
            assert a.meet(b).meet(c) is a.meet(b.meet(c))


def test_rotations_and_scalings_share_only_permutations() -> None:
    assert Symmetry.SCALING.meet(Symmetry.ORTHOGONAL) is Symmetry.PERMUTATION


@pytest.mark.parametrize(
    "text",
    [
        "b s k, n k, n -> b s n", "-> a b", "a -> ()", "k, k -> ()", "a [p|s|q] -> a s", "a [(h d)|(h d)|v] -> a h",
        "a 1 c -> a b c | permutation b", "a [1|1] -> a", "b (g [x|y]) -> b g x, b g y | tied x | fixed b | general g",
    ],
)  # fmt: skip
def test_parse_is_the_inverse_of_str(text: str) -> None:
    rule = DimRule.parse(text)
    assert DimRule.parse(str(rule)) == rule
    assert str(DimRule.parse(str(rule))) == str(rule)
