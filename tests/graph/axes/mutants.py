"""Wrong rules, to test the oracle: some written by hand as people get them wrong, many made by a seeded mutator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from fxslim.graph.axes.notation import Concat, DimRule, Dims, Pattern, Product, Symmetry, letters_of
from fxslim.graph.axes.oracle import BadRule, Sample, letter_sizes
from tests.graph.axes.samples_pointwise import real

aten = torch.ops.aten
GENERAL, SCALING, PERMUTATION = Symmetry.GENERAL, Symmetry.SCALING, Symmetry.PERMUTATION

_Q, _K, _V = real(2, 3, 4, 5), real(2, 3, 6, 5), real(2, 3, 6, 8)
_SDPA = aten.scaled_dot_product_attention.default
_BATCH = "ba h q e, ba h t e, ba h t v -> ba h q v"


def _wrong(text: str, default: Symmetry = PERMUTATION, **sizes: int) -> DimRule:
    return DimRule.parse(text, default=default, sizes=sizes)


HAND_MADE: dict[str, tuple[Sample, DimRule]] = {
    "layer_norm claimed pass": (
        Sample(aten.layer_norm.default, (real(2, 3, 5), [5], real(5), real(5))),
        _wrong("a b d, d, d -> a b d"),
    ),
    "rms_norm claimed general": (
        Sample(aten.rms_norm.default, (real(3, 5), [5])),
        _wrong("b d -> b d | tied d | general d"),
    ),
    "rms_norm with a weight claimed orthogonal": (
        Sample(aten.rms_norm.default, (real(3, 5), [5], real(5))),
        _wrong("b d, d -> b d | tied d | orthogonal d"),
    ),
    "softmax claimed pass": (Sample(aten.softmax.int, (real(2, 3, 5), -1)), _wrong("a b c -> a b c")),
    "sdpa without an explicit scale": (
        Sample(_SDPA, (_Q, _K, _V)),
        _wrong(f"{_BATCH} | fixed t q | permutation ba h", GENERAL),
    ),
    "sdpa with free keys": (
        Sample(_SDPA, (_Q, _K, _V), {"scale": 0.3}),
        _wrong(f"{_BATCH} | permutation ba h q", GENERAL),
    ),
    "sdpa heads claimed general": (
        Sample(_SDPA, (_Q, _K, _V), {"scale": 0.3}),
        _wrong(f"{_BATCH} | tied t | permutation ba q", GENERAL),
    ),
    "gqa repeats outside": (
        Sample(_SDPA, (real(2, 6, 4, 5), _K, _V), {"scale": 0.3, "enable_gqa": True}),
        _wrong("ba (r h) q e, ba h t e, ba h t v -> ba (r h) q v | tied t", h=3),
    ),
    "relu claimed general": (Sample(aten.relu.default, (real(3, 5),)), _wrong("a b -> a b", GENERAL)),
    "gelu claimed scaling": (Sample(aten.gelu.default, (real(3, 5),)), _wrong("a b -> a b", SCALING)),
    "mean claimed reduce": (Sample(aten.mean.dim, (real(3, 5, 4), [1])), _wrong("a b c -> a c")),
    "sum claimed general": (Sample(aten.sum.dim_IntList, (real(3, 5), [1])), _wrong("a b -> a", GENERAL)),
    "add claimed tied": (Sample(aten.add.Tensor, (real(2, 3, 5), real(5))), _wrong("a b c, c -> a b c | tied c")),
    "add claimed fixed": (Sample(aten.add.Tensor, (real(3, 5), real(3, 5))), _wrong("a b, a b -> a b | fixed b")),
    "add of a broadcast bias claimed general": (
        Sample(aten.add.Tensor, (real(3, 5), real(5))),
        _wrong("a b, b -> a b", GENERAL),
    ),
    "mul claimed general": (Sample(aten.mul.Tensor, (real(3, 5), real(3, 5))), _wrong("a b, a b -> a b", GENERAL)),
    "linear transposed": (Sample(aten.linear.default, (real(3, 5), real(5, 5))), _wrong("b k, k n -> b n", GENERAL)),
    "linear rows claimed general in spite of a bias": (
        Sample(aten.linear.default, (real(3, 5), real(4, 5), real(4))),
        _wrong("b k, n k, n -> b n", GENERAL),
    ),
    "bmm batch claimed general": (
        Sample(aten.bmm.default, (real(2, 3, 5), real(2, 5, 4))),
        _wrong("b m k, b k n -> b m n", GENERAL),
    ),
    "cat with its parts swapped": (
        Sample(aten.cat.default, ([real(3, 4), real(3, 4)], 1)),
        _wrong("a c, a d -> a [d|c]", GENERAL),
    ),
    "view with its factors in the wrong order": (
        Sample(aten.view.default, (real(2, 9), [2, 3, 3])),
        _wrong("a (c b) -> a b c", GENERAL),
    ),
    "view claimed c g of unequal sizes": (
        Sample(aten.view.default, (real(12), [3, 4])),
        _wrong("(c b) -> b c", GENERAL, b=3, c=4),
    ),
    "conv groups ignored": (
        Sample(aten.conv1d.default, (real(2, 6, 8), real(6, 3, 3), None, [1], [0], [1], 2)),
        _wrong("b c h, o d y -> b o i | fixed h y i d"),
    ),
    "conv groups minor": (
        Sample(aten.conv1d.default, (real(2, 6, 8), real(6, 3, 3), None, [1], [0], [1], 2)),
        _wrong("b (c g) h, (o g) c y -> b (o g) i | fixed h y i", g=2),
    ),
    "conv positions claimed pass": (
        Sample(aten.conv1d.default, (real(2, 4, 8), real(3, 4, 1))),
        _wrong("b c h, o c 1 -> b o h | fixed h"),
    ),
    "glu halves apart": (Sample(aten.glu.default, (real(3, 8),)), _wrong("a [b|c] -> a b", b=4, c=4)),
    "cumsum claimed pass": (Sample(aten.cumsum.default, (real(3, 5), -1)), _wrong("a b -> a b")),
    "flip claimed pass": (Sample(aten.flip.default, (real(3, 5), [1])), _wrong("a b -> a b")),
    "sort claimed tied": (Sample(aten.sort.default, (real(3, 5),)), _wrong("a b -> a b, a b")),
    "group_norm with whole channels": (
        Sample(aten.group_norm.default, (real(2, 6, 5), 3, real(6), real(6))),
        _wrong("b c p, c, c -> b c p | tied p"),
    ),
    "batch_norm over its own statistics": (
        Sample(aten.batch_norm.default, (real(3, 4), None, None, None, None, True, 0.1, 1e-5, False)),
        _wrong("b c -> b c"),
    ),
    "embedding rows claimed pass": (
        Sample(aten.embedding.default, (real(7, 5), torch.tensor([0, 6, 2]))),
        _wrong("v d, i -> i d", PERMUTATION),
    ),
    "expand of a summed letter claimed general": (
        Sample(aten.expand.default, (real(3, 1), [3, 4])),
        _wrong("a 1 -> a b", GENERAL),
    ),
    "repeat claimed interleaved": (Sample(aten.repeat.default, (real(4), [2])), _wrong("a -> (a ra)", a=4, ra=2)),
    "slice of the wrong part": (Sample(aten.slice.Tensor, (real(8), 0, 0, 4)), _wrong("[q|s] -> s", GENERAL, s=4, q=4)),
    "unbind as a product": (Sample(aten.unbind.int, (real(2, 5),)), _wrong("a b -> b, a | fixed a")),
    "max_pool claimed general": (
        Sample(aten.max_pool1d.default, (real(2, 3, 8), [2])),
        _wrong("a b h -> a b i | fixed h i", GENERAL),
    ),
    "pad claimed pass": (Sample(aten.constant_pad_nd.default, (real(3, 5), [1, -1])), _wrong("a b -> a b")),
    "logsumexp claimed reduce": (Sample(aten.logsumexp.default, (real(3, 5), [1])), _wrong("a b -> a")),
    "prod claimed reduce": (Sample(aten.prod.dim_int, (real(3, 5), 1)), _wrong("a b -> a")),
    "argmax claimed reduce": (Sample(aten.argmax.default, (real(3, 5), 1)), _wrong("a b -> a")),
    "too few operands": (Sample(aten.mm.default, (real(3, 5), real(5, 4))), _wrong("m k -> m n")),
    "too few dimensions": (Sample(aten.mm.default, (real(3, 5), real(5, 4))), _wrong("m, k n -> m n")),
}


def mutations(sample: Sample, rule: DimRule, rng: random.Random) -> Iterator[tuple[str, DimRule]]:
    """Each clause without one of its letters, and some exchanges and moves of letters: description, wrong rule."""
    for letter in sorted(rule.tied):
        yield f"not tied {letter}", replace(rule, tied=rule.tied - {letter})
    for letter in sorted(rule.fixed):
        yield f"not fixed {letter}", replace(rule, fixed=rule.fixed - {letter})
    for pair in rule.symmetry:
        yield f"not {pair[1]} {pair[0]}", replace(rule, symmetry=tuple(p for p in rule.symmetry if p != pair))
    sides = [*rule.operands, *rule.results]
    many = [i for i, d in enumerate(sides) if len(set(letters_of(d))) > 1]
    for _ in range(2 if many else 0):
        index = rng.choice(many)
        a, b = rng.sample(sorted(set(letters_of(sides[index]))), 2)
        yield f"swap {a} {b} in {index}", _with_side(rule, index, lambda d, p={a: b, b: a}: _renamed(d, p))  # type: ignore[misc]
    movable = [i for i, d in enumerate(sides) if len(d) > 1]
    if movable:
        index = rng.choice(movable)
        yield f"roll {index}", _with_side(rule, index, lambda d: (*d[1:], d[0]))


def _with_side(rule: DimRule, index: int, change: Callable[[Dims], Dims]) -> DimRule:
    sides = [*rule.operands, *rule.results]
    sides[index] = change(sides[index])
    count = len(rule.operands)
    return replace(rule, operands=tuple(sides[:count]), results=tuple(sides[count:]))


def _renamed(dims: Dims, names: Mapping[str, str]) -> Dims:
    def rename(pattern: Pattern) -> Pattern:
        if isinstance(pattern, str):
            return names.get(pattern, pattern)
        if isinstance(pattern, Product):
            return Product(tuple(map(rename, pattern.factors)))
        return Concat(tuple(map(rename, pattern.parts)))

    return tuple(map(rename, dims))


def meaning(sample: Sample, rule: DimRule) -> object:
    """What a rule says, free of names: two rules with the same meaning cannot be told apart by any oracle.

    Letters are numbered by first appearance; letters of size 1 say nothing.
    """
    shapes: Sequence[Sequence[int]] = [t.shape for t in sample.operands]
    results = [t.shape for t in sample.run(sample.operands)]
    try:
        sizes = letter_sizes(rule, shapes, results)
    except BadRule:
        return object()
    order: dict[str, str] = {x: f"n{i}" for i, x in enumerate(x for x in sizes if sizes[x] != 1)}
    sides = tuple(_renamed(_without_ones(d, sizes), order) for d in (*rule.operands, *rule.results))
    kinds = {order[x]: (rule.kind(x), rule.symmetry_of(x)) for x in order}
    return sides, tuple(sorted(kinds.items()))


def _without_ones(dims: Dims, sizes: Mapping[str, int]) -> Dims:
    def drop(pattern: Pattern) -> Pattern:
        if isinstance(pattern, str):
            return Product(()) if sizes[pattern] == 1 else pattern
        if isinstance(pattern, Product):
            kept = tuple(p for p in map(drop, pattern.factors) if p != Product(()))
            return kept[0] if len(kept) == 1 else Product(kept)
        return Concat(tuple(drop(p) for p in pattern.parts))

    return tuple(map(drop, dims))
