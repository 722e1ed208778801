"""Model sources: every way to name a model, and every way in which that fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import fxslim
from fxslim.graph.errors import InputError
from fxslim.sources import BUNDLED, Source, load_model, refuse_bad_weights


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.linear(x))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(directory: Path, change: Any) -> None:
    path = directory / "model.safetensors"
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# Bundled models


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model_comes_with_its_data(name: str) -> None:
    source = load_model(f"bundled:{name}")
    assert source.name == name
    assert source.calibration is not None and source.calibration.is_file()
    assert source.evaluation is not None and source.evaluation.is_file()
    assert (source.directory / "model.safetensors").stat().st_size <= 4_000_000
    assert not source.module.training
    assert all(p.dtype == torch.float32 for p in source.module.parameters())


def test_the_tokenizer_of_the_bundled_language_model_returns_what_the_model_takes() -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(fxslim.__file__).parent / "models" / "opt-python")
    assert set(tokenizer("def f():")) == {"input_ids", "attention_mask"}


def test_an_unknown_bundled_model_is_refused_with_the_choice() -> None:
    with pytest.raises(InputError, match="opt-python, digits-resnet"):
        load_model("bundled:nothing")


def test_the_program_of_the_bundled_images_has_a_dynamic_batch() -> None:
    program = load_model("bundled:digits-resnet").program
    assert program.dynamic == {"x": {0: "batch"}}
    assert program.source == "digits-resnet"


# Hugging Face


def test_a_directory_gives_inputs_tokenizer_and_task(pristine_opt: Path) -> None:
    source = load_model(str(pristine_opt))
    assert source.task == "causal-lm"
    assert source.max_positions == 32
    assert source.tokenizer("the fox")["input_ids"]
    assert not source.module.config.use_cache
    assert {f.name for f in source.companions} >= {"config.json", "tokenizer.json"}
    assert not any(f.suffix == ".safetensors" for f in source.companions)
    dims = {0: "batch_size", 1: "sequence_length"}
    assert source.program.dynamic == {"input_ids": dims, "attention_mask": dims}
    assert source.program.output_names == ("logits",)


def test_the_type_is_what_was_asked_for(pristine_opt: Path) -> None:
    source = load_model(str(pristine_opt), dtype="float64")
    assert {p.dtype for p in source.module.parameters()} == {torch.float64}
    with pytest.raises(InputError, match="int64"):
        load_model(str(pristine_opt), dtype="int64")


def test_segments_are_an_input_where_there_are_several(tmp_path: Path) -> None:
    for types in (2, 1):
        config = tiny_bert()
        config.type_vocab_size = types
        BertModel(config).save_pretrained(tmp_path)
        kwargs = load_model(str(tmp_path)).kwargs
        assert ("token_type_ids" in kwargs) is (types == 2)
        if types == 2:
            assert kwargs["token_type_ids"].unique().tolist() == [0, 1]


def test_an_encoder_decoder_has_a_target_sequence(tmp_path: Path) -> None:
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    source = load_model(str(tmp_path))
    assert source.task == "seq2seq"
    assert source.dynamic_shapes["decoder_input_ids"] == {0: "batch_size", 1: "decoder_sequence_length"}
    outputs = source.module(**source.kwargs)
    assert outputs.logits.shape == (2, 20, 50)


def test_a_vision_model_takes_images_of_its_size(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    source = load_model(str(tmp_path))
    assert source.task == "image-classification"
    assert source.kwargs["pixel_values"].shape == (2, 3, 8, 8)
    assert source.program.dynamic == {"pixel_values": {0: "batch_size"}}


def tiny_bert() -> BertConfig:
    return BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def test_a_model_without_architectures_is_loaded_bare(tmp_path: Path) -> None:
    BertModel(tiny_bert()).save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=None)
    source = load_model(str(tmp_path))
    assert type(source.module) is BertModel
    assert source.task == "feature-extraction"
    assert source.tokenizer is None


def test_weights_of_another_head_are_noted(tmp_path: Path) -> None:
    BertForMaskedLM(tiny_bert()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda t: t.update(stray=torch.ones(2)))
    source = load_model(str(tmp_path))
    assert source.task == "masked-lm"
    assert any("1 weights of the file" in note for note in source.notes)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "a/b/c", ""])
def test_a_missing_directory_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no such model directory"):
        load_model(name)


def test_a_hub_id_without_network_is_refused_clearly() -> None:
    with pytest.raises(InputError, match="cannot be fetched from the hub"):
        load_model("some-owner/some-model-that-is-nowhere")


def test_transformers_is_optional(pristine_opt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install fxslim\[hf\]"):
        load_model(str(pristine_opt))


def test_a_missing_configuration_is_refused(tiny_opt: Path) -> None:
    tiny_opt.joinpath("config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        load_model(str(tiny_opt))


@pytest.mark.parametrize("text", ["{", "[]", '"opt"'])
def test_a_corrupt_configuration_is_refused(tiny_opt: Path, text: str) -> None:
    tiny_opt.joinpath("config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(str(tiny_opt))


def test_missing_weights_are_refused(tiny_opt: Path) -> None:
    tiny_opt.joinpath("model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_model(str(tiny_opt))


def test_pickled_weights_are_refused_with_the_way_out(tiny_opt: Path) -> None:
    tiny_opt.joinpath("model.safetensors").rename(tiny_opt / "pytorch_model.bin")
    with pytest.raises(InputError, match="safe_serialization") as caught:
        load_model(str(tiny_opt))
    assert "pytorch_model.bin" in str(caught.value)


def test_a_missing_shard_is_refused_by_name(tiny_opt: Path) -> None:
    tiny_opt.joinpath("model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    tiny_opt.joinpath("model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="model-00001-of-00001"):
        load_model(str(tiny_opt))


@pytest.mark.parametrize("kept", [0, 4, 200, -16])
def test_cut_off_weights_are_refused(tiny_opt: Path, kept: int) -> None:
    file = tiny_opt / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="damaged or cut off"):
        load_model(str(tiny_opt))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name_and_count(tiny_opt: Path, value: float) -> None:
    name = "model.decoder.layers.0.fc1.weight"
    edit_weights(tiny_opt, lambda t: t[name].view(-1)[:3].fill_(value))
    with pytest.raises(InputError, match="3 of 512") as caught:
        load_model(str(tiny_opt))
    assert name in str(caught.value)


def test_missing_weights_are_not_made_up(tiny_opt: Path) -> None:
    edit_weights(tiny_opt, lambda t: t.pop("model.decoder.layers.0.fc1.weight"))
    with pytest.raises(InputError, match="1 weights are missing") as caught:
        load_model(str(tiny_opt))
    assert "fc1.weight" in str(caught.value)


def test_weights_of_another_shape_are_refused(tiny_opt: Path) -> None:
    edit_config(tiny_opt, ffn_dim=64)
    with pytest.raises(InputError, match="opt"):
        load_model(str(tiny_opt))


@pytest.mark.parametrize("name", ["NothingForCausalLM", "logging", "OPTConfig"])
def test_an_unknown_architecture_is_refused(tiny_opt: Path, name: str) -> None:
    edit_config(tiny_opt, architectures=[name])
    with pytest.raises(InputError, match="unknown to transformers"):
        load_model(str(tiny_opt))


def test_code_that_comes_with_a_model_needs_trust(tiny_opt: Path) -> None:
    edit_config(tiny_opt, architectures=["Custom"], auto_map={"AutoModelForCausalLM": "code.Custom"})
    with pytest.raises(InputError, match="--trust-remote-code"):
        load_model(str(tiny_opt))


@pytest.mark.parametrize(
    "setting", [{"_attn_implementation_internal": "owner/kernel"}, {"part": {"trust_remote_code": True}}]
)
def test_a_configuration_that_asks_for_code_is_refused(tiny_opt: Path, setting: dict[str, Any]) -> None:
    edit_config(tiny_opt, **setting)
    with pytest.raises(InputError, match="asks for code"):
        load_model(str(tiny_opt))


def test_a_damaged_tokenizer_is_refused(tiny_opt: Path) -> None:
    tiny_opt.joinpath("tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer cannot be loaded"):
        load_model(str(tiny_opt))


# Factories

FACTORIES = """
import torch
from torch import nn
from fxslim.sources import Source

