"""The proof that optimum's own loaders take a result: it is loaded by them and run, with and without IO binding.

What they return is compared with the same session run without them, so that the loader alone is judged: what the ONNX
file computes is checked elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxslim.decoders import PAST
from fxslim.generation import decoder_of_session, generate_greedily
from fxslim.graph.errors import FxslimError, InputError
from fxslim.graph.parts import encoder_and_decoder
from fxslim.graph.program import Program
from fxslim.loader_config import changes_of, neurons, readable_configs
from fxslim.loader_pairs import PAIRS, export_parts, same_translations
from fxslim.loaders import require_optimum
from fxslim.outputs import write_json_atomic
from fxslim.passes.plan import Plan
from fxslim.sources import Source

__all__ = ["LoaderCheck", "check_loader", "loader_for", "loader_of"]

_LOADERS = (
    ("ForCausalLM", "ORTModelForCausalLM"),
    ("LMHeadModel", "ORTModelForCausalLM"),
    ("ForSequenceClassification", "ORTModelForSequenceClassification"),
    ("ForTokenClassification", "ORTModelForTokenClassification"),
    ("ForQuestionAnswering", "ORTModelForQuestionAnswering"),
    ("ForMaskedLM", "ORTModelForMaskedLM"),
    ("ForImageClassification", "ORTModelForImageClassification"),
    ("ForConditionalGeneration", PAIRS),
    ("Model", "ORTModelForFeatureExtraction"),
)
_DECODER = "ORTModelForCausalLM"
_PROMPT, _PADDING, _NEW = 5, 2, 6  # tokens: of each row, of them padding in the second row, and generated


@dataclass(frozen=True)
class LoaderCheck:
    """Whether a loader took a result. `config` has `[before, after]` of what config.json says otherwise than that of
    the model."""

    loader: str
    compared: str
    failures: tuple[str, ...]
    config: dict[str, list[Any]]
    versions: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether it loaded and returned what its session computes."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON values."""
        return {**asdict(self), "ok": self.ok, "failures": list(self.failures)}


def loader_for(architecture: str | None, inputs: Sequence[str], where: str) -> str:
    """The name of optimum's class for results of a model with this architecture and these inputs.

    Raises:
        InputError: there is none, or a decoder has no cache.
    """
    found = next((name for ending, name in _LOADERS if (architecture or "").endswith(ending)), None)
    if found is None:
        raise InputError(
            f"no loader of optimum is known for {architecture or 'a model that is none of Hugging Face'}",
            at=where,
            rule=f"known are {', '.join(dict.fromkeys(name for _, name in _LOADERS))}",
            remedy="leave --loader-compatible out",
        )
    if found == _DECODER and not any(name.startswith(PAST) for name in inputs):
        raise InputError(
            f"{found} generates with a key-value cache, and the model has none among its inputs",
            at=where,
            remedy="add --task text-generation",
        )
    return found


def loader_of(source: Source) -> str:
    """The name of optimum's class for results of a model; asked before the work, not after it.

    Raises:
        InputError: there is none, optimum cannot be used, or the model cannot be written in the form that it wants.
    """
    require_optimum()
    found = loader_for(source.architecture, source.program.outside_names, source.name)
    if found == PAIRS:
        encoder_and_decoder(source.program)
    return found


