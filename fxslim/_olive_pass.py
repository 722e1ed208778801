"""The pass for Olive. Importing it needs olive-ai: `fxslim.olive` says so where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler, ONNXModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pass_config import BasePassConfig

from fxslim.export.providers import provider_name
from fxslim.graph.errors import CheckError, FxslimError, InputError
from fxslim.outputs import MANIFEST
from fxslim.pipeline import SlimOptions, slim
from fxslim.plugins import load_plugins

__all__ = ["FxslimSlim"]

_MODEL, _PROVIDER, _TRUST = "model", "provider", "trust_remote_code"  # what Olive says by itself

_OPEN = ("importance", "method")  # plug-ins add names to those that the types have


@contextmanager
def _as_olive_raises() -> Iterator[None]:
    """Our errors as ValueErrors: Olive logs others, goes on without a model, and returns 0."""
    try:
        yield
    except FxslimError as error:
        raise ValueError(str(error)) from error


class FxslimSlim(Pass):  # type: ignore[misc]
    """From a Hugging Face model to an ONNX model: what `fxslim slim` does, with its options as the pass's.

    The result holds the tokenizer, the configuration, the plan and the report besides `model.onnx`. A proof or check
    that fails, fails the pass.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        """The options of `fxslim slim`, read off `SlimOptions`: a new one is here at once."""
        hints = get_type_hints(SlimOptions)
        return {
            option.name: PassConfigParam(
                type_=str | None if option.name in _OPEN else hints[option.name],
                default_value=option.default,
                description=f"--{option.name.replace('_', '-')} of `fxslim slim`",
            )
            for option in fields(SlimOptions)
            if option.name not in (_MODEL, _PROVIDER, _TRUST)
        }

    @classmethod
    def get_config_params(
        cls,
        accelerator_spec: AcceleratorSpec,
        config: dict[str, Any] | None = None,
        disable_search: bool | None = False,
    ) -> Any:
        """What Olive makes of a config, which drops names that it does not know.

        Raises:
            ValueError: there is such a name.
        """
        known = cls.default_config(accelerator_spec)
        with _as_olive_raises():
            if unknown := sorted(set(config or {}) - set(known)):
                raise InputError(f"FxslimSlim has no option {unknown[0]!r}", remedy=f"there are {', '.join(known)}")
        return super().get_config_params(accelerator_spec, config, disable_search)

    def _run_for_config(
        self, model: HfModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        out = Path(output_model_path).with_suffix("")
        with _as_olive_raises():
            load_plugins()
            report = slim(self._options(model, config), out)
            if report["verdict"] != "ok":
                raise CheckError(f"the slim model is not to be served: {'; '.join(report['failures'])}", at=str(out))
        # Olive puts files of its own there, and later passes change the model: the manifest would be wrong.
        (out / MANIFEST).unlink()
        others = sorted(str(file) for file in out.iterdir() if not file.name.startswith("model.onnx"))
        attributes = {**(model.model_attributes or {}), "additional_files": others}
        return ONNXModelHandler(model_path=str(out), onnx_file_name="model.onnx", model_attributes=attributes)

    def _options(self, model: Any, config: Any) -> SlimOptions:
        """What `fxslim slim` would be asked for.

        Raises:
            InputError: the model is none that Olive keeps as Hugging Face's, or not whole.
        """
        if not isinstance(model, HfModelHandler):
            raise InputError(
                f"FxslimSlim takes a Hugging Face model, not {type(model).__name__}", remedy='"type": "HfModel"'
            )
        if model.adapter_path:
            raise InputError("FxslimSlim takes no adapter beside its model", remedy="merge it into the weights first")
        if model.test_model_config is not None:
            raise InputError("FxslimSlim takes no model with random weights", remedy="leave --test out")
        given = {name: _as_tuple(getattr(config, name)) for name in self.default_config(self.accelerator_spec)}
        asked = self.accelerator_spec.execution_provider
        provider = "auto" if asked is None else provider_name(str(asked))
        trusted = bool(model.load_kwargs is not None and model.load_kwargs.trust_remote_code)
        return SlimOptions(model.model_name_or_path, provider=provider, trust_remote_code=trusted, **given)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
