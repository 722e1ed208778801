"""First-order scores against gradients taken by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxslim.api import make_plan, prove
from fxslim.graph.axes.groups import analyze
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.passes.taylor import first_order, self_loss


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.down(torch.tanh(self.up(x)))}


def test_scores_are_the_products_of_weights_and_gradients() -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    batches = [(torch.randn(12, 6),), (torch.randn(12, 6),)]
    analysis = analyze(capture(model, batches[0]))
    (group,) = analysis.prunable
    found = first_order(analysis, [group], batches)[group.name]
    for (x,) in batches:
        logits = model(x)["logits"]
        (F.cross_entropy(logits, logits.argmax(-1)) / 2).backward()
    expected = torch.zeros(10)
    for weight, dim in ((model.up.weight, 1), (model.down.weight, 0)):
        assert weight.grad is not None
        expected += (weight * weight.grad).sum(dim).detach().abs()
    assert model.up.bias.grad is not None
    expected += (model.up.bias * model.up.bias.grad).detach().abs()
    torch.testing.assert_close(found.float(), expected)
    plan = make_plan(analysis, width=0.5, importance="taylor", calibration=batches)
    assert set(plan.cuts[0].kept) == set(expected.topk(5).indices.tolist())
    assert prove(analysis, plan).ok
    assert all(w.grad is None for w in analysis.program.weights.values()), "the program is left as it was"


def test_the_loss_of_a_language_model_is_that_of_its_text() -> None:
    class Bigrams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(9, 5), nn.Linear(5, 9)

        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(torch.tanh(self.table(input_ids)))}

    model, ids = Bigrams().eval(), torch.randint(0, 9, (3, 7))
    program = capture(model, (ids,))
    logits = model(ids)["logits"]
    wanted = F.cross_entropy(logits[:, :-1].reshape(-1, 9), ids[:, 1:].reshape(-1))
    torch.testing.assert_close(self_loss(program, (ids,), [logits]), wanted)


def test_what_has_no_logits_is_judged_by_its_square() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    program, y = capture(model, (x,)), model(x)
    torch.testing.assert_close(self_loss(program, (x,), [y]), y.square().mean() / 2)


def test_it_needs_data_and_something_to_differentiate() -> None:
    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.relu(self.up(x))).argmax(-1)

    analysis = analyze(capture(Choice(), (torch.randn(5, 4),)))
    with pytest.raises(InputError, match="'taylor' needs calibration data"):
        make_plan(analysis, width=0.5, importance="taylor")
    with pytest.raises(InputError, match="has a gradient"):
        make_plan(analysis, width=0.5, importance="taylor", calibration=[(torch.randn(5, 4),)])
