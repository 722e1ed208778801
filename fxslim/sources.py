"""Model sources: what the user names becomes a Source, with example inputs, tokenizer, task and default data.

A name is a Hugging Face directory or hub id, `package.module:factory`, a `.pt2` file, or `bundled:<model>`.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.export import ExportedProgram

from fxslim.graph.capture import capture, capture_exported
from fxslim.graph.errors import InputError
from fxslim.graph.placeholder import Placeholder, types_in_files
from fxslim.graph.program import Program
from fxslim.models.digits_resnet import DigitsResNet

__all__ = ["BUNDLED", "TASKS", "Source", "Task", "is_factory", "load_model", "refuse_bad_weights"]

Task = Literal[
    "causal-lm", "classification", "feature-extraction", "masked-lm", "question-answering", "seq2seq",
    "image-classification",
]  # fmt: skip
"""What a model is for, as far as evaluation needs to know."""

TASKS = ("text-generation",)
"""Ways to call a model that `load_model` can be asked for."""

BUNDLED = ("opt-python", "digits-resnet")
"""Models that come with the package: a language model and an image classifier."""

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_COMPANIONS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template.*",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Source:
    """A model ready to be captured, and what is known about its use."""

    name: str
    module: nn.Module | ExportedProgram
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None  # as in `fxslim.graph.capture.capture`: strings name dynamic dimensions
    tokenizer: Any = None
    task: Task | None = None
    directory: Path | None = None  # where configuration and tokenizer files lie
    calibration: Path | None = None  # default data of a bundled model
    evaluation: Path | None = None
    max_positions: int | None = None  # the longest sequence that the model can take, in tokens
    notes: tuple[str, ...] = ()  # what the user should know about how it was loaded
    caches: Mapping[str, str] | None = None  # as in `capture`
    names: Mapping[str, str] = field(default_factory=dict)  # as in `capture`
    architecture: str | None = None  # the class of a Hugging Face model

    @cached_property
    def program(self) -> Program:
        """The captured Program, made once; clone it before rewriting.

        Raises:
            CaptureError: the exporter cannot capture the model.
        """
        if isinstance(self.module, ExportedProgram):
            program = capture_exported(self.module)
        else:
            program = capture(self.module, self.args, self.kwargs, self.dynamic_shapes, self.caches, self.names)
        program.source = self.name
        return program

    @property
    def companions(self) -> tuple[Path, ...]:
        """Configuration, tokenizer and processor files of `directory`, sorted: they belong beside a slim model."""
        if self.directory is None:
            return ()
        return tuple(sorted({f for pattern in _COMPANIONS for f in self.directory.glob(pattern) if f.is_file()}))


def load_model(
    model: str, *, trust_pt2: bool = False, trust_remote_code: bool = False, dtype: str | torch.dtype | None = None,
    task: str | None = None, stream: bool = False,
) -> Source:  # fmt: skip
    """The Source that `model` names, in evaluation mode and float32 unless `dtype` says otherwise.

    `task` says how a Hugging Face model is called: `text-generation` gives a language model its key-value cache as
    inputs and outputs. With `stream` the weights of a Hugging Face model stay on disk, in the type that they have
    there; whether they are finite is for `refuse_bad_weights` to find out, which reads them one by one. A directory
    without weights then gives a Source that is good for an analysis.

    Raises:
        InputError: nothing usable has this name, loading it would run code that is not trusted, its weights are
            missing, damaged, or not finite, or it cannot be called as the task says.
    """
    chosen = _dtype(dtype)
    _refuse_task(model, task)
    if stream and (model.endswith(".pt2") or model == "bundled:digits-resnet" or is_factory(model)):
        raise InputError("only weights of Hugging Face models can stay on disk", at=model, remedy="leave streaming out")
    if model.startswith("bundled:"):
        source = _bundled(model.removeprefix("bundled:"), chosen, task, stream)
    elif model.endswith(".pt2"):
        source = _pt2(Path(model).expanduser(), trust_pt2, chosen)
    elif is_factory(model):
        source = _factory(model, chosen)
    else:
        # The adapter imports Source, and transformers is optional: it is imported when it is asked for.
        from fxslim.huggingface import load_pretrained

        source = load_pretrained(model, trust_remote_code=trust_remote_code, dtype=chosen, task=task, stream=stream)
    if not stream:
        refuse_bad_weights(source)
    if isinstance(source.module, nn.Module):
        source.module.eval()
    return source


def is_factory(model: str) -> bool:
    """Whether a model's name is `package.module:factory`: code that opening it runs."""
    return bool(_FACTORY.fullmatch(model)) and not Path(model).exists()


