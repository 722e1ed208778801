"""Results in optimum: the decoder class that reads the shapes of its caches off the ONNX file.

    from fxslim.loaders import SlimModelForCausalLM

    model = SlimModelForCausalLM.from_pretrained("out/mine")

Importing this module needs nothing; asking it for the class needs optimum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxslim.graph.errors import InputError

if TYPE_CHECKING:
    from fxslim._optimum_decoder import SlimModelForCausalLM as SlimModelForCausalLM

__all__ = ["require_optimum"]


def require_optimum() -> Any:
    """The module `optimum.onnxruntime`.

    Raises:
        InputError: it is not installed, or does not work with the transformers that is.
    """
    try:
        import optimum.onnxruntime as runtime

        runtime.ORTModelForCausalLM  # noqa: B018 - it is lazy: this is what finds out
    except Exception as error:  # an old optimum with a new transformers raises several kinds
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"optimum's loaders cannot be used: {type(error).__name__}: {reason}",
            rule="optimum-onnx 0.1 goes with transformers 4.57, not with 5",
            remedy="pip install 'fxslim[optimum]' in an environment of its own, or use fxslim.generation",
        ) from error
    return runtime


def __getattr__(name: str) -> Any:
    if name != "SlimModelForCausalLM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_optimum()
    from fxslim._optimum_decoder import SlimModelForCausalLM

    return SlimModelForCausalLM
