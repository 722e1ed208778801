"""Calibration text that the model writes itself: what it has learned, without any data at hand.

Two tokens begin each window, the rest is sampled; the windows that the model finds least likely are left out. After
"Beware of Calibration Data" (Ji 2024, arXiv 2410.17711), whose length of the prompt, temperature, top-k, top-p,
repetition penalty and share of windows left out these are. Two things differ. The paper's prompts are the first two
tokens of texts of Wikipedia; here no text is at hand, so the first is drawn evenly from the vocabulary, which spreads
the windows, and the second from the model as it is, which makes the pair one that it knows. And every window is written
to its full length, past an end of text, since windows of one length are what calibration takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.inputs import InputSpec
from fxslim.text import inputs_of

__all__ = ["generated_windows"]

PROMPT = 2  # tokens
TEMPERATURE, TOP_K, TOP_P, PENALTY = 0.6, 50, 0.95, 1.2
LEFT_OUT = 0.2  # of the windows, those with the highest perplexity
_AT_ONCE = 16  # windows: the logits of all of them, [windows, tokens, vocabulary], are large

Progress = Callable[[str, int, int], None]


def generated_windows(
    program: Program, specs: tuple[InputSpec, ...], rows: int, window: int, seed: int, progress: Progress | None = None
) -> torch.Tensor:
    """Windows of token ids that the program has sampled: [rows, window] int64.

    Each begins with two tokens, of which the first is drawn evenly from the vocabulary and the second from the model.

    Raises:
        InputError: the program is no causal language model on token ids of any number and length.
    """
    run = _logits_of(program, specs)
    generator = torch.Generator().manual_seed(seed)
    drawn = math.ceil(rows / (1 - LEFT_OUT))
    vocabulary = run(torch.zeros(2, 2, dtype=torch.long)).shape[-1]
    ids = torch.randint(0, vocabulary, (drawn, 1), generator=generator)
    for length in range(1, window):
        if progress is not None:
            progress("tokens written by the model", length, window)
        logits = torch.cat([run(part)[:, -1].float() for part in ids.split(_AT_ONCE)])  # type: ignore[no-untyped-call]
        weights = _weights(ids, logits, sharpened=length >= PROMPT)
        ids = torch.cat([ids, torch.multinomial(weights, 1, generator=generator)], 1)
    surprises = torch.cat([_surprise(run(part), part) for part in ids.split(_AT_ONCE)])  # type: ignore[no-untyped-call]
    return ids[surprises.argsort()[:rows].sort().values]


def _logits_of(program: Program, specs: tuple[InputSpec, ...]) -> Callable[[torch.Tensor], torch.Tensor]:
    names = [s.name for s in specs]
    fixed = any(n is not None for s in specs for n in s.shape[: 1 if s.cache else 2])
    if "input_ids" not in names or "logits" not in program.output_names or fixed:
        raise InputError(
            "only a causal language model on `input_ids` of any number and length can write its own calibration text",
            remedy="give a file of text",
        )
    index, evaluator = list(program.output_names).index("logits"), Evaluator(program)

    def run(ids: torch.Tensor) -> torch.Tensor:
        # One token more than asked for: a length of one is a case of its own for the exporter.
        padded = ids if ids.shape[1] > 1 else torch.cat([ids, ids], 1)
        arrays = inputs_of(padded, specs)
        logits: Any = evaluator.run([arrays[s.name] for s in specs])[index]
        return logits[:, : ids.shape[1]]  # type: ignore[no-any-return]

    return run


def _weights(ids: torch.Tensor, logits: torch.Tensor, *, sharpened: bool) -> torch.Tensor:
    """The weights by which the next token is drawn: [rows, vocabulary]."""
    if sharpened:
        try:
            from transformers.generation.logits_process import (
                RepetitionPenaltyLogitsProcessor,
                TemperatureLogitsWarper,
                TopKLogitsWarper,
                TopPLogitsWarper,
            )
        except ImportError as error:
            raise InputError(
                "a model's own text is drawn by what transformers has, which is not installed",
                remedy='pip install "fxslim[hf]", or give a file of text',
            ) from error
        steps = (
            RepetitionPenaltyLogitsProcessor(PENALTY), TemperatureLogitsWarper(TEMPERATURE),
            TopKLogitsWarper(min(TOP_K, logits.shape[-1])), TopPLogitsWarper(TOP_P),
        )  # fmt: skip
        for step in steps:
            logits = step(ids, logits)
    return logits.softmax(-1)


def _surprise(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of each window's tokens: [rows]."""
    chances = logits[:, :-1].float().log_softmax(-1)
    return -chances.gather(-1, ids[:, 1:, None]).mean((1, 2))
