"""Hugging Face models: a directory or hub id becomes a Source. Weights are safetensors only; nothing is unpickled."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fxslim.decoders import CachedDecoder, decoder_inputs
from fxslim.graph.errors import InputError
from fxslim.graph.placeholder import Placeholder
from fxslim.graph.stores import FileTensor, read_header
from fxslim.lazy_model import absent_weights, stored_dtype, stored_weights
from fxslim.sources import Source, Task

__all__ = ["load_pretrained"]

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
)
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_TASKS: tuple[tuple[str, Task], ...] = (
    ("ForCausalLM", "causal-lm"),
    ("LMHeadModel", "causal-lm"),
    ("ForMaskedLM", "masked-lm"),
    ("ForSequenceClassification", "classification"),
    ("ForTokenClassification", "classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForImageClassification", "image-classification"),
    ("ForConditionalGeneration", "seq2seq"),
    ("Model", "feature-extraction"),
)
_BATCH = "batch_size"  # dimensions are called as optimum calls them
_ROWS, _LENGTH, _TARGET_LENGTH = 2, 24, 20  # of the example inputs; different, so that no two sizes are mistaken


def load_pretrained(
    model: str, *, trust_remote_code: bool, dtype: torch.dtype | None = None, task: str | None = None,
    stream: bool = False,
) -> Source:  # fmt: skip
    """The Source of a Hugging Face directory or hub id, with example inputs made from its configuration. With the task
    `text-generation` a decoder has its key-value cache among its inputs and outputs.

    With `stream` the weights stay on disk, in the type that they have there (unless `dtype` says another); a directory
    without any is good for an analysis. Otherwise they are loaded, in float32 unless `dtype` says another.

    Raises:
        InputError: transformers is not installed, a file is missing or damaged, the architecture is unknown, or it has
            no cache.
    """
    transformers = _transformers()
    directory = _directory(model)
    config = _read_config(directory, trust_remote_code)
    if not stream or not _is_bare(directory):
        _check_weights(directory, stream)
    with _quiet(transformers):
        module, notes = _load(transformers, directory, config, trust_remote_code, dtype, stream)
        tokenizer = _tokenizer(transformers, directory, trust_remote_code)
    known = Source(
        name=model, module=module, tokenizer=tokenizer, task=_task(type(module).__name__), directory=directory,
        max_positions=_max_positions(module.config), notes=notes, architecture=type(module).__name__,
    )  # fmt: skip
    if task is not None:
        return _with_caches(known, module, str(directory))
    kwargs, dynamic_shapes = _example_inputs(
        module, str(directory), dtype or (_float_type(module) if stream else torch.float32)
    )
    return replace(known, kwargs=kwargs, dynamic_shapes=dynamic_shapes)


def _with_caches(known: Source, module: nn.Module, where: str) -> Source:
    made = decoder_inputs(module, _vocabulary(module), known.max_positions, where)
    return replace(
        known, module=CachedDecoder(module), kwargs=made.kwargs, dynamic_shapes=made.dynamic_shapes, caches=made.caches,
        names=made.names,
    )  # fmt: skip


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"Hugging Face models need the transformers library: {error}", remedy="pip install fxslim[hf]"
        ) from error
    return transformers


def _directory(model: str) -> Path:
    """The local directory, after a download where `model` is a hub id."""
    path = Path(model).expanduser()
    if model.strip() and path.is_dir():
        return path
    if not model.strip() or path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(
            "there is no such model directory",
            at=model or "(empty)",
            remedy="give a Hugging Face directory or hub id, package.module:factory, a .pt2 file, or bundled:<name>",
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=_WANTED))
    except Exception as error:  # the hub's client lets through whatever its transport raises
        reason = str(error).strip().splitlines() or [""]
        raise InputError(
            f"there is no directory {model!r} here, and it cannot be fetched from the hub: "
            f"{type(error).__name__}: {reason[0][:300]}",
            at=model,
            remedy="check the name and the network, or download the model and give its directory",
        ) from error


def _read_config(directory: Path, trust_remote_code: bool) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise InputError("config.json is missing", at=str(directory), remedy="give the directory that holds it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"config.json cannot be read: {error}", at=str(path)) from error
    if not isinstance(config, dict):
        raise InputError("config.json does not hold an object", at=str(path))
    if not trust_remote_code:
        _refuse_code(config, path)
    return config


def _refuse_code(value: Any, path: Path) -> None:
    """Refuses settings that have made transformers load code although remote code was off."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else ())
    for key, item in items:
        kernel = "attn_implementation" in str(key) and isinstance(item, str) and "/" in item
        if kernel or (key == "trust_remote_code" and item):
            raise InputError(
                f"the configuration asks for code from elsewhere: {key} = {item!r}",
                at=str(path),
                remedy="remove the setting, or trust the model's code with --trust-remote-code",
            )
        _refuse_code(item, path)


