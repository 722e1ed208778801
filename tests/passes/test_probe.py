"""Probes against whole runs: what comes before a change is run once for all, and must not make a difference."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxslim.graph.axes.groups import analyze
from fxslim.graph.axes.select import Kept, Selection
from fxslim.graph.capture import capture
from fxslim.graph.evaluate import Evaluator, MaskedEvaluator
from fxslim.passes.divergence import divergence
from fxslim.passes.importance import magnitude, top
from fxslim.passes.probe import few_examples, probe
from fxslim.passes.survey import Curve

SAME = 1e-12  # float64, the same operations


class Deep(nn.Module):
    """Three blocks, so that groups begin at different depths; the last one is drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=True) for _ in range(2)]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(torch.tanh(self.layers(x)))}


def test_every_probe_is_a_run_with_that_change_alone() -> None:
    torch.manual_seed(0)
    inputs = (torch.randn(3, 4, 8, dtype=torch.float64),)
    analysis = analyze(capture(Deep().double().eval(), inputs))
    program = analysis.program
    groups = [g for g in analysis.prunable if g.size > 1]
    masks = {g.name: top(magnitude(analysis, g), g.size // 2) for g in groups}
    flat = torch.zeros(2, dtype=torch.float64)
    curves = {name: Curve(flat, 1, mask) for name, mask in masks.items()}
    weight = next(n for n in program.info if n.endswith("linear2.weight"))
    curves[weight] = Curve(flat, 1, None, {weight: program.weights[weight] * 0.5})
    curves = dict(sorted(curves.items(), reverse=True))  # not in the order of the graph
    probe(analysis, curves, inputs)

    original = Evaluator(program).run(inputs)
    for name, curve in curves.items():
        kept = {g.axis: Kept(g.batch, masks[name]) for g in groups if g.name == name}
        evaluator = MaskedEvaluator(analysis.axes, Selection(kept))
        if not kept:
            evaluator.set_weight(weight, program.weights[weight] * 0.5)
        wanted = divergence(program.output_names, original, evaluator.run(inputs))
        assert wanted > 0 and curve.effect is not None and abs(curve.effect - wanted) <= SAME * wanted, name
    assert len({c.effect for c in curves.values()}) == len(curves) > 4
    assert not curves[weight].weights, "what was tried is not held any longer"


def test_few_examples_have_few_rows() -> None:
    analysis = analyze(capture(Deep().eval(), (torch.randn(3, 4, 8),), dynamic_shapes=({0: "b", 1: "s"},)))
    batch = [torch.randn(6, 5, 8)]  # five rows of logits for each example
    assert [len(few_examples(analysis, batch, most)[0]) for most in (30, 29, 15, 9, 1)] == [6, 5, 3, 1, 1]
    (few,) = few_examples(analysis, batch, 15)
    assert torch.equal(few, batch[0][:3])


class Beside(nn.Module):
    """What stands beside `x` has its examples elsewhere, or refers to them by number."""

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
        if other.dtype == torch.int64:
            return {"logits": x[other]}
        return {"logits": other @ x if other.dim() == 2 else x + other.squeeze(0)}


EDGES = torch.zeros(2, 9, dtype=torch.int64)


@pytest.mark.parametrize(
    ("other", "dims"),
    [(torch.randn(6, 6), {0: "n", 1: "n"}), (EDGES, {1: "e"}), (torch.randn(1, 6, 8), {1: "n"})],
    ids=["mask", "edges", "state"],
)
def test_examples_that_cannot_be_told_apart_stay_together(other: torch.Tensor, dims: dict[int, str]) -> None:
    inputs = (torch.randn(6, 8), other)
    analysis = analyze(capture(Beside(), inputs, dynamic_shapes=({0: "n"}, dims)))
    assert [len(value) for value in few_examples(analysis, list(inputs), 2)] == [6, len(other)]


def test_a_batch_of_fixed_size_stays_whole() -> None:
    analysis = analyze(capture(Deep().eval(), (torch.randn(3, 4, 8),)))
    (whole,) = few_examples(analysis, [torch.randn(3, 4, 8)], 1)
    assert len(whole) == 3
