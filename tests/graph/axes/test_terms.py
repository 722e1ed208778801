"""Unification of dimensions: common refinements, their reasons, and where there is none."""

from __future__ import annotations

import math

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxslim.graph.axes.select import coordinates
from fxslim.graph.axes.terms import Cat, Expr, Reason, Terms, concatenate, divides, expr_size, quotient, same_size

WHY = Reason("met", "node", "a -> a", "model.py:1")


def fixed(terms: Terms) -> set[object]:
    return {a for expr, _ in terms.fixations for a in terms.atoms(expr)}


def test_an_axis_becomes_a_product() -> None:
    t = Terms()
    whole, outer, inner = t.fresh(64), t.fresh(4), t.fresh(16)
    t.unify(whole, (*outer, *inner), WHY)
    assert t.resolve(whole) == (*outer, *inner)
    assert t.links[0].axis is whole[0]
    assert all(link.reason == WHY for link in t.links)


def test_refinement_of_two_products() -> None:
    t = Terms()
    a, b, c, d = t.fresh(4), t.fresh(9), t.fresh(12), t.fresh(3)
    t.unify((*a, *b), (*c, *d), WHY)
    assert [x.size for x in t.atoms((*a, *b))] == [4, 3, 3]
    assert t.resolve((*a, *b)) == t.resolve((*c, *d))
    assert not t.fixations


def test_query_heads_are_kv_heads_times_repeats() -> None:
    t = Terms()
    query, kv, rep = t.fresh(8), t.fresh(2), t.fresh(4)
    t.unify(query, (*kv, *rep), WHY)
    assert t.resolve(query) == (*kv, *rep)


def test_layouts_without_a_common_refinement_are_fixed_with_the_reason() -> None:
    t = Terms()
    a, b, c, d = t.fresh(3), t.fresh(4), t.fresh(2), t.fresh(6)
    t.unify((*a, *b), (*c, *d), WHY)
    assert fixed(t) == {a[0], b[0], c[0], d[0]}
    ((_, reason),) = t.fixations
    assert "no common refinement" in reason.text and reason.node == "node" and reason.rule == "a -> a"


def test_only_the_stretch_in_conflict_is_fixed() -> None:
    t = Terms()
    head, tail, a, b, c, d = (t.fresh(n) for n in (5, 7, 3, 4, 2, 6))
    t.unify((*head, *a, *b, *tail), (*head, *c, *d, *tail), WHY)
    assert not fixed(t) & {head[0], tail[0]}


def test_a_cut_on_heads_splits_the_heads() -> None:
    t = Terms()
    a, b, h, d = t.fresh(8), t.fresh(24), t.fresh(4), t.fresh(8)
    t.unify((Cat((a, b)),), (*h, *d), WHY)
    left, right = t.resolve(a), t.resolve(b)
    assert left == d and right[-1] is d[0] and right[0].size == 3  # type: ignore[union-attr]
    assert not t.fixations
    assert torch.equal(positions(t, (*h, *d)), positions(t, (Cat((a, b)),)))


def test_a_cut_inside_a_head_is_fixed() -> None:
    t = Terms()
    a, b, h, d = t.fresh(6), t.fresh(26), t.fresh(4), t.fresh(8)
    t.unify((Cat((a, b)),), (*h, *d), WHY)
    assert {a[0], b[0]} <= fixed(t)


def test_rotary_halves_become_one_axis() -> None:
    t = Terms()
    left, right = t.fresh(8), t.fresh(8)
    t.unify((Cat((left, right)),), (Cat((right, left)),), WHY)
    assert t.resolve(left) == t.resolve(right)
    assert not t.fixations


def test_concatenations_are_cut_at_all_boundaries() -> None:
    t = Terms()
    a, b, c, d = t.fresh(5), t.fresh(3), t.fresh(2), t.fresh(6)
    t.unify((Cat((a, b)),), (Cat((c, d)),), WHY)
    assert [x.size for x in t.atoms((Cat((a, b)),))] == [2, 3, 3]
    assert t.resolve((Cat((a, b)),)) == t.resolve((Cat((c, d)),))


def test_a_concatenation_times_an_axis() -> None:
    t = Terms()
    a, b, inner = t.fresh(6), t.fresh(9), t.fresh(3)
    t.unify((Cat((a, b)),), (*t.fresh(5), *inner), WHY)
    assert t.resolve(a)[-1] is inner[0] and t.resolve(b)[-1] is inner[0]
    assert not t.fixations


