"""Results in optimum's loaders and in ours. What needs optimum is skipped without it: `make test` runs this file again
with `PYTHONPATH=build/optimum`."""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from fxslim.api import compress
from fxslim.export import export_onnx
from fxslim.generation import decoder_of_program, generate_greedily
from fxslim.graph.axes.groups import analyze
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.loader_check import _failures, check_loader, loader_for
from fxslim.loaders import require_optimum
from fxslim.passes.plan import Plan
from fxslim.sources import load_model
from tests.fxslim.test_cli import run

NEW = 6  # tokens that are generated
PADDING = 1  # the id of padding

optimum = pytest.mark.skipif(
    find_spec("optimum") is None, reason="optimum does not go with this transformers: see `make test`"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # of optimum and of what it imports

TEXT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 22,
    "max_position_embeddings": 48,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {"ffn_dim": 22, "word_embed_proj_dim": 16, **{n: TEXT[n] for n in TEXT if n != "intermediate_size"}},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**TEXT, "num_key_value_heads": 2}),
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 22, "num_layers": 1, "num_heads": 4,
         "decoder_start_token_id": 0},
    ),
    "vit": (
        "ViTForImageClassification", "ViTConfig",
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 22, "image_size": 8,
         "patch_size": 4},
    ),
}  # fmt: skip
DECODERS = ("opt", "llama")