def _is_bare(directory: Path) -> bool:
    """Whether there is a configuration and no file of weights of any kind."""
    return not any(True for pattern in ("*.safetensors*", "*.bin", "*.pt", "*.pth") for _ in directory.glob(pattern))


def _float_type(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _check_weights(directory: Path, stream: bool) -> None:
    """Every weight file is there, and its header and length are whole. For `stream` no file is mapped into memory."""
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        names = [single.name]
    elif index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"the index of the weights cannot be read: {error}", at=str(index)) from error
    else:
        pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in directory.glob(pattern))
        raise InputError(
            f"only pickled weights are here ({', '.join(pickled)}), and unpickling can run any code"
            if pickled
            else "model.safetensors is missing",
            at=str(directory),
            remedy="load the model where you trust it and save it with save_pretrained(..., safe_serialization=True)"
            if pickled
            else "give the directory that holds the weights",
        )
    for name in names:
        _check_file(directory / name, stream)


def _check_file(path: Path, stream: bool) -> None:
    if not path.is_file():
        raise InputError("a file of weights that the index names is missing", at=str(path), remedy="download it again")
    if stream:
        read_header(path)
        return
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise InputError(
            f"the file of weights is damaged or cut off: {error}", at=str(path), remedy="download or save it again"
        ) from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's own warnings: what matters of them is raised as an error here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _load(
    transformers: Any, directory: Path, raw: Mapping[str, Any], trust: bool, dtype: torch.dtype | None, stream: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    loader = _model_class(transformers, directory, raw, trust)
    options = {"trust_remote_code": trust, "local_files_only": True}
    try:
        config = transformers.AutoConfig.from_pretrained(directory, **options)
        if hasattr(config, "use_cache"):
            config.use_cache = False  # a cache is another program: capture it through a factory
        weights = _on_disk(loader, config, directory, dtype) if stream else None
        chosen = dtype or (torch.float32 if weights is None else stored_dtype(weights, directory))
        given = None if weights is None else {name: Placeholder(entry) for name, entry in weights.items()}
        module, report = loader.from_pretrained(
            directory if given is None else None, config=config, dtype=chosen, use_safetensors=True, state_dict=given,
            output_loading_info=True, ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    except InputError:
        raise
    except Exception as error:  # the library raises many kinds for a configuration that does not fit
        reason = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise InputError(
            f"transformers cannot load the model: {type(error).__name__}: {reason[:400]}",
            at=str(directory),
            remedy="check that config.json and the weights belong together and that this transformers knows the model",
        ) from error
    if hasattr(module, "set_experts_implementation") and module._can_set_experts_implementation():
        module.set_experts_implementation("batched_mm")  # the grouped kernel has neither float64 nor an ONNX form
    for kind, what in (("missing_keys", "are missing from the file"), ("mismatched_keys", "have another shape")):
        if keys := sorted(_key(k) for k in report.get(kind, ())):
            raise InputError(
                f"{len(keys)} weights {what}: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}",
                at=str(directory),
                remedy="give a checkpoint of this architecture: transformers would start these weights at random",
            )
    unused = sorted(str(k) for k in report.get("unexpected_keys", ()))
    notes: tuple[str, ...] = (
        (f"{len(unused)} weights of the file belong to no part of {type(module).__name__}",) if unused else ()
    )
    if stream and _is_bare(directory):
        notes += ("there is a configuration and no weights: good for an analysis alone",)
    return module.eval(), notes


def _on_disk(loader: Any, config: Any, directory: Path, dtype: torch.dtype | None) -> dict[str, FileTensor]:
    """The weights of the directory by the names that they have there; what stands for them where there are none."""
    if not _is_bare(directory):
        return stored_weights(directory)
    said = getattr(config, "dtype", None)
    return absent_weights(
        loader, config, directory, dtype or (said if isinstance(said, torch.dtype) else torch.float32)
    )


def _key(entry: Any) -> str:
    """A weight of a loading report: its name, and both shapes where these are told."""
    if isinstance(entry, str):
        return entry
    name, *shapes = entry
    return f"{name} ({' instead of '.join(str(tuple(shape)) for shape in shapes)})"


def _model_class(transformers: Any, directory: Path, raw: Mapping[str, Any], trust: bool) -> Any:
    """The class that config.json names; the bare model where it names none."""
    named = raw.get("architectures") or []
    if not named:
        return transformers.AutoModel
    name = str(named[0])
    found = getattr(transformers, name, None)
    if inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel):
        return found
    custom = [auto for auto, where in (raw.get("auto_map") or {}).items() if str(where).split(".")[-1] == name]
    if custom and trust:
        return getattr(transformers, custom[0], transformers.AutoModel)
    raise InputError(
        f"the architecture {name!r} is unknown to transformers {transformers.__version__}",
        at=str(directory / "config.json"),
        remedy="its code comes with the model: read it, then trust it with --trust-remote-code"
        if custom
        else "install a transformers that has it, or hand the model over as package.module:factory",
    )