def four(): return nn.Linear(4, 4), (torch.zeros(2, 4),), None, ({0: "batch"},)
def source(): return Source("mine", nn.Linear(4, 4), (torch.zeros(2, 4),), task="classification")
def bare(): return nn.Linear(4, 4)
def three(): return nn.Linear(4, 4), (torch.zeros(2, 4),), None
def listed(): return nn.Linear(4, 4), [torch.zeros(2, 4)], None, None
def broken(): raise RuntimeError("no disk")
def poisoned():
    layer = nn.Linear(4, 4)
    layer.bias.data[1] = float("nan")
    return layer, (torch.zeros(2, 4),), None, None
value = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    name = f"factories_{tmp_path.name.replace('-', '_')}"
    tmp_path.joinpath(f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_factory_gives_module_and_inputs(factories: str) -> None:
    source = load_model(f"{factories}:four", dtype="float64")
    assert source.args[0].dtype == torch.float64
    assert list(source.program.dynamic.values()) == [{0: "batch"}]


def test_a_factory_may_give_a_source(factories: str) -> None:
    assert load_model(f"{factories}:source").task == "classification"


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("bare", "returned Linear"),
        ("three", r"returned \(Linear, tuple, NoneType\)"),
        ("listed", r"returned \(Linear, list, NoneType, NoneType\)"),
        ("broken", "RuntimeError: no disk"),
        ("value", "no function 'value'"),
        ("nothing", "no function 'nothing'"),
        ("poisoned", "1 of 4 values"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused(factories: str, factory: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(f"{factories}:{factory}")


def test_a_module_that_cannot_be_imported_is_refused() -> None:
    before = list(sys.path)
    with pytest.raises(InputError, match="cannot be imported"):
        load_model("no_such_package_anywhere.models:make")
    assert sys.path == before


# Exported programs


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "twice.pt2"
    torch.export.save(torch.export.export(Twice().eval(), (torch.zeros(2, 4),)), path)
    return path


def test_an_exported_program_is_not_loaded_without_trust(exported: Path) -> None:
    with pytest.raises(InputError, match="can run any code"):
        load_model(str(exported))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_trusted_exported_program_is_captured(exported: Path) -> None:
    source = load_model(str(exported), trust_pt2=True)
    assert source.name == "twice"
    x = torch.randn(2, 4)
    (y,) = source.program.flat_module()(x)
    torch.testing.assert_close(y, source.module.module()(x))
    with pytest.raises(InputError, match="leave dtype out"):
        load_model(str(exported), trust_pt2=True, dtype="float16")


def test_a_missing_or_damaged_exported_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_model(str(tmp_path / "model.pt2"), trust_pt2=True)
    tmp_path.joinpath("model.pt2").write_bytes(b"not a program")
    with pytest.raises(InputError, match="cannot be read as an exported program"):
        load_model(str(tmp_path / "model.pt2"), trust_pt2=True)


# Weights


def test_masks_may_hold_minus_infinity_and_nothing_else_may() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    refuse_bad_weights(Source("masked", module))
    module.mask[0] = torch.inf
    with pytest.raises(InputError, match="mask"):
        refuse_bad_weights(Source("masked", module))


def test_weights_without_data_are_refused() -> None:
    with pytest.raises(InputError, match="meta device"):
        refuse_bad_weights(Source("empty", nn.Linear(2, 2, device="meta")))
