"""The refit: closed-form least squares for a consumer's kept columns.

With H = [X 1]^T [X 1], kept columns K (and the constant column where there is a bias), W the whole weight with its
bias and d the ridge, the refit minimises ||X W^T - X_K W_K'^T||^2 + d ||W_K' - W_K||^2:

    W_K' = (W H[:, K] + d W_K) (H[K, K] + d I)^-1

For d -> 0 this is the restoration of FASP (arXiv 2501.09412) and the exact update of OBS (Hassibi 1993) for a set of
columns; drawing the ridge towards the present weights instead of zero makes a refit with everything kept the identity
for any d. All solves are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxslim.passes.statistics import SecondMoment

__all__ = ["FEW_TOKENS", "LADDER", "Refit", "mean_error", "refit", "residual", "shift_bias", "solve_once"]

# Ridges relative to the mean diagonal of H, tried by held-out error; a singular H moves up instead of crashing.
LADDER = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
FEW_TOKENS = 4.0  # for each column: with fewer a refit may not carry over, and held-out errors have several leasts
_STRIP = 384  # columns of a second moment that are multiplied at once


@dataclass(frozen=True)
class Refit:
    """A refitted weight and what is known of it."""

    weight: Tensor  # [g, n, k], removed columns zero
    bias: Tensor | None  # [g, n]
    ridge: float | None  # relative; None where no system was solved
    before: float  # relative residual of plain slicing on held-out data
    after: float  # relative residual of what is returned, on held-out data
    tokens: int
    columns: int
    reason: str = ""  # why plain slicing was kept

    @property
    def accepted(self) -> bool:
        """Whether the refit replaces plain slicing."""
        return not self.reason


def refit(
    weight: Tensor,
    bias: Tensor | None,
    kept: Tensor,
    train: SecondMoment,
    held_out: SecondMoment,
    ladder: Sequence[float] = LADDER,
) -> Refit:
    """The refit of `weight: [g, n, k]` (and `bias: [g, n]`) for kept columns `kept: [g, k]` bool.

    The ridge is chosen on held-out data; where none improves on plain slicing there, plain slicing is returned. The
    accepted refit then uses all data.
    """
    target, kept, plain = _cut(weight, bias, kept, train.matrix.device)
    mask = torch.cat([kept, torch.full_like(kept[:, :1], bias is not None)], dim=1)
    systems = [_System.of(target[block], mask[block], train.matrix[block]) for block in range(len(target))]
    scale = max(float(residual(target, torch.zeros_like(target), held_out)), 1e-300)
    before = float(residual(target, plain, held_out)) / scale
    best, best_ridge = before, None
    for ridge in ladder:
        candidate = _solve(systems, plain, ridge)
        if candidate is not None:
            error = float(residual(target, candidate, held_out)) / scale
            if error < best:
                best, best_ridge = error, ridge
            elif best_ridge is not None and train.count >= FEW_TOKENS * mask.shape[1]:
                break  # past the least: larger ridges draw further; with little data there may be a further least
    candidate, count, columns = None, train.count + held_out.count, int(mask.sum(1).max())
    final = None
    if best_ridge is not None:
        for block in range(len(target)):
            systems[block] = _System.of(target[block], mask[block], train.matrix[block] + held_out.matrix[block])
        final = _solve(systems, plain, best_ridge)
    if final is None:
        reason = "no ridge lowered the residual on held-out data"
        sliced, bias = (weight * kept.unsqueeze(1).to(weight.device)).cpu(), None if bias is None else bias.cpu()
        return Refit(sliced, bias, None, before, before, count, columns, reason)
    final = final.cpu()
    new_bias = None if bias is None else final[..., -1]
    return Refit(final[..., :-1], new_bias, best_ridge, before, best, count, columns)


def solve_once(
    weight: Tensor, bias: Tensor | None, kept: Tensor, moment: SecondMoment, ridge: float
) -> tuple[Tensor, Tensor | None] | None:
    """The refit of [g, n, k] and [g, n] at one ridge, for kept columns [g, k], which nothing judges; None where the
    system is singular."""
    target, kept, plain = _cut(weight, bias, kept, moment.matrix.device)
    mask = torch.cat([kept, torch.full_like(kept[:, :1], bias is not None)], dim=1)
    systems = [_System.of(target[block], mask[block], moment.matrix[block]) for block in range(len(target))]
    found = _solve(systems, plain, ridge)
    if found is None:
        return None
    found = found.cpu()
    return found[..., :-1], None if bias is None else found[..., -1]


def shift_bias(weight: Tensor, bias: Tensor | None, kept: Tensor, train: SecondMoment, held_out: SecondMoment) -> Refit:
    """The bias takes over the mean of what removed columns contributed, W_removed E[x_removed]; the weights that stay
    are as they were (FLAP, An 2024, section 3.3). Shapes as for `refit`.

    Without a bias, or where this does not lower the residual on held-out data, plain slicing is returned.
    """
    target, kept, plain = _cut(weight, bias, kept, train.matrix.device)
    scale = max(float(residual(target, torch.zeros_like(target), held_out)), 1e-300)
    before, both = float(residual(target, plain, held_out)) / scale, train + held_out
    sliced, columns = (weight.to(kept.device) * kept.unsqueeze(1)).cpu(), kept.shape[1]
    bias = None if bias is None else bias.cpu()
    if bias is None:
        return Refit(sliced, None, None, before, before, both.count, columns, "there is no bias")
    after = float(residual(target, _shifted(target, plain, train), held_out)) / scale
    if not after < before:
        reason = "it did not lower the residual on held-out data"
        return Refit(sliced, bias, None, before, before, both.count, columns, reason)
    return Refit(sliced, _shifted(target, plain, both)[..., -1].cpu(), None, before, after, both.count, columns)


def _shifted(target: Tensor, plain: Tensor, moment: SecondMoment) -> Tensor:
    """[W b] with the mean of what is missing added to b."""
    means = moment.matrix[:, -1] / max(1, moment.count)  # [g, k + 1]
    result = plain.clone()
    result[..., -1] += torch.einsum("gnk,gk->gn", target - plain, means)
    return result


def _cut(weight: Tensor, bias: Tensor | None, kept: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """[W b], the kept columns, and [W b] with the others zero, where the solve is done."""
    target, kept = _extended(weight, bias).to(device), kept.to(device)
    return target, kept, target * torch.cat([kept, torch.ones_like(kept[:, :1])], dim=1).unsqueeze(1)


def _extended(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[W b] in float64; without a bias the last column is zero."""
    last = torch.zeros_like(weight[..., :1]) if bias is None else bias.unsqueeze(-1)
    return torch.cat([weight, last], dim=-1).double()


