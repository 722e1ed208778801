"""Decompositions are left out where they change nothing, and only there."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from fxslim.export import to_onnx
from fxslim.export.check import check_onnx
from fxslim.export.decompositions import decomposed_where_needed
from fxslim.export.to_onnx import export_onnx
from fxslim.graph.capture import capture
from fxslim.graph.program import Program
from tests.export.nets import Attention, Mlp, ResidualConv, randomise

aten = torch.ops.aten


class Function(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.name == "relu_":
            return (x + 1).relu_()
        if self.name == "cond":
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))
        return getattr(torch, self.name)(x)


def _exported(name: str) -> ExportedProgram:
    return decomposed_where_needed(torch.export.export(Function(name), (torch.randn(3, 4),)))


def _targets(exported: ExportedProgram) -> set[object]:
    return {node.target for node in exported.graph.nodes if node.op == "call_function"}


def test_what_the_table_has_not_stays_as_it_is() -> None:
    exported = _exported("relu")
    assert exported.run_decompositions({aten.erfinv.default: lambda x: x}) is exported


def test_what_the_table_has_is_decomposed() -> None:
    exported = _exported("relu")
    found = exported.run_decompositions({aten.relu.default: lambda x: torch.clamp(x, min=0)})
    assert aten.relu.default in _targets(exported) and aten.relu.default not in _targets(found)
    x = torch.randn(3, 4)
    torch.testing.assert_close(found.module()(x), x.relu())


def test_no_table_stands_for_all_decompositions() -> None:
    exported = _exported("relu")
    assert exported.run_decompositions() is not exported


@pytest.mark.parametrize("name", ["relu_", "cond"])
def test_writes_and_graphs_of_their_own_are_decomposed(name: str) -> None:
    exported = _exported(name)
    assert exported.run_decompositions({}) is not exported


def test_composite_operators_need_a_translation_to_stay() -> None:
    foreign, translated = _exported("ravel"), _exported("t")
    assert aten.ravel.default in _targets(foreign) and aten.t.default in _targets(translated)
    assert aten.ravel.default not in _targets(foreign.run_decompositions({}))
    assert translated.run_decompositions({}) is translated


NETS = {
    "mlp": (Mlp, lambda: (torch.randn(4, 12),), ({0: "batch"},)),
    "conv": (ResidualConv, lambda: (torch.randn(2, 3, 9, 9),), ({0: "batch"},)),
    "attention": (
        Attention,
        lambda: (torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64)),
        ({0: "batch", 1: "sequence"},) * 2,
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_the_file_is_the_one_of_all_decompositions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    make, args, dynamic = NETS[name]
    program = capture(randomise(make()), args(), {}, dynamic)
    spared = _operators(program, tmp_path / "spared.onnx")
    monkeypatch.setattr(to_onnx, "decomposed_where_needed", lambda exported: exported)
    assert spared == _operators(program, tmp_path / "all.onnx")


def _operators(program: Program, path: Path) -> list[str]:
    return sorted(node.op_type for node in onnx.load(export_onnx(program, path).path).graph.node)


@pytest.mark.parametrize("name", ["deg2rad", "logit"])
def test_an_operator_that_has_to_be_decomposed_is_exported_all_the_same(name: str, tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), Function(name)), (torch.randn(3, 4),), {}, None)
    assert check_onnx(program, export_onnx(program, tmp_path / "m.onnx").path).ok
