"""The doctor: is everything here that fxslim needs, in versions without known holes, and does it work?"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from fxslim import plugins
from fxslim.api import analyze, apply, capture, make_plan, prove
from fxslim.export import available_providers, check_onnx, export_onnx, resolve_provider
from fxslim.export.providers import provider_name
from fxslim.graph.errors import FxslimError

__all__ = ["Finding", "examine"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state` is ok, warning, missing or failed; the last two are not `ok`."""

    name: str
    state: str
    text: str

    @property
    def ok(self) -> bool:
        """Whether fxslim works with this as it is."""
        return self.state in ("ok", "warning")


@dataclass(frozen=True)
class _Need:
    """A package: the oldest version without the advisories named, and what it is for."""

    package: str
    needed: bool
    safe: str | None = None
    advisories: str = ""
    extra: str = ""


_NEEDS = (
    _Need("torch", True, "2.10", "CVE-2026-24747, CVE-2025-32434"),
    _Need("onnx", True, "1.21", "CVE-2026-27489, CVE-2026-34445, CVE-2026-34446, CVE-2026-34447"),
    _Need("onnx-ir", True),
    _Need("onnxscript", True),
    _Need("safetensors", True),
    _Need("numpy", True),
    _Need("jinja2", True),
    _Need("matplotlib", True),
    _Need("sympy", True),
    _Need(
        "transformers", False, "5.3", "CVE-2026-4372, CVE-2026-5241: fxslim refuses such configurations itself", "hf"
    ),
    _Need("tokenizers", False, extra="hf"),
)
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")


def examine() -> list[Finding]:
    """Findings on versions, advisories, ONNX Runtime and its providers, and a tiny run end to end."""
    return [
        *(_package(need) for need in _NEEDS), _runtime(), _providers(), _attempt("plug-ins", _plugins),
        _attempt("self test", _self_test),
    ]  # fmt: skip


def _plugins() -> str:
    """Everything that plug-ins have registered, after their entry points were loaded."""
    if plugins.switched_off():
        return f"left out: {plugins.SWITCH} is set"
    return "; ".join(str(plugin).removeprefix("plug-in ") for plugin in plugins.load_plugins()) or "none"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version: (2, 13, 0) of `2.13.0+cpu`."""
    return tuple(int(n) for n in re.findall(r"\d+", text.partition("+")[0])[:3])


def _package(need: _Need) -> Finding:
    found = _version(need.package)
    if found is None:
        if need.needed:
            return Finding(need.package, "missing", f"pip install {need.package}")
        return Finding(
            need.package, "warning", f"not installed; Hugging Face models need it: pip install fxslim[{need.extra}]"
        )
    if need.safe is not None and _release(found) < _release(need.safe):
        state = "failed" if need.needed else "warning"
        return Finding(need.package, state, f"{found} is older than {need.safe} ({need.advisories})")
    return Finding(need.package, "ok", found)


def _runtime() -> Finding:
    found = [f"{name} {v}" for name in _RUNTIMES if (v := _version(name)) is not None]
    if not found:
        return Finding("ONNX Runtime", "missing", "pip install fxslim[cpu]")
    if len(found) > 1:
        return Finding("ONNX Runtime", "warning", f"{' and '.join(found)} overwrite each other's files; keep one")
    return Finding("ONNX Runtime", "ok", found[0])


def _providers() -> Finding:
    def look() -> str:
        return f"{', '.join(available_providers())}; auto chooses {provider_name(resolve_provider('auto'))}"

    return _attempt("providers", look)


def _attempt(name: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", action())
    except FxslimError as error:
        return Finding(name, "failed", error.what + (f"; {error.remedy}" if error.remedy else ""))
    except Exception as error:  # a broken installation fails in any way, and the doctor is there to say so
        return Finding(name, "failed", f"{type(error).__name__}: {error}")


def _self_test() -> str:
    """Captures, cuts, proves, exports and checks a small network."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    program = capture(model, (torch.randn(3, 8, generator=generator),), dynamic_shapes=({0: "batch"},))
    analysis = analyze(program)
    plan = make_plan(analysis, width=0.5)
    proof = prove(analysis, plan)
    slim = apply(analysis, plan)
    with tempfile.TemporaryDirectory(prefix="fxslim-") as scratch:
        file = Path(scratch) / "model.onnx"
        export_onnx(slim, file)
        check = check_onnx(slim, file, threads=1)
    if not proof.ok or not check.ok:
        raise RuntimeError(f"{proof}; {'; '.join(check.failures)}")
    share = slim.parameters() / program.parameters()
    return f"cut a small network to {share:.0%} of its parameters, proved it, exported it, and checked the ONNX file"