def _refuse_task(model: str, task: str | None) -> None:
    if task is None:
        return
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}", remedy=f"choose {', '.join(TASKS)}, or leave it out")
    if model.endswith(".pt2") or model == "bundled:digits-resnet" or _FACTORY.fullmatch(model):
        raise InputError(
            f"the task {task!r} is for language models of Hugging Face",
            at=model,
            remedy="leave it out; a factory gives the inputs that it wants, caches among them",
        )


def refuse_bad_weights(source: Source) -> None:
    """Returns if every weight holds finite numbers. Buffers may hold -inf, which attention masks are made of. Weights
    on disk are read one by one.

    Raises:
        InputError: a weight holds NaN or Inf, or no data at all, or integers where the model computes with numbers of
            floating point.
    """
    for name, tensor in source.module.named_parameters():
        if isinstance(tensor, Placeholder):
            _refuse_integers(source.name, name, tensor)
        _refuse_tensor(source.name, name, _data(tensor), masks=False)
    for name, buffer in source.module.named_buffers():
        _refuse_tensor(source.name, name, _data(buffer), masks=True)


def _refuse_integers(model: str, name: str, tensor: Placeholder) -> None:
    """What is quantised has scales somewhere else: without them its integers are other weights."""
    held = sorted(
        str(dtype).removeprefix("torch.") for dtype in types_in_files(tensor.entry) if not dtype.is_floating_point
    )
    if tensor.is_floating_point() and held:
        raise InputError(
            f"a weight is stored as {held[0]}, and the model computes with it in floating point",
            at=f"{model}, {name}",
            rule="integers that were cast would be other weights: what is quantised is scaled when it is used",
            remedy="save the checkpoint in a floating point type",
        )


def _data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.entry.read() if isinstance(tensor, Placeholder) else tensor


def _refuse_tensor(model: str, name: str, tensor: torch.Tensor, masks: bool) -> None:
    if tensor.is_meta:
        raise InputError(
            "a weight holds no data (it lies on the meta device)",
            at=f"{model}, {name}",
            remedy="load the weights first",
        )
    if not tensor.is_floating_point():
        return
    bad = ~torch.isfinite(tensor.detach())
    if masks:
        bad &= tensor.detach() != -torch.inf
    if count := int(bad.sum()):
        raise InputError(
            f"{count} of {tensor.numel()} values of a weight are NaN or Inf",
            at=f"{model}, {name}",
            remedy="repair the checkpoint: no compression can be judged against a model that computes NaN",
        )


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None)
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"{dtype!r} is not a floating point type", remedy="use float32, float16, bfloat16 or float64")
    return found


def _bundled(name: str, dtype: torch.dtype | None, task: str | None, stream: bool) -> Source:
    if name not in BUNDLED:
        raise InputError(f"there is no bundled model {name!r}", remedy=f"choose one of {', '.join(BUNDLED)}")
    directory = Path(str(files("fxslim.models"))) / name
    if not directory.joinpath("model.safetensors").is_file():
        raise InputError(
            f"the bundled model {name!r} is not in this installation", at=str(directory), remedy="install fxslim again"
        )
    if name == "digits-resnet":
        return _digits(directory, dtype or torch.float32)
    from fxslim.huggingface import load_pretrained  # see load_model

    source = load_pretrained(str(directory), trust_remote_code=False, dtype=dtype, task=task, stream=stream)
    return replace(
        source, name=name, calibration=directory / "calib.txt", evaluation=directory / "valid.txt"
    )  # fmt: skip