@dataclass(frozen=True)
class _System:
    """What all ridges share: the kept columns, their second moment and what the solution is to be, of one block."""

    index: Tensor  # [k'] of the columns, the constant last where there is one
    biased: bool
    matrix: Tensor  # [k', k']
    right: Tensor  # [n, k']

    @staticmethod
    def of(target: Tensor, mask: Tensor, matrix: Tensor) -> _System:
        """Of `target: [n, k + 1]`, with `mask: [k + 1]` bool and `matrix: [k + 1, k + 1]`."""
        index = mask.nonzero().flatten()
        return _System(index, bool(mask[-1]), matrix[index[:, None], index], target @ matrix[:, index])


def _solve(systems: Sequence[_System], plain: Tensor, ridge: float) -> Tensor | None:
    """The refit [g, n, k + 1] at one ridge, drawn to `plain`; None where a system is singular."""
    result = plain.clone()
    for block, system in enumerate(systems):
        if not len(system.index):
            continue
        diagonal = system.matrix.diagonal()
        damping = torch.full_like(diagonal, ridge * float(diagonal.mean()))
        damping[diagonal <= 0] = 1.0  # a dead column keeps its weight, whatever the scale
        if system.biased:
            damping[-1] = 1e-12 * float(diagonal[-1])  # the constant is not drawn anywhere
        damped = system.matrix.clone()
        damped.diagonal().add_(damping)
        right = system.right + plain[block][:, system.index] * damping
        factor, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            return None
        solution = torch.cholesky_solve(right.t(), factor).t()
        if not bool(torch.isfinite(solution).all()):
            return None
        result[block][:, system.index] = solution
    return result


def mean_error(weight: Tensor, candidate: Tensor, moment: SecondMoment) -> tuple[float, float]:
    """The squared error that the mean over all tokens makes when `candidate: [g, n, k]` replaces `weight`, relative to
    the output and relative to the whole error: what a bias could take over."""
    target, new = (_extended(w, None).to(moment.matrix.device) for w in (weight, candidate))
    means = moment.matrix[:, -1] / max(1, moment.count)
    error = moment.count * float(torch.einsum("gnk,gk->gn", target - new, means).square().sum())
    output, whole = (float(residual(target, other, moment)) for other in (torch.zeros_like(target), new))
    return error / max(output, 1e-300), error / max(whole, 1e-300)


def residual(target: Tensor, candidate: Tensor, moment: SecondMoment) -> Tensor:
    """||X (W - W')^T||^2 summed over blocks: tr(D H D^T), from the second moment alone, whose symmetry halves the
    work."""
    difference, total = target - candidate, target.new_zeros(())
    for start in range(0, difference.shape[-1], _STRIP):
        end = start + _STRIP
        product = difference[..., start:end] @ moment.matrix[:, start:end, start:]  # [g, n, k + 1 - start]
        product[..., end - start :] *= 2
        total += torch.linalg.vecdot(product.flatten(), difference[..., start:].flatten())
    return total.clamp(min=0)
