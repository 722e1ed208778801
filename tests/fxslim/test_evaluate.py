"""Scores against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fxslim.data import Batches, load_batches
from fxslim.evaluate import evaluate
from fxslim.graph.errors import CheckError, InputError
from fxslim.sources import BUNDLED, load_model

CLASSES = 5
STATED = 1e-3  # the statement is rounded, and machines sum in different orders
TOLERANCE = 1e-6  # float32 logits, float64 sums


def text_batches(ids: torch.Tensor, mask: torch.Tensor | None = None) -> Batches:
    names = ("input_ids",) if mask is None else ("attention_mask", "input_ids")
    inputs = (ids,) if mask is None else (mask, ids)
    return Batches(names, (inputs,), None, len(ids), ids.numel(), "memory", "", "")


def labelled(labels: torch.Tensor | None, images: torch.Tensor) -> Batches:
    return Batches(("x",), ((images,),), None if labels is None else (labels,), len(images), 0, "memory", "", "")


def guess(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same logit for every class."""
    return [torch.zeros(*inputs[-1].shape, CLASSES)]


def test_the_perplexity_of_a_guess_is_the_number_of_classes() -> None:
    score = evaluate(guess, text_batches(torch.randint(0, CLASSES, (3, 7))), "causal-lm")
    assert score.value == pytest.approx(CLASSES, rel=TOLERANCE)
    assert (score.name, score.higher_is_better, score.count) == ("perplexity", False, 3 * 6)
    assert str(score) == "perplexity 5 over 18 predictions"


def test_perplexity_predicts_the_next_token() -> None:
    ids = torch.tensor([[0, 1, 2, 3]])

    def successor(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        following = (inputs[0] + 1) % CLASSES
        return [torch.nn.functional.one_hot(following, CLASSES) * 2.0]

    expected = (math.exp(2) + CLASSES - 1) / math.exp(2)
    assert evaluate(successor, text_batches(ids), "causal-lm").value == pytest.approx(expected, rel=TOLERANCE)


def test_perplexity_weighs_tokens_not_batches() -> None:
    """The mean of two batches of different length, in nats, is over all tokens together."""
    table = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    long, short = torch.zeros(1, 9, dtype=torch.long), torch.full((1, 3), 4)
    batches = replace(text_batches(long), inputs=((long,), (short,)))
    costs = -table.log_softmax(0)
    expected = float(torch.exp((8 * costs[0] + 2 * costs[4]) / 10))
    score = evaluate(lambda inputs: [table.expand(*inputs[0].shape, CLASSES)], batches, "causal-lm")
    assert score.value == pytest.approx(expected, rel=TOLERANCE)


def test_hidden_tokens_do_not_count() -> None:
    ids = torch.randint(0, CLASSES, (2, 6))
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    assert evaluate(guess, text_batches(ids, mask), "causal-lm").count == 5 + 2
    with pytest.raises(InputError, match="predicts no token"):
        evaluate(guess, text_batches(ids, torch.zeros_like(ids)), "causal-lm")


def test_the_output_named_logits_is_taken() -> None:
    ids = torch.randint(0, CLASSES, (2, 6))

    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.zeros(3), *guess(inputs)]

    names = ("hidden", "logits")
    assert evaluate(run, text_batches(ids), "causal-lm", output_names=names).value == pytest.approx(CLASSES)
    with pytest.raises(InputError, match="logits of the shape"):
        evaluate(run, text_batches(ids), "causal-lm")


def test_accuracy_is_the_share_of_hits() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    score = evaluate(lambda _: [logits], labelled(labels, torch.zeros(4, 1)), "image-classification")
    assert (score.name, score.value, score.higher_is_better, score.count) == ("accuracy", 0.75, True, 4)


def test_labels_of_minus_100_do_not_count() -> None:
    labels = torch.tensor([[0, -100, 1], [-100, 2, 2]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 1, 0], [0, 2, 2]]), 3).float()
    score = evaluate(lambda _: [logits], labelled(labels, torch.zeros(2, 1)), "classification")
    assert (score.value, score.count) == (0.75, 4)
    with pytest.raises(InputError, match="no label that counts"):
        evaluate(lambda _: [logits], labelled(torch.full((2, 3), -100), torch.zeros(2, 1)), "classification")


@pytest.mark.parametrize("task", ["feature-extraction", "masked-lm", None])
def test_a_task_without_labels_has_no_score(task: str | None) -> None:
    with pytest.raises(InputError, match="scored by labels"):
        evaluate(guess, labelled(None, torch.zeros(2, 3)), task)  # type: ignore[arg-type]


def test_labels_that_do_not_fit_are_refused() -> None:
    images = torch.zeros(2, 3)
    with pytest.raises(InputError, match="numbers of classes"):
        evaluate(guess, labelled(torch.zeros(2), images), "classification")
    with pytest.raises(InputError, match="logits of the shape"):
        evaluate(lambda _: [torch.zeros(2, 3)], labelled(torch.zeros(4, dtype=torch.long), images), "classification")


def test_text_without_ids_has_no_perplexity() -> None:
    with pytest.raises(InputError, match="input_ids"):
        evaluate(guess, labelled(None, torch.zeros(2, 3)), "causal-lm")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_computes_nan_has_no_score(value: float) -> None:
    def run(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.full((*inputs[0].shape, CLASSES), value)]

    with pytest.raises(CheckError, match="NaN or Inf"):
        evaluate(run, text_batches(torch.zeros(1, 4, dtype=torch.long)), "causal-lm")


def test_a_perplexity_beyond_floats_is_infinite() -> None:
    logits = torch.tensor([1e4, 0.0])
    batches = text_batches(torch.ones(1, 4, dtype=torch.long))
    score = evaluate(lambda inputs: [logits.expand(*inputs[0].shape, 2)], batches, "causal-lm")
    assert score.value == math.inf


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_scores_what_its_training_states(name: str) -> None:
    source = load_model(f"bundled:{name}")
    assert source.directory is not None
    assert source.evaluation is not None
    stated = json.loads((source.directory / "training.json").read_text(encoding="utf-8"))
    module = source.program.flat_module()
    batches = load_batches(source.evaluation, source, batch_size=16)
    score = evaluate(lambda inputs: module(*inputs), batches, source.task, output_names=source.program.output_names)
    assert score.value == pytest.approx(stated[f"held_out_{score.name}"], rel=STATED)
