"""Second-order selection: positions are eliminated one after the other, each time those whose loss costs least after
the columns that stay have been refitted.

With H = X^T X of a consumer's input, removing the columns G of its weight W and refitting the others costs

    tr(W_G [(H^-1)_GG]^-1 W_G^T)        and leaves        W - W_G [(H^-1)_GG]^-1 (H^-1)_G,:

(OBS, Hassibi 1993; for sets of columns ZipLM, Kurtic 2023, and OSSCAR, Meng 2024). The next step starts from the
refitted weight and the inverse without G. For X^T X = I the cost is the squared norm of the column: selection by
magnitude.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Elimination", "Problem", "eliminate"]

RIDGE = 1e-3  # of the mean diagonal of H: what the data does not show is not free
_ROUNDS = 32  # positions are removed in portions of the remaining number over this


@dataclass
class Problem:
    """One consumer of a group: `weight: [g, n, k]`, `moment: [g, k, k]`, both float64, and `owner: [g, k]`, the number
    of the position that each column belongs to (-1: of another group)."""

    weight: Tensor
    moment: Tensor
    owner: Tensor

    def __post_init__(self) -> None:
        self.weight = self.weight.clone()
        diagonal = self.moment.diagonal(dim1=1, dim2=2)
        damping = RIDGE * diagonal.mean(-1, keepdim=True).clamp(min=1e-300).expand_as(diagonal)
        self.inverse = torch.linalg.inv(self.moment + torch.diag_embed(damping))
        self._columns = [self._of_block(block) for block in range(len(self.owner))]

    def _of_block(self, block: int) -> tuple[Tensor, Tensor]:
        """The positions in a block, and the columns of each: [p], [p, m]."""
        owner = self.owner[block]
        order = owner.argsort(stable=True)
        order = order[owner[order] >= 0]
        positions, counts = torch.unique_consecutive(owner[order], return_counts=True)
        assert len(counts) == 0 or bool((counts == counts[0]).all()), "positions own equal numbers of columns"
        return positions, order.reshape(len(positions), -1) if len(positions) else order.reshape(0, 1)

    def scores(self, total: int) -> Tensor:
        """The cost of each position by itself: [total]."""
        result = torch.zeros(total, dtype=torch.float64)
        for block, (positions, columns) in enumerate(self._columns):
            if not len(positions):
                continue
            if columns.shape[1] == 1:
                index = columns.flatten()
                squares = self.weight[block][:, index].square().sum(0)
                result[positions] += squares / self.inverse[block].diagonal()[index].clamp(min=1e-300)
                continue
            own = self.inverse[block][columns[:, :, None], columns[:, None, :]]  # [p, m, m]
            weight = self.weight[block][:, columns].permute(1, 2, 0)  # [p, m, n]
            result[positions] += (weight * _solve(own, weight)).sum((1, 2))
        return result

    def remove(self, chosen: Tensor) -> float:
        """Eliminates positions together, from here on; returns the cost."""
        cost = 0.0
        for block, (positions, columns) in enumerate(self._columns):
            gone = torch.isin(positions, chosen)
            if not bool(gone.any()):
                continue
            index = columns[gone].flatten()
            inverse, weight = self.inverse[block], self.weight[block]
            rows = inverse[index]
            step = _solve(rows[:, index], rows)  # [m, k]
            part = weight[:, index]
            cost += float((part * _solve(rows[:, index], part.t()).t()).sum())
            weight -= part @ step
            weight[:, index] = 0
            inverse -= rows.t() @ step
            inverse[index], inverse[:, index] = 0, 0  # what is rounding here would come back into the weight
            self._columns[block] = (positions[~gone], columns[~gone])
        return cost


@dataclass(frozen=True)
class Elimination:
    """What was eliminated: `mask: [*batch, size]` of what stays, `losses: [size + 1]`, the cost of keeping 0, 1, ...,
    size positions (infinite below the last step), and the refitted weights of the consumers."""

    mask: Tensor
    losses: Tensor
    weights: tuple[Tensor, ...]

    @property
    def count(self) -> int:
        """How many positions every row keeps."""
        return int(self.mask.reshape(-1, self.mask.shape[-1])[0].sum())


def eliminate(
    problems: Sequence[Problem],
    shape: Sequence[int],
    count: int,
    *,
    start: Elimination | None = None,
    single: bool = False,
) -> Elimination:
    """Eliminates until `count` positions remain in every row of `shape: [*batch, size]`, from the beginning or from
    where `start` ended on the same problems (which change).

    Rows lose positions together: the cheapest of each. With `single` one at a time, else in small portions.
    """
    size = shape[-1]
    rows = torch.Size(shape[:-1]).numel()
    stays = torch.ones(rows, size, dtype=torch.bool) if start is None else start.mask.reshape(rows, size).clone()
    losses = torch.full((size + 1,), float("inf"), dtype=torch.float64) if start is None else start.losses.clone()
    left = int(stays[0].sum())
    if start is None:
        losses[size] = 0.0
    total = float(losses[left])
    while left > count:
        portion = min(left - count, 1 if single else max(1, left // _ROUNDS))
        scores = torch.stack([p.scores(rows * size) for p in problems]).sum(0).reshape(rows, size)
        cheapest = scores.masked_fill(~stays, float("inf")).topk(portion, dim=1, largest=False).indices
        stays.scatter_(1, cheapest, False)
        chosen = (cheapest + torch.arange(rows).unsqueeze(1) * size).flatten()
        before = total
        total += sum(p.remove(chosen) for p in problems)
        for step in range(1, portion + 1):
            losses[left - step] = before + (total - before) * step / portion
        left -= portion
    return Elimination(stays.reshape(*shape), losses, tuple(p.weight.clone() for p in problems))


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """`matrix^-1 right` for symmetric matrices, with the pseudo-inverse where one is singular."""
    solution: Tensor
    solution, failed = torch.linalg.solve_ex(matrix, right)
    return torch.linalg.pinv(matrix, hermitian=True).matmul(right) if bool(failed.any()) else solution
