"""fxslim: makes a trained model smaller and faster at compile time, and proves what it did."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

# In a source checkout `graph/`, `passes/` and `export/` lie beside this folder. An installed package has them inside;
# this line lets `python` started in the checkout's root find them too.
if (_checkout := Path(__file__).resolve().parent.parent).joinpath("graph", "axes").is_dir():
    __path__.append(str(_checkout))

__version__ = "0.1.0"

# Where each name of the public interface comes from. Imported when first used: `fxslim --help` needs no torch.
_EXPORTS = {
    **dict.fromkeys(
        ("analyze", "apply", "apply_plan", "capture", "compress", "load", "make_plan", "prepare", "prove", "save"),
        "fxslim.api",
    ),
    **dict.fromkeys(("check_onnx", "export_onnx", "measure_latency"), "fxslim.export"),
    **dict.fromkeys(
        (
            "load_plugins",
            "register_importance",
            "register_method",
            "register_pass",
            "register_rule",
            "register_translation",
        ),
        "fxslim.plugins",
    ),
    "FxslimError": "fxslim.graph.errors",
    "Mixture": "fxslim.data",
    "Pass": "fxslim.passes.base",
    "PassResult": "fxslim.passes.base",
    "Plan": "fxslim.passes.plan",
    "Program": "fxslim.graph.program",
    "load_batches": "fxslim.data",
    "load_model": "fxslim.sources",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fxslim' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
