"""Configurations that describe caches, without a loader: which are tried, and in which order."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, OPTConfig

from fxslim.loader_config import changes_of, neurons, readable_configs
from fxslim.passes.plan import Cut, Plan


def llama() -> LlamaConfig:
    return LlamaConfig(hidden_size=16, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2)


def tried(config: Any, *caches: tuple[int, int]) -> list[dict[str, Any]]:
    return list(readable_configs(config, caches))


def test_whole_caches_need_nothing() -> None:
    assert tried(llama(), (2, 4), (2, 4))[0] == {}


def test_unequal_caches_have_no_configuration() -> None:
    assert tried(llama(), (2, 4), (1, 4)) == [{}]


def test_heads_and_width_come_before_a_hidden_size_made_of_them() -> None:
    half = {"num_attention_heads": 2, "num_key_value_heads": 1}
    found = tried(llama(), (1, 4))
    assert found[:3] == [{}, half, {**half, "hidden_size": 8}]


def test_fields_are_called_as_in_the_file() -> None:
    assert tried(GPT2Config(n_embd=16, n_head=4), (2, 4))[1:3] == [{"n_head": 2}, {"n_head": 2, "n_embd": 8}]


@pytest.mark.parametrize(("counts", "known"), [((16, 16), {"ffn_dim": 16}), ((16, 8), {}), ((16,), {})])
def test_neurons_are_said_where_all_layers_have_equally_many(counts: tuple[int, ...], known: dict[str, int]) -> None:
    keep = [tuple(range(count)) for count in counts]
    cuts = tuple(
        Cut(f"g{i}", "neurons", 32, count, (), kept) for i, (count, kept) in enumerate(zip(counts, keep, strict=True))
    )
    config = OPTConfig(hidden_size=16, num_attention_heads=4, ffn_dim=32, num_hidden_layers=2)
    assert neurons(config, Plan("", cuts)) == known


def test_changes_have_both_values() -> None:
    assert changes_of({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == {"b": [2, 3], "c": [None, 4]}
