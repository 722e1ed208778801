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
_DENSE = 0.8  # of the columns of a matrix; where fewer are left it is made smaller
_ROUNDS = 32  # positions are removed in portions of the remaining number over this


class Problem:
    """One consumer of a group: `weight: [g, n, k]`, `moment: [g, k, k]`, both float64, and `owner: [g, k]`, the number
    of the position that each column belongs to (-1: of another group)."""

    def __init__(self, weight: Tensor, moment: Tensor, owner: Tensor) -> None:
        self.moment = moment
        diagonal = moment.diagonal(dim1=1, dim2=2)
        damping = RIDGE * diagonal.mean(-1, keepdim=True).clamp(min=1e-300).expand_as(diagonal)
        inverse = _inverse(moment + torch.diag_embed(damping))
        self._blocks = [_Block(*parts) for parts in zip(weight, inverse, owner, strict=True)]

    @property
    def weight(self) -> Tensor:
        """The weight as it is now, zero where columns are gone: [g, n, k]."""
        return torch.stack([block.whole() for block in self._blocks])

    def scores(self, total: int) -> Tensor:
        """The cost of each position by itself: [total]."""
        result = torch.zeros(total, dtype=torch.float64)
        for block in self._blocks:
            result[block.positions] += block.scores()
        return result

    def remove(self, chosen: Tensor) -> float:
        """Eliminates positions together, from here on; returns the cost."""
        return sum(block.remove(torch.isin(block.positions, chosen)) for block in self._blocks)


class _Block:
    """One block of a problem. Matrices become smaller as columns go: most of the work is in products of them."""

    def __init__(self, weight: Tensor, inverse: Tensor, owner: Tensor) -> None:
        self._size = len(owner)
        self._weight, self._inverse = weight.clone(), inverse  # [n, l], [l, l]: of the columns that are here
        self._here = torch.arange(len(owner))  # [l]
        self._gone = torch.zeros(len(owner), dtype=torch.bool)  # [l]
        order = owner.argsort(stable=True)
        order = order[owner[order] >= 0]
        self.positions, counts = torch.unique_consecutive(owner[order], return_counts=True)  # [p]
        assert len(counts) == 0 or bool((counts == counts[0]).all()), "positions own equal numbers of columns"
        # [p, m]: where the columns of each position are
        self._columns = order.reshape(len(self.positions), -1) if len(self.positions) else order.reshape(0, 1)

    def whole(self) -> Tensor:
        """The weight over all columns: [n, k]."""
        result = self._weight.new_zeros(len(self._weight), self._size)
        result[:, self._here] = self._weight
        return result

    def scores(self) -> Tensor:
        """The cost of each position by itself: [p]."""
        columns = self._columns
        if columns.shape[1] == 1:
            index = columns.flatten()
            return self._weight[:, index].square().sum(0) / self._inverse.diagonal()[index].clamp(min=1e-300)
        own = self._inverse[columns[:, :, None], columns[:, None, :]]  # [p, m, m]
        weight = self._weight[:, columns].permute(1, 2, 0)  # [p, m, n]
        return (weight * _solve(own, weight)).sum((1, 2))

    def remove(self, gone: Tensor) -> float:
        """Eliminates the positions that `gone: [p]` says; returns the cost."""
        if not bool(gone.any()):
            return 0.0
        index = self._columns[gone].flatten()
        rows = self._inverse[index]
        step = _solve(rows[:, index], rows)  # [m, l]
        part = self._weight[:, index]
        cost = float((part * _solve(rows[:, index], part.t()).t()).sum())
        self._weight -= part @ step
        self._weight[:, index] = 0
        self._inverse -= rows.t() @ step
        # What is rounding here would come back into the weight.
        self._inverse[index], self._inverse[:, index] = 0, 0
        self.positions, self._columns = self.positions[~gone], self._columns[~gone]
        self._shrink(index)
        return cost

    def _shrink(self, index: Tensor) -> None:
        """Leaves out the columns that are gone, once they are many: to copy what stays costs something too."""
        self._gone[index] = True
        stays = ~self._gone
        left = int(stays.sum())
        if left > _DENSE * len(stays):
            return
        moved = stays.cumsum(0) - 1
        self._columns, self._here = moved[self._columns], self._here[stays]
        self._weight, self._inverse = self._weight[:, stays], self._inverse[stays][:, stays]
        self._gone = torch.zeros(left, dtype=torch.bool)


def _inverse(matrix: Tensor) -> Tensor:
    """Of positive definite matrices: [g, k, k]; in half the time of a general one."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    found: Tensor = torch.linalg.inv(matrix) if bool(failed.any()) else torch.cholesky_inverse(factor)
    return found


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