def test_symbolic_sizes() -> None:
    s = sympy.Symbol("s0", positive=True, integer=True)
    t = Terms()
    whole, heads, rest = t.fresh(s * 12), t.fresh(s), t.fresh(12)
    t.unify(whole, (*heads, *rest), WHY)
    assert t.resolve(whole) == (*heads, *rest)
    assert divides(s, s * 12) and quotient(s * 12, 12) == s
    assert not divides(5, s * 12) and quotient(s, 2) is None and quotient(s + 1, s) is None
    assert quotient(s * s + s, s) == s + 1


def test_the_occurs_check_fixes() -> None:
    """Sizes alone already forbid it; the check is the last guard against a loop."""
    t = Terms()
    a, b = t.fresh(4), t.fresh(2)
    t._bind(a[0], (*b, *a), WHY)  # type: ignore[arg-type]
    assert fixed(t) == {a[0], b[0]} and t.resolve(a) == a
    assert "contain itself" in t.fixations[0][1].text


def test_sizes_that_do_not_match_are_fixed() -> None:
    t = Terms()
    a, b = t.fresh(3), t.fresh(5)
    t.unify(a, b, WHY)
    assert fixed(t) == {a[0], b[0]}


def test_size_one_is_the_empty_product() -> None:
    t = Terms()
    assert t.fresh(1) == () and expr_size(()) == 1
    t.unify((*t.fresh(1), *(a := t.fresh(4))), a, WHY)
    assert not t.fixations and not t.links


def test_later_refinements_reach_fixations() -> None:
    t = Terms()
    whole, outer, inner = t.fresh(12), t.fresh(3), t.fresh(4)
    t.fix(whole, WHY)
    t.unify(whole, (*outer, *inner), WHY)
    assert fixed(t) == {outer[0], inner[0]}


def test_nested_concatenations_are_flat() -> None:
    t = Terms()
    a, b, c = t.fresh(2), t.fresh(3), t.fresh(4)
    assert concatenate([concatenate([a, b]), c]) == (Cat((a, b, c)),)
    assert concatenate([a]) == a


@pytest.mark.parametrize("offset", [0, 4, 8, 12])
def test_cut(offset: int) -> None:
    t = Terms()
    outer, inner = t.fresh(3), t.fresh(4)
    head, tail = t.cut((*outer, *inner), offset, WHY)
    assert (expr_size(head), expr_size(tail)) == (offset, 12 - offset)
    assert not t.fixations


def positions(terms: Terms, expr: Expr) -> torch.Tensor:
    """The coordinates of the finest axes at every position: two expressions are one iff these agree."""
    found = coordinates(terms.resolve(expr))
    rows = [
        torch.stack(sorted(found[a], key=lambda v: v.tolist())).sum(0) for a in sorted(found, key=lambda a: a.index)
    ]
    size = expr_size(terms.resolve(expr))
    assert isinstance(size, int)
    return torch.stack(rows) if rows else torch.zeros(0, size)


factors = st.lists(st.sampled_from([2, 3, 4, 6]), min_size=1, max_size=3)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(factors, st.randoms(use_true_random=False))
def test_random_factorisations_enumerate_the_same_positions(sizes: list[int], rng: object) -> None:
    """Two groupings of one list of prime-like factors always have a common refinement, and it loses no position."""
    primes = [p for n in sizes for p in ([2, 2] if n == 4 else [2, 3] if n == 6 else [n])]
    t = Terms()
    left, right = (_grouping(t, primes, rng) for _ in range(2))
    t.unify(left, right, WHY)
    assert not t.fixations
    assert torch.equal(positions(t, left), positions(t, right))
    assert expr_size(t.resolve(left)) == math.prod(primes)


def _grouping(terms: Terms, primes: list[int], rng: object) -> Expr:
    groups: list[list[int]] = [[]]
    for p in primes:
        if groups[-1] and rng.random() < 0.5:  # type: ignore[attr-defined]
            groups.append([])
        groups[-1].append(p)
    return tuple(f for g in groups for f in terms.fresh(math.prod(g)))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_random_concatenations_enumerate_the_same_positions(left: list[int], right: list[int]) -> None:
    short, long = sorted((left, right), key=sum)
    if sum(short) < sum(long):
        short = [*short, sum(long) - sum(short)]
    t = Terms()
    a, b = (concatenate(t.fresh(n) for n in parts) for parts in (short, long))
    t.unify(a, b, WHY)
    assert not t.fixations
    assert torch.equal(positions(t, a), positions(t, b))


def test_sizes_written_differently_are_compared_by_trial() -> None:
    s, t = sympy.Symbol("s", integer=True, positive=True), sympy.Symbol("t", integer=True, positive=True)
    assert same_size(s, s) and same_size(4, 4)
    assert same_size((s**2) // s, s)
    assert same_size((s * t) // t + 1, s + 1)
    assert not same_size(s, t)
    assert not same_size((s**2) // t, s)
    assert not same_size(s, 4)
    assert not same_size(s + 1, s)