def check_loader(
    loader: str, program: Program, plan: Plan, directory: Path, opset: int | None = None
) -> LoaderCheck:  # fmt: skip
    """Loads `model.onnx` and `config.json` of a directory with the class `loader` of optimum, and runs it. A decoder's
    config.json is changed where that is what lets it load; where nothing does, it stays the model's. An encoder with a
    decoder is first written as the two files that its class wants, at the `opset`.

    Raises:
        InputError: optimum cannot be used, or the program cannot be cut in two.
    """
    kind = getattr(require_optimum(), loader)
    from transformers import AutoConfig  # optional, and seconds to import

    path = directory / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # code that comes with a model is not run here
        said = f"config.json cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return LoaderCheck(loader, "nothing", (said,), {}, _versions())
    extra = neurons(config, plan)
    given = dict(zip(program.outside_names, program.example_inputs, strict=True))
    attempts: Iterator[dict[str, Any]] = iter([{}])
    unequal: str | None = None
    compared = f"outputs of {len(program.example_inputs[0])} rows"
    if loader == _DECODER:
        caches = [(int(v.shape[1]), int(v.shape[3])) for n, v in given.items() if n.startswith(PAST)]
        attempts, compared = readable_configs(config, caches), f"{_NEW} tokens after each of 2 prompts"
        unequal = _unequal(caches)
    reasons: list[str] = []
    broken: list[str] = []
    if loader == PAIRS:
        broken, compared = export_parts(program, directory, opset), f"{_NEW} tokens for 2 texts, without a cache"
    for changes in attempts:
        written = {**raw, **extra, **changes}
        write_json_atomic(path, written)
        failed = _failures(kind, directory, given)
        if not failed and not broken:
            return LoaderCheck(loader, compared, (), changes_of(raw, written), _versions())
        reasons = reasons or broken + failed  # of the configuration as it came: the others are guesses
    write_json_atomic(path, raw)
    if unequal:
        reasons.insert(0, f"config.json gives all caches one shape, and {unequal}")
    return LoaderCheck(loader, compared, tuple(reasons), {}, _versions())


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("optimum", "optimum-onnx", "transformers", "onnxruntime")}


def _unequal(caches: Sequence[tuple[int, int]]) -> str | None:
    """Which two caches differ, counted as optimum counts them: keys and values by turns."""
    other = next((i for i, size in enumerate(caches) if size != caches[0]), None)
    if other is None:
        return None
    name = f"{'value' if other % 2 else 'key'} of layer {other // 2}"
    (heads, width), (others, its) = caches[0], caches[other]
    return f"the key of layer 0 has {heads} heads of {width}, the {name} {others} of {its}"


def _failures(kind: Any, directory: Path, given: Mapping[str, Tensor]) -> list[str]:
    """What goes wrong with the class, in either mode of binding; empty where nothing does."""
    said = []
    for binding in (False, True):
        how = f"{kind.__name__} with{'' if binding else 'out'} IO binding"
        try:
            equal = _same(kind, directory, given, use_io_binding=binding, local_files_only=True)
        except FxslimError:
            raise
        except Exception as error:  # ONNX Runtime, optimum and transformers share no base of their errors
            said.append(f"{how}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        if not equal:
            said.append(f"{how} returns something else than its session")
    return said


def _same(kind: Any, directory: Path, given: Mapping[str, Tensor], **options: Any) -> bool:
    import transformers

    settings: Any = transformers.GenerationConfig
    if "decoder_input_ids" in given:
        return same_translations(kind.from_pretrained(directory, use_cache=False, **options), given, _NEW, settings)
    model = kind.from_pretrained(directory, **options)
    cached = any(name.startswith(PAST) for name in given)
    return _same_tokens(model, given, settings) if cached else _same_outputs(model, given)


def _same_tokens(model: Any, given: Mapping[str, Tensor], settings: Any) -> bool:
    ids = given["input_ids"][:, :_PROMPT]
    mask = torch.ones_like(ids)
    mask[1, : min(_PADDING, ids.shape[1] - 1)] = 0
    new = max(1, min(_NEW, given["attention_mask"].shape[1] - ids.shape[1]))  # no more than the model has positions
    wanted = generate_greedily(decoder_of_session(model.session), ids, new, attention_mask=mask)
    plain = settings(max_new_tokens=new, do_sample=False, num_beams=1, pad_token_id=0, use_cache=True)
    model.generation_config = plain  # not that of the directory, which may end early or forbid tokens
    return torch.equal(model.generate(input_ids=ids, attention_mask=mask, generation_config=plain), wanted)


def _same_outputs(model: Any, given: Mapping[str, Tensor]) -> bool:
    names = [output.name for output in model.session.get_outputs()]
    found = model.session.run(names, {name: value.numpy() for name, value in given.items()})
    wanted = {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}
    got = {name: value for name, value in model(**given).items() if value is not None}
    return bool(got) and all(torch.equal(value, wanted[name]) for name, value in got.items())
