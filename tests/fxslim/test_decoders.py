"""Decoders with their caches as inputs and outputs, from a directory to tokens: names, shapes, generation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxslim.api import compress, prove
from fxslim.data import load_batches
from fxslim.evaluate import evaluate
from fxslim.export import check_onnx, create_session, export_onnx
from fxslim.generation import decoder_of_program, decoder_of_session, generate_greedily
from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.caches import refitted_caches
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.graph.serialize import load, save
from fxslim.inputs import input_specs
from fxslim.passes.prepare import prepare
from fxslim.sources import Source, load_model
from fxslim.text import inputs_of

CLOSE = 1e-5  # float32, sums in another order
TASK = "text-generation"
NEW = 6  # tokens that are generated

_SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 22,
    "max_position_embeddings": 48,
}  # fmt: skip
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "opt": ("OPTForCausalLM", "OPTConfig", {**_SMALL, "ffn_dim": 22, "word_embed_proj_dim": 16}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_SMALL, "num_key_value_heads": 2}),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 48},
    ),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**_SMALL, "rotary_pct": 0.5}),
}  # fmt: skip


def built(name: str) -> nn.Module:
    """A model with random weights, large enough that no two logits are nearly the same."""
    import transformers

    model, config, options = DECODERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """Each decoder from a directory of its own, captured once."""

    @cache
    def source(name: str) -> Source:
        path = tmp_path_factory.mktemp(name)
        built(name).save_pretrained(path)  # type: ignore[operator]
        return load_model(str(path), task=TASK)

    return source


@pytest.fixture(scope="module")
def slimmed(sources: Callable[[str], Source]) -> Callable[[str], tuple[Analysis, Any, Any]]:
    """The analysis, a plan that cuts heads, dimensions of keys and values, and neurons, and what it makes."""

    @cache
    def slim(name: str) -> tuple[Analysis, Any, Any]:
        program = sources(name).program
        analysis = prepare(program, ["fold-constants", "split-fused"])
        data = [tuple(batch.values()) for batch in texts(program)]
        plan, made = compress(
            analysis, width=0.6, importance="magnitude", subspace=True, restore="least-squares", calibration=data
        )
        return analysis, plan, made

    return slim


def texts(program: Program) -> list[dict[str, Tensor]]:
    """Windows of ids with empty caches."""
    generator = torch.Generator().manual_seed(3)
    windows = [torch.randint(0, 50, (4, 12), generator=generator) for _ in range(3)]
    return [inputs_of(ids, input_specs(program)) for ids in windows]


@pytest.mark.parametrize("name", DECODERS)
def test_names_and_dimensions_are_those_of_optimum(sources: Callable[[str], Source], name: str) -> None:
    program = sources(name).program
    caches = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    assert program.outside_names == (
        "input_ids", "attention_mask", "position_ids", *(f"past_key_values.{c}" for c in caches)
    )  # fmt: skip
    assert program.output_names == ("logits", *(f"present.{c}" for c in caches))
    both = "past_sequence_length + sequence_length"
    assert program.dynamic["attention_mask"] == {0: "batch_size", 1: both}
    assert program.dynamic["position_ids"] == program.dynamic["input_ids"] == {0: "batch_size", 1: "sequence_length"}
    assert program.dynamic["past_key_values_1_value"] == {0: "batch_size", 2: "past_sequence_length"}
    assert program.caches is not None and len(program.caches) == 4
    known = {n for n, _ in built(name).named_parameters(remove_duplicate=False)}
    assert {w for w, info in program.info.items() if info.trainable} <= known


@pytest.mark.parametrize("name", DECODERS)
def test_the_program_generates_what_the_model_does(sources: Callable[[str], Source], name: str) -> None:
    ids = torch.randint(2, 50, (2, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # the second row is shorter
    got = generate_greedily(decoder_of_program(sources(name).program), ids, NEW, attention_mask=mask)
    model: Any = built(name)
    wanted = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=1,
        eos_token_id=None,
    )  # fmt: skip
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("name", DECODERS)
def test_slim_decoders_are_proven_and_narrower(slimmed: Callable[[str], Any], name: str) -> None:
    analysis, plan, made = slimmed(name)
    proof = prove(made.analysis, plan)
    assert proof.ok and proof.effect > 0
    widths = {
        n: (tuple(t.shape[1::2])) for n, t in zip(made.program.input_names, made.program.example_inputs, strict=True)
    }
    before = {
        n: tuple(t.shape[1::2])
        for n, t in zip(analysis.program.input_names, analysis.program.example_inputs, strict=True)
    }
    for cache_name in analysis.program.caches:
        assert widths[cache_name] < before[cache_name]
    assert any(group.startswith(("model", "gpt_neox", "transformer")) for group in plan.subspaces)


@pytest.mark.parametrize("name", DECODERS)
def test_onnx_runtime_generates_what_the_slim_program_does(
    slimmed: Callable[[str], Any], name: str, tmp_path: Path
) -> None:
    program = slimmed(name)[2].program
    path = tmp_path / "model.onnx"
    export_onnx(program, path)
    check = check_onnx(program, path, original=slimmed(name)[0].program, provider="cpu")
    assert check.ok, check.failures
    sizes = [(s.sizes["sequence_length"], s.sizes["past_sequence_length"]) for s in check.shapes]
    assert any(past == 0 for _, past in sizes) and any(new == 1 and past > 1 for new, past in sizes)
    logits = next(q for q in check.quality if q.name == "logits")
    assert logits.not_comparable is None and logits.relative > 0
    session = create_session(path, "CPUExecutionProvider")
    here, there = decoder_of_program(program), decoder_of_session(session)
    assert here.inputs == there.inputs and here.caches == there.caches
    ids = torch.randint(2, 50, (3, 4), generator=torch.Generator().manual_seed(2))
    wanted = generate_greedily(here, ids, NEW)
    assert wanted.shape == (3, 4 + NEW)
    assert torch.equal(generate_greedily(there, ids, NEW), wanted)


@pytest.mark.slow
def test_the_bundled_model_generates(tmp_path: Path) -> None:
    source = load_model("bundled:opt-python", task=TASK)
    _, made = compress(source.program, width=0.75, importance="magnitude", groups=["heads", "neurons"])
    export_onnx(made.program, tmp_path / "model.onnx")
    ids = source.tokenizer("def add(a, b):\n    return", return_tensors="pt")["input_ids"]
    wanted = generate_greedily(decoder_of_program(made.program), ids, 12)
    session = create_session(tmp_path / "model.onnx", "CPUExecutionProvider")
    assert torch.equal(generate_greedily(decoder_of_session(session), ids, 12), wanted)


def test_a_saved_slim_decoder_is_one_again(slimmed: Callable[[str], Any], tmp_path: Path) -> None:
    program = slimmed("llama")[2].program
    again = load(save(program, tmp_path / "slim"))
    assert again.outside_names == program.outside_names and again.caches == program.caches
    ids = torch.randint(2, 50, (2, 4))
    assert torch.equal(
        generate_greedily(decoder_of_program(again), ids, 3), generate_greedily(decoder_of_program(program), ids, 3)
    )


def test_layers_may_have_other_heads(sources: Callable[[str], Source]) -> None:
    """One head fewer in the second layer alone: its caches are smaller, and generation takes it as it is."""
    analysis = analyze(sources("opt").program)
    (heads,) = [g.name for g in analysis.prunable if g.kind == "heads" and ".layers.1." in g.name]
    _, made = compress(analysis, width=0.75, importance="magnitude", groups=[heads])
    shapes = {n: tuple(t.shape) for n, t in decoder_of_program(made.program).empty.items()}
    assert shapes["past_key_values.0.key"] == (0, 4, 0, 4) and shapes["past_key_values.1.key"] == (0, 3, 0, 4)
    assert generate_greedily(decoder_of_program(made.program), torch.tensor([[3, 5]]), 4).shape == (1, 6)


def test_text_starts_with_empty_caches(sources: Callable[[str], Source]) -> None:
    program = sources("llama").program
    (batch, *_) = texts(program)
    assert [tuple(batch[n].shape) for n in program.caches or ()] == [(4, 2, 0, 4)] * 4
    batches = load_batches([tuple(b.values()) for b in texts(program)], program)
    score = evaluate(Evaluator(program).run, batches, "causal-lm", output_names=program.output_names)
    with torch.no_grad():
        logits = built("llama")(input_ids=batch["input_ids"]).logits
    torch.testing.assert_close(Evaluator(program).run(list(batch.values()))[0], logits, rtol=CLOSE, atol=CLOSE)
    assert score.count == 3 * 4 * 11


def test_a_mask_of_another_length_is_refused(sources: Callable[[str], Source]) -> None:
    program = sources("llama").program
    batch = dict(texts(program)[0])
    batch["attention_mask"] = batch["attention_mask"][:, :-1]
    with pytest.raises(InputError, match=r"past_sequence_length \+ sequence_length is 11, not 12"):
        load_batches([tuple(batch.values())], program)


def test_only_empty_caches_fit_other_widths(slimmed: Callable[[str], Any]) -> None:
    analysis, _, made = slimmed("llama")
    batch = list(texts(analysis.program)[0].values())
    own = refitted_caches(made.program, batch)
    assert [t.shape for t in own[:3]] == [t.shape for t in batch[:3]]
    assert all(a.shape[1:] != b.shape[1:] for a, b in zip(own[3:], batch[3:], strict=True))
    batch[3] = torch.ones(4, 2, 5, 4)
    with pytest.raises(InputError, match="holds something of the shape"):
        refitted_caches(made.program, batch)


def test_generation_ends(sources: Callable[[str], Source]) -> None:
    decoder = decoder_of_program(sources("opt").program)
    ids = torch.randint(2, 50, (2, 5), generator=torch.Generator().manual_seed(1))
    free = generate_greedily(decoder, ids, NEW)
    end = int(free[0, 5])
    stopped = generate_greedily(decoder, ids, NEW, end=end)
    assert bool((stopped[0, 5:] == end).all())
    assert torch.equal(stopped[1, : stopped.shape[1]], free[1, : stopped.shape[1]]) or end in stopped[1]
    assert generate_greedily(decoder, ids[:1], NEW, end=end).shape == (1, 6)
    with pytest.raises(InputError, match="ids"):
        generate_greedily(decoder, ids[:, :0], NEW)


def test_generation_needs_caches() -> None:
    with pytest.raises(InputError, match="--task text-generation"):
        decoder_of_program(load_model("bundled:opt-python").program)


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        ("BertForMaskedLM", "BertConfig", "its forward pass has no argument"),
        ("T5ForConditionalGeneration", "T5Config", "an encoder with a decoder"),
        ("MambaForCausalLM", "MambaConfig", "cannot be called with a key-value cache"),
    ],
)
def test_what_keeps_no_keys_and_values_is_refused(model: str, config: str, said: str, tmp_path: Path) -> None:
    import transformers

    options = {"BertConfig": _SMALL, "MambaConfig": {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1}}
    t5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 22, "num_layers": 1, "num_heads": 4}
    made = getattr(transformers, model)(getattr(transformers, config)(**options.get(config, t5)))
    made.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=said) as caught:
        load_model(str(tmp_path), task=TASK)
    assert "leave --task out" in str(caught.value)


@pytest.mark.parametrize("model", ["bundled:digits-resnet", "a.b:c", "model.pt2"])
def test_tasks_are_for_language_models(model: str) -> None:
    with pytest.raises(InputError, match="is for language models of Hugging Face"):
        load_model(model, task=TASK)


def test_tasks_have_names() -> None:
    with pytest.raises(InputError, match="unknown task 'chess'"):
        load_model("bundled:opt-python", task="chess")
