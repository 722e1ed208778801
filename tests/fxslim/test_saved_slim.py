"""Slim programs that are saved and loaded: call by call what they were."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from fxslim.export import export_onnx
from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.serialize import load, save
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prune import Prune


def test_a_slim_program_comes_back_call_by_call(tmp_path: Path) -> None:
    """Attention whose values have become narrower than its keys returns another layout: tracing puts copies in."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (f(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.o(mixed.transpose(1, 2).reshape(x.shape))

    x = torch.randn(2, 5, 8)
    analysis = analyze(capture(Attention(), (x,), dynamic_shapes=({0: "b", 1: "s"},)))
    (group,) = [g for g in analysis.groups if g.kind == "value dims"]
    kept = torch.ones(group.shape, dtype=torch.bool)
    kept[..., 0] = False
    slim = Prune(Plan(analysis.program.fingerprint(), (Cut.from_mask(group, kept),)))(analysis).program
    save(slim, tmp_path / "a")
    again = load(tmp_path / "a")
    save(again, tmp_path / "b")
    first, second = (json.loads((tmp_path / n / "graph.json").read_text(encoding="utf-8")) for n in ("a", "b"))
    assert first["scopes"] == second["scopes"] and any(first["scopes"])
    for one, other in zip(first["nodes"], second["nodes"], strict=True):
        assert (one["target"], one.get("scope")) == (other["target"], other.get("scope")) or one["op"] == "placeholder"
    files = [export_onnx(program, tmp_path / "model.onnx").path.read_bytes() for program in (slim, again)]
    assert files[0] == files[1]
    y = torch.randn(3, 7, 8)
    assert torch.equal(Evaluator(again).run([y])[0], Evaluator(slim).run([y])[0])
