"""Writing by mask and by index: what a mask is made of decides what may be cut through it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxslim.graph.axes.groups import Analysis, analyze
from fxslim.graph.capture import capture
from fxslim.passes.planner import make_plan
from fxslim.passes.prove import prove


class Inserted(nn.Module):
    """Features of an image in the place of marked tokens, as vision-language models put them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.see, self.head = nn.Embedding(11, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        mask = (ids == 7).unsqueeze(-1)
        x = self.embed(ids)
        return self.head(x.masked_scatter(mask.expand_as(x), self.see(image)))


class Uneven(Inserted):
    """The same with a mask of its own for every feature."""

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x.masked_scatter(x > 0, self.see(image)))


class Blanked(Inserted):
    """Marked tokens become zero; features are added to numbered ones."""

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        x = self.embed(ids)
        x[ids == 7] = 0.0
        return self.head(x.index_add(1, torch.tensor([0, 2]), self.see(image)[:, :2]))


IDS = torch.tensor([[1, 7, 2, 7], [7, 3, 4, 5]])


def _analysis(module: nn.Module) -> Analysis:
    torch.manual_seed(0)
    return analyze(capture(module.eval(), (IDS, torch.randn(2, 4, 5))))


def _proven(found: Analysis) -> bool:
    plan = make_plan(found, width=0.5)
    generator = torch.Generator().manual_seed(1)
    proof = prove(found, plan, [[IDS, torch.randn(2, 4, 5, generator=generator)]])
    return bool(plan.cuts) and proof.exact and max(o.error for o in proof.outputs) <= 1e-9


def test_features_are_cut_through_a_mask_of_whole_rows() -> None:
    found = _analysis(Inserted())
    assert found.unknown_ops == {}
    assert [g.size for g in found.prunable] == [6]
    assert _proven(found)


def test_features_stay_where_the_mask_differs_among_them() -> None:
    assert _analysis(Uneven()).prunable == ()


def test_features_are_cut_through_writes_by_mask_and_by_index() -> None:
    found = _analysis(Blanked())
    assert [g.size for g in found.prunable] == [6]
    assert _proven(found)
