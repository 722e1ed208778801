"""Every registered rule against its operator, and the oracle itself against rules that are wrong on purpose."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

from fxslim.graph.axes.oracle import Sample, check, first_violation
from fxslim.graph.axes.registry import REGISTRY
from tests.graph.axes.mutants import HAND_MADE, meaning, mutations
from tests.graph.axes.samples import SAMPLES

aten = torch.ops.aten

# Rules that claim less than the operator allows, on purpose. (operator, letter) -> why.
CAUTION: dict[tuple[str, str], str] = {
    (
        "aten.scaled_dot_product_attention.default",
        "q",
    ): "positions of a sequence: fixed together with the keys', one idea",
    (
        "aten.scaled_dot_product_attention.default",
        "t",
    ): "a boolean mask of False would do; the float mask of 0 does not",
    (
        "aten.split.Tensor",
        "c1",
    ): "only the last piece may be shorter; capture writes split_with_sizes, where all are free",
    (
        "aten.chunk.default",
        "c2",
    ): "only the last piece may be shorter; capture writes split_with_sizes, where all are free",
    **dict.fromkeys(
        [("aten.pairwise_distance.default", "b"), ("aten.triplet_margin_loss.default", "b")],
        "a small number is added to each difference: a removed one is nearly, not exactly, a zero",
    ),
    **dict.fromkeys(
        [
            (f"aten.linalg_{op}", letter)
            for op, letters in (
                ("matrix_norm.default", "bc"), ("matrix_norm.str_ord", "ac"), ("norm.ord_str", "bc"),
                ("matrix_rank.default", "mn"), ("matrix_rank.atol_rtol_tensor", "mn"),
            )
            for letter in letters
        ],
        "whole rows or columns could go, but not other columns from each row",
    ),
    **dict.fromkeys(
        [("aten.index.Tensor", "a"), ("aten.index.Tensor", "b"), ("aten.index.Tensor", "c")],
        "positions that a mask chooses among: zeros in the mask, not in what it is applied to",
    ),
    **dict.fromkeys(
        [("aten.index_put.default", "ia"), ("aten.index_add.default", "i")],
        "terms that are added by index: zeros in the source, not in the index",
    ),
    ("aten.repeat_interleave.self_Tensor", "b"): "a zero in the counts, not in what they repeat",
}  # fmt: skip

# Mutants that no experiment can refute. (operator, mutation) -> why they are as true as the rule.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("aten.type_as.default", "not permutation xa"): "only the type of that operand is read",
    ("aten.type_as.default", "not permutation xb"): "only the type of that operand is read",
    (
        "aten.rms_norm.default",
        "not orthogonal da",
    ): "a permutation is a rotation: the mutant claims less, nothing wrong",
    **{
        (op, f"not orthogonal {letter}"): "a permutation is a rotation: the mutant claims less, nothing wrong"
        for op in ("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")
        for letter in "abc"
    },
    ("aten.split.Tensor", "not fixed c1"): "see CAUTION",
    ("aten.chunk.default", "not fixed c2"): "see CAUTION",
    ("aten.split.Tensor", "swap c0 c1 in 0"): "equal pieces that are never sliced",
    **{
        (f"aten.pixel_{op}.default", f"swap {pair} in {side}"): "one factor for both, never sliced"
        for op in ("shuffle", "unshuffle")
        for pair in ("r s", "s r")
        for side in (0, 1)
    },
    ("aten.pairwise_distance.default", "not tied b"): "see CAUTION",
    ("aten.triplet_margin_loss.default", "not tied b"): "see CAUTION",
    ("aten.linalg_matrix_norm.default", "not tied c"): "see CAUTION",
    **{
        (f"aten.{op}.default", f"{what} {side}"): "two letters that are never sliced, of one size"
        for op in ("linalg_qr", "linalg_svd", "svd", "linalg_lu")
        for what in ("roll", *(f"swap {a} {b} in" for a, b in itertools.permutations("mnkuvp", 2)))
        for side in range(1, 4)
    },
    **{
        (f"aten.{op}.input", "not general k"): "a permutation is a change of basis: the mutant claims less"
        for op in ("lstm", "gru", "rnn_tanh", "rnn_relu")
    },
}


# Calls that a rule declines: their dimensions are fixed and the operator is reported.
DECLINED: dict[str, Sample] = {
    "attention without an explicit scale": Sample(
        aten.scaled_dot_product_attention.default, tuple(torch.randn(2, 3, 4, 5, dtype=torch.float64) for _ in range(3))
    ),
    "indexing by a mask and positions": Sample(
        aten.index.Tensor, (torch.randn(4, 5), [torch.tensor([True, False, True, True]), torch.tensor([0, 4, 2])])
    ),
    "writing by a mask and positions": Sample(
        aten.index_put.default,
        (torch.randn(4, 5), [torch.tensor([True, False, True, True]), torch.tensor([0, 4, 2])], torch.randn(3)),
    ),
}


def _missed(sample: Sample, text: str) -> tuple[str, str] | None:
    return (str(sample.op), text.split("`")[1]) if "a missed chance" in text else None


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_every_claim_of_the_rule_holds(sample: Sample) -> None:
    rule = sample.rule
    assert rule is not None, "the rule declines its sample"
    found = [v for v in check(sample, rule) if _missed(sample, v) not in CAUTION]
    assert not found, f"{rule}\n" + "\n".join(found)


def test_every_caution_is_still_one() -> None:
    used = {
        m
        for s in SAMPLES
        if any(str(s.op) == op for op, _ in CAUTION)
        for v in check(s, s.rule)
        if (m := _missed(s, v))
    }  # type: ignore[arg-type]
    assert used == set(CAUTION)


def test_every_operator_has_a_sample() -> None:
    assert {str(op) for op in REGISTRY} == {str(s.op) for s in SAMPLES}


def test_sample_names_are_unique() -> None:
    names = [s.name for s in SAMPLES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("sample", DECLINED.values(), ids=DECLINED)
def test_calls_outside_a_rule_are_declined(sample: Sample) -> None:
    assert sample.rule is None


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made_mistakes_are_caught(name: str) -> None:
    sample, rule = HAND_MADE[name]
    assert first_violation(sample, rule) is not None


@pytest.mark.parametrize("part", range(8))
def test_random_mistakes_are_caught(part: int) -> None:
    survivors = {(str(s.op), what) for s, what, survived in _mutants(part) if survived}
    assert survivors <= set(EQUIVALENT), "mutants that the oracle does not catch"


def _mutants(part: int) -> Iterator[tuple[Sample, str, bool]]:
    rng = random.Random(part)
    count = 0
    for sample in SAMPLES[part::8]:
        rule = sample.rule
        assert rule is not None
        for what, mutant in mutations(sample, rule, rng):
            if meaning(sample, mutant) != meaning(sample, rule):
                count += 1
                yield sample, what, first_violation(sample, mutant) is None
    assert count > 150, "the mutator makes too few mutants to mean anything"
