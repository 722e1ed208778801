"""Evaluation: one number that says how good a model is on held-out data, the same for original and slim."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fxslim.data import Batches
from fxslim.graph.errors import CheckError, InputError
from fxslim.sources import Task

__all__ = ["Run", "Score", "evaluate"]

Run = Callable[[tuple[torch.Tensor, ...]], Sequence[torch.Tensor]]
"""Flat inputs to flat outputs: a program, or a session that serves it."""

_IGNORED = -100  # the label that says: do not count this position


@dataclass(frozen=True)
class Score:
    """A measured quality: `count` says over how many predictions the value is a mean."""

    name: str
    value: float
    higher_is_better: bool
    count: int

    def __str__(self) -> str:
        """The score as a report prints it: `perplexity 12.345 over 1,000 predictions`."""
        return f"{self.name} {self.value:.5g} over {self.count:,} predictions"


def evaluate(run: Run, batches: Batches, task: Task | None, *, output_names: Sequence[str] = ()) -> Score:
    """The perplexity of a causal language model, or the accuracy where the data has labels.

    Perplexity is exp of the mean cross-entropy (nats) over all predicted tokens: each token of a window after its
    first, unless the attention mask hides it. Accuracy is the share of the labels that are the largest logit's index;
    labels of -100 do not count. The logits are the output of that name, else the first.

    Raises:
        InputError: the data cannot score a model of this task.
        CheckError: the model computed NaN or Inf, so that it has no score.
    """
    position = list(output_names).index("logits") if "logits" in output_names else 0
    if task == "causal-lm":
        return _perplexity(run, batches, position)
    if batches.labels is None:
        raise InputError(
            f"a model for {task or 'an unknown task'} is scored by labels, and the data has none",
            at=batches.source,
            remedy="give arrays (.npz or .safetensors) with `labels`",
        )
    return _accuracy(run, batches, batches.labels, position)


@torch.no_grad()
def _perplexity(run: Run, batches: Batches, position: int) -> Score:
    names = batches.input_names
    if "input_ids" not in names:
        raise InputError("perplexity needs an input named `input_ids`", at=batches.source)
    total, count = 0.0, 0
    for number, inputs in enumerate(batches):
        ids = inputs[names.index("input_ids")]
        targets = ids[:, 1:].long()
        if "attention_mask" in names:
            mask = inputs[names.index("attention_mask")]
            targets = targets.masked_fill(mask[:, 1:] == 0, _IGNORED)
        logits = _logits(run, inputs, position, (*ids.shape, -1), f"{batches.source}, batch {number}")[:, :-1]
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum")
        total += float(loss)
        count += int((targets != _IGNORED).sum())
    if not count:
        raise InputError("the data predicts no token", at=batches.source, remedy="give windows of at least 2 tokens")
    return Score("perplexity", _exp(total / count), higher_is_better=False, count=count)


@torch.no_grad()
def _accuracy(run: Run, batches: Batches, labels: Sequence[torch.Tensor], position: int) -> Score:
    hits, count = 0, 0
    for number, (inputs, wanted) in enumerate(zip(batches, labels, strict=True)):
        at = f"{batches.source}, batch {number}"
        if wanted.is_floating_point() or wanted.is_complex():
            raise InputError(f"labels are numbers of classes, not {wanted.dtype}", at=at)
        logits = _logits(run, inputs, position, (*wanted.shape, -1), at)
        counted = wanted != _IGNORED
        hits += int(((logits.argmax(-1) == wanted) & counted).sum())
        count += int(counted.sum())
    if not count:
        raise InputError("the data has no label that counts", at=batches.source)
    return Score("accuracy", hits / count, higher_is_better=True, count=count)


def _logits(run: Run, inputs: tuple[torch.Tensor, ...], position: int, shape: tuple[int, ...], at: str) -> torch.Tensor:
    """The logits of one batch, of the given shape with any number of classes last."""
    logits = run(inputs)[position].detach().cpu()
    if logits.ndim != len(shape) or tuple(logits.shape[:-1]) != shape[:-1]:
        expected = ", ".join((*map(str, shape[:-1]), "classes"))
        raise InputError(f"logits of the shape {list(logits.shape)} instead of [{expected}]", at=at)
    if bad := int((~torch.isfinite(logits)).sum()):
        raise CheckError(f"{bad} of {logits.numel()} logits are NaN or Inf, so the model has no score", at=at)
    return logits


def _exp(mean: float) -> float:
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf
