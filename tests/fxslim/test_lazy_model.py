"""Hugging Face models whose weights stay on disk: captured as those that are loaded are, and nothing read for it."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fxslim.cli import app
from fxslim.graph.axes.groups import analyze
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.placeholder import AbsentTensor, ComposedTensor
from fxslim.graph.stores import FileTensor
from fxslim.opening import prepared
from fxslim.sources import Source, load_model, refuse_bad_weights

_SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 22,
    "max_position_embeddings": 48,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_SMALL, "num_key_value_heads": 2}),
    "tied": ("LlamaForCausalLM", "LlamaConfig", {**_SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 48},
    ),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_SMALL, "ffn_dim": 22, "word_embed_proj_dim": 16}),
    "bert": ("BertForSequenceClassification", "BertConfig", _SMALL),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_SMALL, "num_key_value_heads": 2, "num_local_experts": 4}),
}  # fmt: skip


def save(name: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A model with random weights in several files."""
    import transformers

    model, config, options = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**options))
    made.to(dtype).save_pretrained(path, max_shard_size="4KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: save(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def streamed(places: Callable[[str], Path]) -> Callable[[str], Source]:
    return cache(lambda name: load_model(str(places(name)), stream=True))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Path, int]]:
    """How often each tensor was read from a file."""
    found: Counter[tuple[Path, int]] = Counter()
    read = FileTensor.read

    def counted(self: FileTensor) -> torch.Tensor:
        found[self.path, self.offset] += 1
        return read(self)

    monkeypatch.setattr(FileTensor, "read", counted)
    return found


CAPTURED = [
    name if name != "mixtral" else pytest.param(name, marks=pytest.mark.skipif(
        importlib.metadata.version("transformers") < "5", reason="the experts of transformers 4 depend on data"
    ))
    for name in MODELS
]  # fmt: skip


@pytest.mark.parametrize("name", CAPTURED)
def test_the_program_is_the_one_of_loaded_weights(
    name: str, places: Callable[[str], Path], streamed: Callable[[str], Source]
) -> None:
    loaded, program = load_model(str(places(name))).program, streamed(name).program
    assert program.fingerprint() == loaded.fingerprint()
    assert program.info == loaded.info
    assert program.dynamic == loaded.dynamic
    assert all(torch.equal(a, b) for a, b in zip(program.example_inputs, loaded.example_inputs, strict=True))
    for ours, theirs in zip(
        Evaluator(program).run(program.example_inputs), Evaluator(loaded).run(loaded.example_inputs), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CAPTURED)
def test_every_weight_stays_on_disk_and_buffers_are_computed(name: str, streamed: Callable[[str], Source]) -> None:
    program = streamed(name).program
    for weight in program.info.values():
        on_disk = isinstance(program.weights.entry(weight.name), FileTensor)
        assert on_disk if weight.trainable else weight.persistent or not on_disk, weight.name


def test_nothing_is_read_for_an_analysis(places: Callable[[str], Path], reads: Counter[Any]) -> None:
    source = load_model(str(places("llama")), stream=True)
    assert prepared(source.program).prunable
    assert not reads


def test_tied_weights_are_one(streamed: Callable[[str], Source]) -> None:
    info = streamed("tied").program.info
    assert "lm_head.weight" in info["model.embed_tokens.weight"].aliases


@pytest.mark.skipif(importlib.metadata.version("transformers") < "5", reason="transformers 4 merges no experts")
def test_experts_are_composed_where_the_library_merges_them(streamed: Callable[[str], Source]) -> None:
    weights = streamed("mixtral").program.weights
    composed = [name for name in weights if isinstance(weights.entry(name), ComposedTensor)]
    assert len(composed) == 4  # two of each layer
    for name in composed:
        entry = weights.entry(name)
        assert isinstance(entry, ComposedTensor)
        assert (tuple(weights[name].shape), weights[name].dtype) == (entry.shape, entry.dtype)


