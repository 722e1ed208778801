"""Encoders with decoders in optimum: two files of one slim program, and tokens to compare.

Neither file has a cache: optimum's classes load them with `use_cache=False`, and run the decoder over all tokens at
each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxslim.export import check_onnx, export_onnx
from fxslim.graph.parts import encoder_and_decoder
from fxslim.graph.program import Program

__all__ = ["PAIRS", "export_parts", "same_translations"]

PAIRS = "ORTModelForSeq2SeqLM"
_PARTS = ("encoder_model.onnx", "decoder_model.onnx")
_START = 0  # the id to begin with: any will do


def export_parts(program: Program, directory: Path, opset: int | None) -> list[str]:
    """Writes `encoder_model.onnx` and `decoder_model.onnx`; what their checks on the CPU found wrong.

    Raises:
        InputError: the program cannot be cut in two.
    """
    failures = []
    for part, name in zip(encoder_and_decoder(program), _PARTS, strict=True):
        export_onnx(part, directory / name, opset=opset)
        failures += [f"{name}: {said}" for said in check_onnx(part, directory / name, provider="cpu").failures]
    return failures


def same_translations(model: Any, given: Mapping[str, Tensor], new: int, settings: Any) -> bool:
    """Whether optimum's `generate` returns what the two sessions give where they are run by hand, greedily."""
    ids, mask = given["input_ids"], torch.ones_like(given["input_ids"])
    mask[1, -2:] = 0
    (states,) = model.encoder.session.run(None, _only(model.encoder.session, input_ids=ids, attention_mask=mask))
    tokens = torch.full((len(ids), 1), _START)
    for _ in range(new):
        taken = _only(
            model.decoder.session, input_ids=tokens, encoder_attention_mask=mask,
            encoder_hidden_states=torch.from_numpy(states),
        )  # fmt: skip
        (logits,) = model.decoder.session.run(["logits"], taken)
        tokens = torch.cat([tokens, torch.from_numpy(logits)[:, -1:].argmax(-1)], 1)
    plain = settings(
        max_new_tokens=new, do_sample=False, num_beams=1, pad_token_id=_START, decoder_start_token_id=_START,
        use_cache=False,
    )  # fmt: skip
    model.generation_config = plain  # not that of the directory, which may end early or forbid tokens
    return torch.equal(model.generate(input_ids=ids, attention_mask=mask, generation_config=plain), tokens)


def _only(session: Any, **values: Tensor) -> dict[str, Any]:
    """What the session takes of these values."""
    return {i.name: values[i.name].numpy() for i in session.get_inputs()}