def _digits(directory: Path, dtype: torch.dtype) -> Source:
    config = json.loads(directory.joinpath("config.json").read_text(encoding="utf-8"))
    model = DigitsResNet(config["widths"], config["blocks"], config["classes"])
    try:
        model.load_state_dict(load_file(directory / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(
            f"the bundled weights are damaged: {error}", at=str(directory), remedy="install fxslim again"
        ) from error
    images = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return Source(
        name=directory.name, module=model.to(dtype), args=(images.to(dtype),), dynamic_shapes=({0: "batch"},),
        task="image-classification", directory=directory,
        calibration=directory / "calib.npz", evaluation=directory / "valid.npz",
    )  # fmt: skip


def _pt2(path: Path, trusted: bool, dtype: torch.dtype | None) -> Source:
    if not path.is_file():
        raise InputError("there is no such file", at=str(path))
    if not trusted:
        raise InputError(
            "a .pt2 file holds pickled objects: loading it can run any code that its author put in",
            at=str(path),
            remedy="if you made the file or trust who did, say so with --trust-pt2 (trust_pt2=True)",
        )
    if dtype is not None:
        raise InputError(
            "an exported program keeps the type that it was exported with", at=str(path), remedy="leave dtype out"
        )
    try:
        exported = torch.export.load(path)
    except Exception as error:  # the reader raises whatever the damage leads to
        raise InputError(
            f"the file cannot be read as an exported program: {_first_line(error)}",
            at=str(path),
            remedy="write it with torch.export.save, by the torch release that is installed here",
        ) from error
    return Source(name=path.stem, module=exported)


def _factory(spec: str, dtype: torch.dtype | None) -> Source:
    module_name, _, attribute = spec.partition(":")
    with _importable_from_here():
        factory = _import(spec, module_name, attribute)
        try:
            made = factory()
        except InputError:
            raise
        except Exception as error:  # the user's own code
            raise InputError(f"the factory failed: {_first_line(error)}", at=spec) from error
    source = made if isinstance(made, Source) else _source_of(spec, made)
    if dtype is not None:
        if not isinstance(source.module, nn.Module):
            raise InputError("an exported program keeps its type", at=spec, remedy="leave dtype out")
        source.module.to(dtype)
        cast = torch.utils._pytree.tree_map(lambda v: _cast(v, dtype), (source.args, dict(source.kwargs)))
        source = replace(source, args=cast[0], kwargs=cast[1])
    return source


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _import(spec: str, module_name: str, attribute: str) -> Callable[[], Any]:
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own module
        raise InputError(
            f"the module {module_name!r} cannot be imported: {_first_line(error)}",
            at=spec,
            remedy="name it as Python would import it from the current directory: package.module:factory",
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise InputError(
            f"the module {module_name!r} has no function {attribute!r}", at=f"{spec}, {module.__file__}"
        )  # fmt: skip
    return factory  # type: ignore[no-any-return]


def _source_of(spec: str, made: Any) -> Source:
    match made:
        case (nn.Module() as module, tuple() as args, None | Mapping() as kwargs, dynamic_shapes):
            return Source(spec, module, args, dict(kwargs or {}), dynamic_shapes)
        case tuple():
            kinds = "(" + ", ".join(type(item).__name__ for item in made) + ")"
        case _:
            kinds = type(made).__name__
    raise InputError(
        f"the factory returned {kinds}",
        at=spec,
        remedy="return (module, args tuple, kwargs dict or None, dynamic_shapes or None), or a fxslim.sources.Source",
    )


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """The current directory is importable, as it is for `python -m`; a console script lacks it."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__
