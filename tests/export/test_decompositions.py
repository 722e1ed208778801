"""Decompositions are left out where they change nothing, and only there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
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


def test_composite_operators_stay_where_a_decomposition_leaves_them_whole() -> None:
    foreign = _exported("ravel")
    assert aten.ravel.default in _targets(foreign)
    assert aten.ravel.default not in _targets(foreign.run_decompositions({}))
    for model in (nn.Linear(4, 4), nn.Flatten(), nn.Unflatten(1, (2, 2))):
        exported = decomposed_where_needed(torch.export.export(model, (torch.randn(3, 4),)))
        assert (exported.run_decompositions({}) is exported) == isinstance(model, nn.Linear)


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
    traced: list[ExportedProgram] = []
    whole = ExportedProgram.run_decompositions
    monkeypatch.setattr(
        ExportedProgram, "run_decompositions", lambda self, *args: traced.append(self) or whole(self, *args)
    )
    make, args, dynamic = NETS[name]
    program = capture(randomise(make()), args(), {}, dynamic)
    traced.clear()
    spared = _operators(program, tmp_path / "spared.onnx")
    assert len(traced) == (name == "conv")  # its adaptive pool is decomposed
    monkeypatch.setattr(to_onnx, "decomposed_where_needed", lambda exported: exported)
    assert spared == _operators(program, tmp_path / "all.onnx")
    assert len(traced) == 1 + (name == "conv")


def _operators(program: Program, path: Path) -> list[tuple[str, list[str]]]:
    """Of every call what it is and its attributes, but for `allowzero`, which only matters for a 0 in a shape."""
    graph = onnx.load(export_onnx(program, path).path).graph
    return sorted((n.op_type, sorted(str(a) for a in n.attribute if a.name != "allowzero")) for n in graph.node)


class Folded(nn.Module):
    """Heads folded into the batch, as a decoder does with what its cache holds."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.make(x)
        b, t = y.shape[:2]
        return y.reshape(b, t, 2, 3).transpose(1, 2).reshape(b * 2, t, 3) + 1


def test_a_size_of_zero_stays_zero(tmp_path: Path) -> None:
    program = capture(Folded(), (torch.randn(2, 3, 4),), {}, ({0: "batch", 1: "length"},))
    path = export_onnx(program, tmp_path / "m.onnx").path
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for length in (0, 1, 5):
        x = np.zeros((2, length, 4), np.float32)
        (found,) = session.run(None, {session.get_inputs()[0].name: x})
        assert found.shape == (4, length, 3)


def test_a_cache_that_is_empty_at_first_is_exported(tmp_path: Path) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            b, t = x.shape[:2]
            present = torch.cat([past, self.make(x).reshape(b, t, 2, 3).transpose(1, 2)], 2)
            return past.reshape(b * 2, past.shape[2], 3).sum((1, 2)) + present.sum(), present

    dims = ({0: "batch", 1: "length"}, {0: "batch", 2: "past"})
    args = (torch.randn(2, 3, 4), torch.randn(2, 2, 5, 3))
    program = capture(Step(), args, {}, dims, caches={"past": "output_1"})
    result = check_onnx(program, export_onnx(program, tmp_path / "m.onnx").path)
    assert result.ok, result.failures


@pytest.mark.parametrize("name", ["deg2rad", "logit"])
def test_an_operator_that_has_to_be_decomposed_is_exported_all_the_same(name: str, tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), Function(name)), (torch.randn(3, 4),), {}, None)
    assert check_onnx(program, export_onnx(program, tmp_path / "m.onnx").path).ok