def _tokenizer(transformers: Any, directory: Path, trust: bool) -> Any:
    if not any(directory.joinpath(name).is_file() for name in _TOKENIZER_FILES):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=trust, local_files_only=True)
    except Exception as error:  # tokenizers raise plain exceptions for damaged files
        reason = str(error).strip().splitlines() or [""]
        raise InputError(
            f"the tokenizer cannot be loaded: {type(error).__name__}: {reason[0][:300]}",
            at=str(directory),
            remedy="repair its files, or remove them and give data as arrays",
        ) from error


def _task(architecture: str) -> Task | None:
    return next((task for ending, task in _TASKS if architecture.endswith(ending)), None)


def _max_positions(config: Any) -> int | None:
    found = (getattr(config, name, None) for name in _POSITIONS)
    return next((int(value) for value in found if isinstance(value, int) and value > 0), None)


def _vocabulary(module: nn.Module) -> int:
    config: Any = module.config
    return int(getattr(config, "vocab_size", None) or module.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def _example_inputs(
    module: nn.Module, where: str, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
    """Inputs [2, ...] by name and their dynamic dimensions, from the model's signature and configuration."""
    accepted = inspect.signature(module.forward).parameters
    config: Any = module.config
    generator = torch.Generator().manual_seed(0)
    text, vision = "input_ids" in accepted, "pixel_values" in accepted
    if vision and not text:
        size = getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (_ROWS, getattr(config, "num_channels", None) or 3, height, width)
        return {"pixel_values": torch.rand(shape, generator=generator).to(dtype)}, {"pixel_values": {0: _BATCH}}
    if not text or vision:
        raise InputError(
            f"{type(module).__name__} takes inputs that cannot be made up from its configuration",
            at=where,
            remedy="write a factory of (module, args, kwargs, dynamic_shapes) and give package.module:factory",
        )
    vocabulary = _vocabulary(module)
    limit = _max_positions(config) or _LENGTH
    ids = torch.randint(0, vocabulary, (_ROWS, min(_LENGTH, limit)), generator=generator)
    seq2seq = "decoder_input_ids" in accepted
    dims = {0: _BATCH, 1: "encoder_sequence_length" if seq2seq else "sequence_length"}
    kwargs = {"input_ids": ids}
    if "attention_mask" in accepted:
        kwargs["attention_mask"] = torch.ones_like(ids)
    if "token_type_ids" in accepted and (getattr(config, "type_vocab_size", None) or 0) > 1:
        kwargs["token_type_ids"] = (torch.arange(ids.shape[1]) * 3 // ids.shape[1] == 2).to(ids).expand_as(ids).clone()
    shapes = {name: dict(dims) for name in kwargs}
    if seq2seq:
        kwargs["decoder_input_ids"] = ids[:, : min(_TARGET_LENGTH, limit)].clone()
        shapes["decoder_input_ids"] = {0: _BATCH, 1: "decoder_sequence_length"}
    return kwargs, shapes
