"""What a result depends on, as hashes: the model, the data, the versions, this package's own code."""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fxslim import plugins
from fxslim.data import Batches
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.passes.statistics import digest
from fxslim.recipe import Pinned
from fxslim.versions import versions

__all__ = [
    "code_digest",
    "drift",
    "files_digest",
    "key_of",
    "model_digest",
    "pins_of",
    "refuse_other_data",
    "refuse_other_model",
]

_LEFT_OUT = ("machine",)


def model_digest(program: Program) -> str:
    """The SHA-256 of a program's structure, its interface (names, example sizes, what is dynamic) and the values of its
    weights."""
    inputs = [(tuple(x.shape), str(x.dtype)) for x in program.example_inputs]
    names = program.input_names, program.output_names, program.names
    weights = digest([(program.weights[name] for name in sorted(program.info))])
    text = f"{program.fingerprint()}|{inputs}|{names}|{program.dynamic}|{program.caches}|{weights}"
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """The SHA-256 of this package's code: what another state of it left behind is not to be used."""
    code = hashlib.sha256()
    for file in sorted(_code()):
        code.update(file.read_bytes())
    return code.hexdigest()


def _code() -> Iterator[Path]:
    import fxslim.export
    import fxslim.graph
    import fxslim.passes

    for package in (fxslim, fxslim.graph, fxslim.passes, fxslim.export):
        yield from Path(package.__path__[0]).rglob("*.py")


def key_of(**facts: Any) -> str:
    """A name for what depends on these JSON values, this code, its libraries and what plug-ins have registered."""
    made_by = {"code": code_digest(), "versions": versions(), "plugins": plugins.facts(), "modules": _plugin_code()}
    text = json.dumps({**facts, **made_by}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _plugin_code() -> dict[str, str]:
    """A hash of each module that registered something; of one without a file (a notebook) no two are alike."""
    found = {}
    for name in {plugin.module for plugin in plugins.active()}:
        file = getattr(sys.modules.get(name), "__file__", None)
        found[name] = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else secrets.token_hex(8)
    return found


def files_digest(files: Iterable[Path]) -> dict[str, str]:
    """The SHA-256 of each file by its name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def pins_of(program: Program, calibration: Batches | None, evaluation: Batches | None) -> Pinned:
    """What a recipe says of the model and the data that a result was made from."""
    used = {name: text for name, text in versions().items() if name not in _LEFT_OUT}
    learned, held = (None if batches is None else batches.sha256 for batches in (calibration, evaluation))
    return Pinned(model_digest(program), learned, held, used)


def refuse_other_model(pinned: Pinned, program: Program) -> None:
    """Returns if the model is the one that a recipe was made with, or the recipe does not say.

    Raises:
        InputError: it is another one.
    """
    if pinned.model is not None and pinned.model != model_digest(program):
        raise _other("model")


def refuse_other_data(pinned: Pinned, calibration: Batches | None, evaluation: Batches | None) -> None:
    """The same for the data.

    Raises:
        InputError: it is other data, or there is none.
    """
    for name, batches in (("calibration", calibration), ("evaluation", evaluation)):
        wanted: str | None = getattr(pinned, name)
        if wanted is not None and (batches is None or batches.sha256 != wanted):
            raise _other(f"{name} data")


def drift(before: Mapping[str, str], now: Mapping[str, str] | None = None) -> list[str]:
    """One line for each version that differs from what a result was made with."""
    now = versions() if now is None else now
    return [
        f"made with {name} {version}, here is {now.get(name, 'none')}"
        for name, version in before.items()
        if name not in _LEFT_OUT and now.get(name) != version
    ]


def _other(what: str) -> InputError:
    return InputError(
        f"the {what} is not what the recipe was made with: its hash differs",
        rule="`pinned` in the recipe",
        remedy=f"bring the {what} back, or delete the line under `pinned` to go on with the new one",
    )
