"""Calibration text that a model writes itself."""

from __future__ import annotations

import sys

import pytest
import torch

from fxslim import generated
from fxslim.data import load_batches
from fxslim.generated import generated_windows
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.inputs import input_specs
from fxslim.opening import open_model

ROWS, WINDOW = 8, 14


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    program = open_model("bundled:opt-python").program
    return generated_windows(program, input_specs(program), ROWS, WINDOW, seed=3)


def surprise(windows: torch.Tensor) -> float:
    program = open_model("bundled:opt-python").program
    inputs = [windows if s.name == "input_ids" else torch.ones_like(windows) for s in input_specs(program)]
    logits = Evaluator(program).run(inputs)[0]
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, windows[:, 1:, None])
    return -float(chosen.mean())


def test_the_model_finds_its_own_text_likely(windows: torch.Tensor) -> None:
    assert windows.shape == (ROWS, WINDOW) and windows.dtype == torch.long
    noise = torch.randint(0, int(windows.max()) + 1, (ROWS, WINDOW), generator=torch.Generator().manual_seed(0))
    assert surprise(windows) < 0.6 * surprise(noise)
    assert len({tuple(row) for row in windows.tolist()}) == ROWS, "no window is written twice"


def test_the_seed_decides(windows: torch.Tensor) -> None:
    program = open_model("bundled:opt-python").program
    specs = input_specs(program)
    assert torch.equal(generated_windows(program, specs, ROWS, WINDOW, seed=3), windows)
    assert not torch.equal(generated_windows(program, specs, ROWS, WINDOW, seed=4), windows)


def test_the_least_likely_windows_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    program = open_model("bundled:opt-python").program
    seen: list[torch.Tensor] = []

    def watched(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        seen.append(result := original(logits, ids))
        return result

    original = generated._surprise
    monkeypatch.setattr(generated, "_surprise", watched)
    kept = generated_windows(program, input_specs(program), ROWS, WINDOW, seed=3)
    (scores,) = seen
    assert len(scores) == ROWS / 0.8 and surprise(kept) < float(scores.mean())


def test_exactly_the_share_of_highest_perplexity_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 %, in whatever order they were written, and over all portions in which they are judged."""
    program = open_model("bundled:opt-python").program
    rows, drawn, kept_order = 20, 25, torch.randperm(25, generator=torch.Generator().manual_seed(1))
    judged: list[torch.Tensor] = []

    def scored(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        start = sum(map(len, judged))
        judged.append(ids)
        return kept_order[start : start + len(ids)].float()

    monkeypatch.setattr(generated, "_surprise", scored)
    kept = generated_windows(program, input_specs(program), rows, 6, seed=3)
    written = torch.cat(judged)
    assert len(judged) > 1 and len(written) == drawn
    assert torch.equal(kept, written[kept_order < rows])


def test_perplexity_is_that_of_the_program() -> None:
    program = open_model("bundled:opt-python").program
    ids = torch.randint(0, 100, (1, 9), generator=torch.Generator().manual_seed(0))
    logits = Evaluator(program).run(
        [ids if s.name == "input_ids" else torch.ones_like(ids) for s in input_specs(program)]
    )
    expected = torch.nn.functional.cross_entropy(logits[0][0, :-1], ids[0, 1:])
    torch.testing.assert_close(generated._surprise(logits[0], ids)[0], expected)


def test_sampling_is_sharpened_behind_the_prompt() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    ids = torch.tensor([[0, 1]])
    assert torch.allclose(generated._weights(ids, logits, sharpened=False), logits.softmax(-1))
    punished = torch.tensor([[2.0 / 1.2, 1.0 / 1.2, 0.0, -9.0]]) / 0.6
    expected = punished.softmax(-1)
    expected[:, 2:] = 0  # the two others hold more than 95 %
    got = generated._weights(ids, logits, sharpened=True)
    assert torch.allclose(got, expected / expected.sum(), atol=1e-6)


def test_it_stands_in_the_place_of_a_file() -> None:
    source = open_model("bundled:opt-python")
    batches = load_batches("self", source, limit=4, window=10, seed=1)
    assert batches.rows == 4 and batches.source == "self" and "that the model wrote with seed 1" in batches.description
    again = load_batches("self", source, limit=4, window=10, seed=1)
    assert batches.sha256 == again.sha256


def test_other_models_cannot_write() -> None:
    with pytest.raises(InputError, match="write its own calibration text"):
        load_batches("self", open_model("bundled:digits-resnet"))


def test_without_transformers_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = open_model("bundled:opt-python").program
    monkeypatch.setitem(sys.modules, "transformers.generation.logits_process", None)
    with pytest.raises(InputError, match=r"not installed(?s:.*)fxslim\[hf\]"):
        generated_windows(program, input_specs(program), 2, WINDOW, seed=3)
