"""An encoder with a decoder as two programs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.parts import encoder_and_decoder
from fxslim.graph.program import Program
from fxslim.graph.verify import verify

WIDTH, WORDS = 8, 11


class Pair(nn.Module):
    """Attention with a dropout that evaluation turns off, and sizes that are read off whatever comes first."""

    def __init__(self, leak: bool = False) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head, self.leak = nn.Linear(WIDTH, WORDS), leak

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> dict[str, Tensor]:
        rows, length = decoder_input_ids.shape[0], input_ids.shape[1]
        states = self.inner(self.table(input_ids)).reshape(rows, length, WIDTH)
        new = self.table(decoder_input_ids) + torch.arange(decoder_input_ids.shape[1]).unsqueeze(-1)
        mask = attention_mask.bool()[:, None].expand(rows, new.shape[1], length)
        mixed = nn.functional.scaled_dot_product_attention(new, states, states, attn_mask=mask)
        if self.leak:
            mixed = mixed + self.table(input_ids).mean(1, keepdim=True)
        return {"logits": self.head(mixed), "encoder_last_hidden_state": states}


def captured(model: nn.Module) -> Program:
    ids = torch.randint(0, WORDS, (2, 5))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids[:, :3].clone()}
    long, short = {0: "batch", 1: "length"}, {0: "batch", 1: "new"}
    shapes: dict[str, Any] = {"input_ids": long, "attention_mask": long, "decoder_input_ids": short}
    return capture(model.eval(), (), given, shapes)


def test_the_parts_compute_what_the_whole_does() -> None:
    program = captured(Pair())
    encoder, decoder = encoder_and_decoder(program)
    for part in (encoder, decoder):
        verify(part)
    assert encoder.outside_names == ("input_ids", "attention_mask") and encoder.output_names == ("last_hidden_state",)
    assert decoder.outside_names == ("encoder_attention_mask", "input_ids", "encoder_hidden_states")
    assert decoder.output_names == ("logits",)
    assert decoder.dynamic["encoder_hidden_states"] == encoder.dynamic["input_ids"] == {0: "batch", 1: "length"}
    assert set(encoder.info) == {"table.weight", "inner.weight", "inner.bias"}
    assert set(decoder.info) == {"table.weight", "head.weight", "head.bias"}
    ids, mask, new = (
        torch.randint(0, WORDS, (3, 7)),
        torch.ones(3, 7, dtype=torch.long),
        torch.randint(0, WORDS, (3, 4)),
    )
    mask[1, 4:] = 0
    logits, states = Evaluator(program).run([ids, mask, new])
    (own,) = Evaluator(encoder).run([ids, mask])
    assert torch.equal(own, states)
    assert torch.equal(Evaluator(decoder).run([mask, new, own])[0], logits)
    assert program.output_names == ("logits", "encoder_last_hidden_state")  # the whole is as it was


def test_a_decoder_that_reads_more_is_refused() -> None:
    with pytest.raises(InputError, match="the decoder reads the encoder's input past its output, 'input_ids'"):
        encoder_and_decoder(captured(Pair(leak=True)))


def test_a_program_without_an_encoder_is_refused() -> None:
    with pytest.raises(InputError, match="it is not two"):
        encoder_and_decoder(capture(nn.Linear(2, 2), (torch.zeros(1, 2),)))
