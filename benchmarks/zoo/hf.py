"""Small models of the architectures of the installed transformers: `CASES` by class name.

`MISSING` says why a class of the table is not among them: this version of transformers lacks it, or it cannot be built.
"""

from __future__ import annotations

from benchmarks.zoo.case import Build
from benchmarks.zoo.hf_audio import AUDIO
from benchmarks.zoo.hf_build import Row, builder, installed
from benchmarks.zoo.hf_multimodal import MULTIMODAL
from benchmarks.zoo.hf_text import TEXT
from benchmarks.zoo.hf_vision import VISION

__all__ = ["CASES", "MISSING", "cases"]

ROWS: dict[str, Row] = {**TEXT, **VISION, **AUDIO, **MULTIMODAL}
UNBUILDABLE = {
    "QDQBertForMaskedLM": "needs pytorch-quantization, which NVIDIA keeps on an index of its own",
    "TransfoXLLMHeadModel": "its forward pass calls Tensor.type_as with a keyword that torch does not have",
}
_INSTALLED = installed()

CASES: dict[str, Build] = {name: builder(name, row) for name, row in ROWS.items() if name in _INSTALLED}
MISSING: dict[str, str] = {
    **UNBUILDABLE,
    **{name: "the installed transformers has no such class" for name in ROWS if name not in _INSTALLED},
}


def cases() -> dict[str, Build]:
    """A build for every class of the table that the installed transformers has."""
    return CASES
