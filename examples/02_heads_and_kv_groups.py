"""Grouped-query attention: the analysis finds that a key-value head and the query heads that share it go together."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fxslim


def llama() -> LlamaForCausalLM:
    """A LLaMA of two layers with random weights: 8 query heads that share 4 key-value heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def main() -> None:
    ids = torch.randint(0, 128, (2, 12))
    dims = {0: "batch", 1: "sequence"}
    program = fxslim.capture(llama(), kwargs={"input_ids": ids}, dynamic_shapes={"input_ids": dims})
    analysis = fxslim.analyze(program)
    for kind in ("key-value heads", "heads", "query-key dims", "neurons"):
        for group in [g for g in analysis.groups if g.kind == kind][:1]:
            print(group)
    q, k = (f"model.layers.0.self_attn.{name}_proj.weight[0]" for name in "qk")
    print(analysis.explain(q, k))

    plan = fxslim.make_plan(analysis, width=0.5, groups=["key-value heads"])
    print(plan)
    proof = fxslim.prove(analysis, plan)
    print(proof)
    assert proof.ok and proof.exact

    slim = fxslim.apply(analysis, plan)
    before, after = (p.info["model.layers.0.self_attn.k_proj.weight"].shape for p in (program, slim))
    print(f"key projections {before} -> {after}; {program.parameters():,} parameters -> {slim.parameters():,}")
    assert after[0] * 2 == before[0]


if __name__ == "__main__":
    main()