class Results:
    """Directories with a model, an ONNX file of what a plan leaves of it, and the program."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.program = cache(self._program)
        self._made = cache(self._cut)

    def _program(self, name: str) -> Program:
        import transformers

        model, config, options = MODELS[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
            with torch.no_grad():
                for parameter in made.parameters():  # so that no two logits are nearly the same
                    parameter.add_(0.3 * torch.randn_like(parameter))
        made.save_pretrained(self.root / name)
        return load_model(str(self.root / name), task="text-generation" if name in DECODERS else None).program

    def cut(self, name: str, out: Path, *groups: str) -> tuple[Program, Plan]:
        """The slim program, as `model.onnx` beside the configuration in `out`, and its plan: half of some groups."""
        program, plan, file = self._made(name, groups)
        for path in (file, *(self.root / name).glob("*.json")):
            shutil.copyfile(path, out / path.name)
        return program, plan

    def _cut(self, name: str, groups: tuple[str, ...]) -> tuple[Program, Plan, Path]:
        plan, made = compress(analyze(self.program(name)), width=0.5, importance="magnitude", groups=groups or None)
        file = self.root / f"{name}-{'-'.join(groups)}" / "model.onnx"
        file.parent.mkdir()
        export_onnx(made.program, file)
        return made.program, plan, file


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(tmp_path_factory.mktemp("models"))


def prompts() -> tuple[Tensor, Tensor]:
    """Three prompts of five tokens, of which one is shorter."""
    ids = torch.randint(2, 50, (3, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask


def generated(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    tokens: Tensor = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        pad_token_id=PADDING, eos_token_id=None,
    )  # fmt: skip
    return tokens


@pytest.fixture
def without_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "optimum"] or ["optimum"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "optimum.onnxruntime", None)


def second_layer(program: Program, kind: str) -> str:
    (name,) = [g.name for g in analyze(program).prunable if g.kind == kind and ".1." in g.name]
    return name


@optimum
@pytest.mark.parametrize(
    ("name", "everywhere", "in_one"), [("opt", "heads", "value dims"), ("llama", "rotary pairs", "key-value heads")]
)
def test_our_loader_takes_any_caches(
    results: Results, name: str, everywhere: str, in_one: str, tmp_path: Path
) -> None:  # fmt: skip
    """Layers differ, and keys have another width than values."""
    from fxslim.loaders import SlimModelForCausalLM

    program, _ = results.cut(name, tmp_path, everywhere, second_layer(results.program(name), in_one))
    shapes = [tuple(t.shape[1::2]) for t in decoder_of_program(program).empty.values()]
    assert shapes == {"opt": [(2, 4), (2, 4), (2, 4), (2, 2)], "llama": [(2, 2), (2, 4), (1, 2), (1, 4)]}[name]
    ids, mask = prompts()
    wanted = generate_greedily(decoder_of_program(program), ids, NEW, attention_mask=mask)
    for binding in (False, True):
        model = SlimModelForCausalLM.from_pretrained(tmp_path, use_io_binding=binding)
        assert model.use_io_binding is binding
        assert torch.equal(generated(model, ids, mask), wanted)


@optimum
@pytest.mark.parametrize(
    ("name", "groups", "changes"),
    [
        ("opt", "neurons", {"ffn_dim": [22, 11]}),
        ("opt", "heads", {"num_attention_heads": [4, 2], "hidden_size": [16, 8]}),
        (
            "llama", "key-value heads",
            {"num_attention_heads": [4, 2], "num_key_value_heads": [2, 1], "hidden_size": [16, 8]},
        ),
    ],
)  # fmt: skip
def test_the_stock_loader_takes_equal_caches(
    results: Results, name: str, groups: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    program, plan = results.cut(name, tmp_path, groups)
    found = check_loader("ORTModelForCausalLM", program, plan, tmp_path)
    assert found.ok, found.failures
    assert found.config == changes
    written = json.loads((tmp_path / "config.json").read_text())
    assert {n: written[n] for n in changes} == {n: after for n, (_, after) in changes.items()}


@optimum
def test_the_stock_loader_refuses_unequal_caches(results: Results, tmp_path: Path) -> None:
    group = second_layer(results.program("opt"), "value dims")
    program, plan = results.cut("opt", tmp_path, group)
    before = (tmp_path / "config.json").read_text()
    found = check_loader("ORTModelForCausalLM", program, plan, tmp_path)
    assert not found.ok and len(found.failures) == 3
    assert found.failures[0] == (
        "config.json gives all caches one shape, and the key of layer 0 has 4 heads of 4, the value of layer 1 4 of 2"
    )
    assert "without IO binding" in found.failures[1] and "Got: 4 Expected: 2" in found.failures[1]
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(before)


@pytest.mark.slow
@optimum
def test_an_encoder_with_a_decoder_loads_as_two_files(results: Results, tmp_path: Path) -> None:
    program, plan = results.cut("t5", tmp_path, "neurons")
    found = check_loader("ORTModelForSeq2SeqLM", program, plan, tmp_path)
    assert found.ok, found.failures
    assert {f.name for f in tmp_path.glob("*.onnx")} == {"model.onnx", "encoder_model.onnx", "decoder_model.onnx"}
    (tmp_path / "encoder_model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes())
    assert any("decoder_input_ids" in said for said in _failures(optimum_class(), tmp_path, given(program)))


def optimum_class() -> Any:
    return require_optimum().ORTModelForSeq2SeqLM


def given(program: Program) -> dict[str, Tensor]:
    return dict(zip(program.outside_names, program.example_inputs, strict=True))


@optimum
@pytest.mark.parametrize("name", ["bert", "vit"])
def test_encoders_load_unchanged(results: Results, name: str, tmp_path: Path) -> None:
    program, plan = results.cut(name, tmp_path)
    found = check_loader(loader_for(MODELS[name][0], program.outside_names, name), program, plan, tmp_path)
    assert found.ok, found.failures
    assert set(found.config) <= {"intermediate_size"}
    assert {n for dims in program.dynamic.values() for n in dims.values()} <= {"batch_size", "sequence_length"}
    assert name == "vit" or "token_type_ids" in program.outside_names


@optimum
def test_a_configuration_that_nothing_reads_is_a_failure(results: Results, tmp_path: Path) -> None:
    program, plan = results.cut("vit", tmp_path)
    edit = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**edit, "model_type": "nobody's"}))
    found = check_loader("ORTModelForImageClassification", program, plan, tmp_path)
    assert not found.ok and found.failures[0].startswith("config.json cannot be read: ")


@optimum
def test_a_loader_that_computes_something_else_is_found(results: Results, tmp_path: Path) -> None:
    """The check compares: a class that adds to what its session returns does not pass."""
    import optimum.onnxruntime

    class Wrong(optimum.onnxruntime.ORTModelForImageClassification):  # type: ignore[misc]
        def forward(self, pixel_values: Any, **others: Any) -> Any:
            found = super().forward(pixel_values, **others)
            found["logits"] = found["logits"] + 1e-3
            return found

    program, plan = results.cut("vit", tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimum.onnxruntime, "ORTModelForImageClassification", Wrong)
        found = check_loader("ORTModelForImageClassification", program, plan, tmp_path)
    assert [f.rpartition(" ")[0] for f in found.failures] == [
        f"Wrong {how} IO binding returns something else than its" for how in ("without", "with")
    ]


@optimum
def test_names_that_could_run_are_refused(results: Results, tmp_path: Path) -> None:
    from fxslim.loaders import SlimModelForCausalLM

    results.cut("opt", tmp_path, "neurons")
    model = onnx.load(tmp_path / "model.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "__import__('os').getpid()"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(InputError, match="evaluate the names of dimensions"):
        SlimModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.slow
@optimum
def test_slim_proves_that_its_result_loads(pristine_opt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = ["--task", "text-generation", "--loader-compatible", "--width", "0.5", "--latency-seconds", "0.1", "--json"]
    result = run("slim", pristine_opt, *flags, "-o", out)
    report = json.loads(result.stdout)
    assert report["loader"]["ok"] and report["verdict"] == "ok" and result.exit_code == 0, report["failures"]
    assert report["loader"]["versions"]["transformers"].startswith("4.57.")
    assert report["loader"]["config"] == {"ffn_dim": [32, 16]}
    assert json.loads((out / "config.json").read_text())["ffn_dim"] == 16
    text = (out / "report.md").read_text()
    assert "optimum's ORTModelForCausalLM takes the result" in text and "ffn_dim 32 -> 16" in text
    assert run("check", out).exit_code == 0


@pytest.mark.usefixtures("without_optimum")
def test_without_optimum_it_is_said_before_the_work(pristine_opt: Path, tmp_path: Path) -> None:
    words = ["--task", "text-generation", "--loader-compatible", "--keep", "0.8", "-o", tmp_path / "out"]
    result = run("slim", pristine_opt, *words)
    assert result.exit_code == 2 and result.stdout == ""
    assert "optimum's loaders cannot be used" in result.stderr and "fxslim[optimum]" in result.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="optimum's loaders cannot be used"):
        from fxslim.loaders import SlimModelForCausalLM  # noqa: F401


def test_only_what_is_there_can_be_asked_for() -> None:
    import fxslim.loaders

    with pytest.raises(AttributeError, match="has no attribute 'Model'"):
        fxslim.loaders.Model  # noqa: B018


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        (None, "none of Hugging Face"),
        ("BertForPreTraining", "no loader of optimum is known for BertForPreTraining"),
        ("OPTForCausalLM", "add --task text-generation"),
    ],
)
def test_what_no_loader_takes_is_refused(architecture: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        loader_for(architecture, ("input_ids", "attention_mask"), "here")
