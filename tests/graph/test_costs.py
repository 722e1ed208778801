"""Costs against the program itself and against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fxslim.graph.axes.groups import analyze
from fxslim.graph.costs import CostModel
from fxslim.passes.planner import make_plan
from fxslim.passes.prune import Prune
from tests.models.nets import captured

COUNTED = (
    "mlp",
    "gated",
    "resnet",
    "unet",
    "grouped",
    "conv_transpose",
    "attention",
    "vit",
    "decoder",
    "lora",
    "shared",
)


@pytest.mark.parametrize("name", COUNTED)
def test_macs_are_half_of_torchs_flops(name: str) -> None:
    net = captured(name)
    module, inputs = net.analysis.program.flat_module(), net.analysis.program.example_inputs
    # The counter knows nothing of the fused kernel of attention on CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        module(*inputs)
    costs = CostModel(net.analysis.axes)
    assert costs.macs() * 2 == counter.get_total_flops()
    assert sum(costs.macs_by_call().values()) == costs.macs()


@pytest.mark.parametrize("name", ["resnet", "attention", "shuffle"])
def test_predicted_costs_are_those_of_the_slim_program(name: str) -> None:
    analysis = captured(name).analysis
    plan = make_plan(analysis, width=0.5)
    slim = CostModel(analyze(Prune(plan)(analysis).program).axes)
    assert plan.predicted["params"][1] == slim.params()
    assert plan.predicted["macs"][1] == slim.macs()
    assert plan.predicted["bytes"][1] == slim.bytes()


def test_tied_weights_and_buffers() -> None:
    costs = CostModel(captured("tied").analysis.axes)
    assert costs.params() == 20 * 9 + 2 * 9 * 12 + 12 + 9
    resnet = captured("resnet").analysis
    parameters = sum(p.numel() for p in captured("resnet").model.parameters())
    buffers = sum(t.numel() for n, t in resnet.program.weights.items() if "running" in n)
    assert CostModel(resnet.axes).params() == parameters
    assert CostModel(resnet.axes).bytes() == 4 * (parameters + buffers)
