from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxslim.data import load_batches
from fxslim.export import export_onnx
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.graph.program import Program
from fxslim.pipeline import SlimOptions
from fxslim.report_variants import variant_line, variant_rows
from fxslim.variants import FILES, Serving, make_variant, refuse_narrow, refuse_static

COSTS = {"file_bytes": [1, 10_000]}


def serving(folder: Path, dtype: torch.dtype = torch.float32) -> Serving:
    """A perceptron with calibration data; nothing of a source is needed without evaluation data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.GELU(), nn.Linear(40, 12)).eval()
    program = capture(model, (torch.randn(4, 12),), {}, ({0: "batch"},))
    export_onnx(program, folder / "model.onnx")
    data = load_batches([torch.randn(12) for _ in range(16)], program)
    return Serving(program, None, data, None, (torch.randn(1, 12),), 20, "cpu", 1, 0.1, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["float16", "dynamic", "static"])
def test_a_variant_is_written_checked_and_timed(kind: str, tmp_path: Path) -> None:
    found = make_variant(kind, tmp_path, serving(tmp_path)).to_dict()
    assert found["ok"], found["failures"]
    assert tmp_path.joinpath(FILES[kind]).is_file()
    assert found["check"]["ok"]
    assert found["latency"]["candidate"] == kind
    line = variant_line(found, COSTS, None)
    assert FILES[kind] in line
    assert "FAILED" not in line
    assert variant_rows(found)


def test_bfloat16_that_cannot_be_checked_fails_and_says_what_to_do(tmp_path: Path) -> None:
    found = make_variant("bfloat16", tmp_path, serving(tmp_path)).to_dict()
    assert not found["ok"]
    assert "--provider cuda" in found["failures"][0]
    assert tmp_path.joinpath("model_bf16.onnx").is_file()
    assert variant_line(found, COSTS, None).startswith("bfloat16: FAILED: ")
    assert any("FAILED" in row for row in variant_rows(found))


def test_a_variant_that_cannot_be_made_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise AssertionError("no")

    monkeypatch.setattr("fxslim.export.quantize._quantize", broken)
    found = make_variant("dynamic", tmp_path, serving(tmp_path))
    assert found.file is None
    assert "cannot quantise" in found.failures[0]
    assert variant_line(found.to_dict(), COSTS, None).startswith("int8, dynamic: FAILED")


def cached() -> Program:
    class Cached(nn.Module):
        def forward(self, x: torch.Tensor, past: torch.Tensor) -> dict[str, torch.Tensor]:
            present = torch.cat([past, x], 1)
            return {"out": present.sum(1), "present": present}

    dims = ({1: "new"}, {1: "past"})
    return capture(Cached(), (torch.randn(2, 3, 4), torch.randn(2, 5, 4)), {}, dims, caches={"past": "present"})


def test_static_ranges_need_data_and_no_caches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs calibration data"):
        refuse_static(serving(tmp_path).program, None)
    with pytest.raises(InputError, match="caches"):
        refuse_static(cached(), object())


@pytest.mark.parametrize(("option", "value"), [("onnx_dtype", "int4"), ("quantize", "int4")])
def test_unknown_types_are_refused_before_the_work(option: str, value: str) -> None:
    with pytest.raises(InputError, match="int4"):
        SlimOptions(model="m", keep=0.5, **{option: value}).refuse_contradictions()  # type: ignore[arg-type]


def test_the_command_repeats_the_options() -> None:
    options = SlimOptions(model="m", keep=0.5, onnx_dtype="float16", quantize="dynamic")
    assert "--onnx-dtype float16 --quantize dynamic" in options.command(Path("out"))


@pytest.mark.parametrize("wanted", ["float16", "dynamic"])
def test_weights_in_half_precision_are_refused_before_the_work(wanted: str) -> None:
    program = capture(nn.Linear(4, 3).half(), (torch.randn(2, 4).half(),))
    refuse_narrow(program, [])
    with pytest.raises(InputError, match=f"{wanted} starts from float32"):
        refuse_narrow(program, [wanted])