def test_the_type_is_that_of_the_files_unless_another_is_asked_for(tmp_path: Path) -> None:
    path = str(save("llama", tmp_path, torch.bfloat16))
    kept, cast = load_model(path, stream=True).program, load_model(path, stream=True, dtype="float32").program
    loaded = load_model(path).program  # float32
    name = "model.layers.0.mlp.up_proj.weight"
    assert kept.weights[name].dtype is torch.bfloat16
    assert torch.equal(cast.weights[name], loaded.weights[name])
    assert cast.weights.entry(name).dtype is torch.float32
    assert cast.fingerprint() == loaded.fingerprint()
    assert kept.fingerprint() == load_model(path, dtype="bfloat16").program.fingerprint()


def test_decoders_with_caches_are_the_same_program(places: Callable[[str], Path]) -> None:
    task = "text-generation"
    ours = load_model(str(places("llama")), stream=True, task=task).program
    theirs = load_model(str(places("llama")), task=task).program
    assert ours.fingerprint() == theirs.fingerprint()
    assert ours.caches == theirs.caches
    assert [v.shape for v in ours.example_inputs] == [v.shape for v in theirs.example_inputs]
    given = theirs.example_inputs
    for a, b in zip(Evaluator(ours).run(given), Evaluator(theirs).run(given), strict=True):
        assert torch.equal(a, b)


def _edit(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrites the model in one file, its weights changed."""
    shards = sorted(path.glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    change(tensors)
    for file in (*shards, path / "model.safetensors.index.json"):
        file.unlink()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), "1 weights are missing from the file: model.norm.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), "have another shape: model.norm.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(16).double()}), "stored in float32, float64"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    path = save("llama", tmp_path)
    _edit(path, change)
    with pytest.raises(InputError, match=said):
        load_model(str(path), stream=True)


def test_an_index_that_names_the_wrong_file_is_refused(tmp_path: Path) -> None:
    path = save("llama", tmp_path)
    index = path / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    other = next(f for f in said["weight_map"].values() if f != said["weight_map"]["model.norm.weight"])
    said["weight_map"]["model.norm.weight"] = other
    index.write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"'model.norm.weight' is in .*, and it is not there"):
        load_model(str(path), stream=True)


def test_weights_that_are_not_finite_are_found_one_by_one(tmp_path: Path) -> None:
    path = save("llama", tmp_path)
    _edit(path, lambda tensors: tensors["model.norm.weight"].fill_(torch.nan))
    source = load_model(str(path), stream=True)
    with pytest.raises(InputError, match="16 of 16 values") as caught:
        refuse_bad_weights(source)
    assert "model.norm.weight" in str(caught.value)


@pytest.mark.slow
def test_a_configuration_alone_is_good_for_an_analysis(places: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((places("tied") / "config.json").read_text())
    source = load_model(str(tmp_path), stream=True)
    known = load_model(str(places("tied")), stream=True)
    assert source.program.fingerprint() == known.program.fingerprint()
    assert [g.name for g in prepared(source.program).prunable] == [g.name for g in prepared(known.program).prunable]
    assert any("no weights" in note for note in source.notes)
    buffers = [n for n, w in source.program.info.items() if not w.persistent]
    assert all(torch.equal(source.program.weights[n], known.program.weights[n]) for n in buffers)
    weight = source.program.weights.entry("model.norm.weight")
    assert isinstance(weight, AbsentTensor)
    with pytest.raises(InputError, match="no weights here"):
        refuse_bad_weights(source)


def test_without_streaming_a_configuration_alone_is_refused(places: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((places("llama") / "config.json").read_text())
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_model(str(tmp_path))


def test_what_is_no_hugging_face_model_cannot_be_streamed() -> None:
    with pytest.raises(InputError, match="leave streaming out"):
        load_model("bundled:digits-resnet", stream=True)


def test_the_command_line_shows_the_same_groups(places: Callable[[str], Path], reads: Counter[Any]) -> None:
    shown = [CliRunner().invoke(app, ["groups", str(places("llama")), "--json", *more]) for more in ([], ["--stream"])]
    assert [result.exit_code for result in shown] == [0, 0]
    assert shown[0].stdout == shown[1].stdout
    assert not reads


def test_groups_are_those_of_loaded_weights(places: Callable[[str], Path], streamed: Callable[[str], Source]) -> None:
    ours, theirs = analyze(streamed("llama").program), analyze(load_model(str(places("llama"))).program)
    assert [str(g) for g in ours.groups] == [str(g) for g in theirs.groups]
