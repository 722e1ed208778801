"""What a result depends on: nothing that changes it may leave its name as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxslim import identity, plugins
from fxslim.graph.capture import capture
from fxslim.graph.program import Program
from fxslim.identity import drift, files_digest, key_of, model_digest


def made(*, rows: int = 2, dynamic: bool = True, scale: float = 1.0) -> Program:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        module[0].weight.mul_(scale)
    return capture(module, (torch.ones(rows, 4),), dynamic_shapes=({0: "batch"},) if dynamic else None)


def test_the_same_model_has_the_same_digest() -> None:
    assert model_digest(made()) == model_digest(made())


@pytest.mark.parametrize("other", [{"rows": 3}, {"dynamic": False}, {"scale": 1.0000001}])
def test_interface_and_values_count(other: dict[str, Any]) -> None:
    assert model_digest(made(**other)) != model_digest(made())


@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p, "names", {"input": "x"}),
        lambda p: setattr(p, "dynamic", {n: {0: "rows"} for n in p.dynamic}),
        lambda p: setattr(p, "example_inputs", tuple(x.double() for x in p.example_inputs)),
    ],
)
def test_names_dimensions_and_types_count(change: Callable[[Program], None]) -> None:
    program = made()
    other = copy.copy(program)
    change(other)
    assert model_digest(other) != model_digest(program)


def test_half_precision_has_a_digest() -> None:
    program = capture(nn.Linear(4, 2).bfloat16(), (torch.ones(2, 4, dtype=torch.bfloat16),))
    assert len(model_digest(program)) == 64


def test_what_a_plug_in_has_registered_and_its_code_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("# first")
    module = type("Module", (), {"__file__": str(file)})()
    monkeypatch.setitem(identity.sys.modules, "mine", module)
    alone = key_of(x=1)
    monkeypatch.setattr(plugins, "_ACTIVE", [plugins.Plugin("importance", "mine", "mine")])
    first = key_of(x=1)
    assert first == key_of(x=1) != alone
    file.write_text("# second")
    assert key_of(x=1) != first


def test_code_without_a_file_is_never_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_ACTIVE", [plugins.Plugin("importance", "mine", "not.a.module")])
    assert key_of(x=1) != key_of(x=1)


def test_files_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    before = files_digest([tmp_path / "a"])
    (tmp_path / "a").write_text("2")
    assert files_digest([tmp_path / "a"]) != before


def test_versions_that_differ_are_named() -> None:
    assert drift({"torch": "2.0", "machine": "z80", "numpy": "1"}, {"torch": "2.1", "numpy": "1"}) == [
        "made with torch 2.0, here is 2.1"
    ]
