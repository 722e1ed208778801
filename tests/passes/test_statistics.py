"""Second moments: taken strip by strip, added up in place, and kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx

from fxslim.graph.errors import InputError
from fxslim.graph.stores import Spill, WeightStore
from fxslim.passes import statistics
from fxslim.passes.statistics import Moments, SecondMoment

EXACT, SINGLE = 1e-12, 1e-4  # relative, of sums in float64 and of products in float32


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, EXACT), (torch.float32, SINGLE)])
@pytest.mark.parametrize("width", [1, 3, 4, 11])
def test_strips_come_to_the_whole_product(
    width: int, dtype: torch.dtype, allowed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_STRIP", 4)
    columns = torch.randn(2, 50, width, dtype=torch.float64)
    extended = torch.cat([columns, torch.ones(2, 50, 1, dtype=torch.float64)], 2)
    found = SecondMoment.of(columns.to(dtype)).matrix
    torch.testing.assert_close(found, extended.mT @ extended, rtol=allowed, atol=allowed * 50)
    torch.testing.assert_close(found, found.mT, rtol=allowed, atol=allowed * 50)
    assert found.dtype is torch.float64


def test_what_overflows_is_told() -> None:
    with pytest.raises(InputError, match="overflow"):
        SecondMoment.of(torch.full((1, 2, 2), 1e30))


def test_moments_wait_on_disk(tmp_path: Path) -> None:
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    moments = Moments(WeightStore({}, Spill(tmp_path, 1)))
    moments[a], moments[b] = SecondMoment(torch.ones(1, 3, 3)), SecondMoment(torch.zeros(1, 2, 2))
    assert len(list(tmp_path.iterdir())) == 2 and set(moments) == {a, b}
    assert torch.equal(moments[a].matrix, torch.ones(1, 3, 3))
    moments.clear()
    assert not list(tmp_path.iterdir())
