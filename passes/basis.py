"""Bases: for an axis between linear maps, the coordinates in which leaving out the last ones costs least.

Let a be the activations on an axis of d positions, S = E[a a^T], and C all that sums over the axis, K = C^T C (for a
product of two activations, the second moment of the other one). Keeping a subspace of r dimensions costs
E||C a - C P a||^2, which is least for the r leading eigenvectors U of K^1/2 S K^1/2; the new coordinates are
z = U^T K^1/2 a, read by C K^-1/2 U, and the cost is the sum of the eigenvalues left out.

This is the optimum of SVD-LLM (Wang 2024) and of MoDeGPT's and A3's attention modules (Lin 2024, Wong 2026), computed
from the outputs' side as Swift-SVD (2026) does: no Cholesky factor, and the pseudo-inverse of K^1/2 is exact because
C K^+1/2 K^1/2 = C.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Basis", "optimal_basis", "principal_axes", "rotation"]

_TINY = 1e-13  # eigenvalues below this share of the largest are rounding


@dataclass(frozen=True)
class Basis:
    """A change of coordinates, apart for each position of the batch axes. All float64.

    `forward: [*batch, d, d]` takes old coordinates to new ones, `backward: [*batch, d, d]` back;
    `energy: [*batch, d]` is what leaving out each new coordinate costs, descending.
    """

    forward: Tensor
    backward: Tensor
    energy: Tensor

    def matrix(self, reads: bool) -> Tensor:
        """What takes a place of the axis to new coordinates: [*batch, d, d]. Places that read it change with the
        inverse transpose."""
        return self.backward.mT if reads else self.forward

    def losses(self) -> Tensor:
        """The cost of keeping 0, 1, ..., d coordinates, summed over the batch: [d + 1], descending to zero."""
        tail = self.energy.flip(-1).cumsum(-1).flip(-1)
        tail = tail.reshape(-1, tail.shape[-1]).sum(0)
        return torch.cat([tail, tail.new_zeros(1)])


def optimal_basis(second: Tensor, gram: Tensor, ridge: float = 0.0) -> Basis:
    """The basis for `second` S and `gram` K, both [*batch, d, d].

    A ridge (a share of K's mean diagonal) is needed where K was estimated from data: what the data does not show may
    still occur.
    """
    size = gram.shape[-1]
    scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-300)[..., None, None]
    identity = torch.eye(size, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(gram / scale + ridge * identity)
    keep = values > _TINY * values[..., -1:].clamp(min=1e-300)
    roots = torch.where(keep, values, 0).sqrt()
    inverse = torch.where(keep, 1 / roots.clamp(min=1e-300), 0)
    root = vectors * roots.unsqueeze(-2) @ vectors.mT
    unroot = vectors * inverse.unsqueeze(-2) @ vectors.mT
    inner = root @ second @ root
    energy, directions = torch.linalg.eigh((inner + inner.mT) / 2)
    energy, directions = energy.flip(-1).clamp(min=0), directions.flip(-1)
    return Basis(directions.mT @ root, unroot @ directions, energy * scale.squeeze(-1))


def principal_axes(second: Tensor) -> Basis:
    """The rotation to the principal axes of `second` S [*batch, d, d]: what SliceGPT (Ashkboos 2024) turns a residual
    stream by, which many maps read."""
    energy, directions = torch.linalg.eigh(second)
    energy, directions = energy.flip(-1).clamp(min=0), directions.flip(-1)
    return Basis(directions.mT, directions, energy)


def rotation(second: Tensor, gram: Tensor) -> Basis:
    """The basis among rotations, for an axis that both sides hold in one and the same place (queries and keys of one
    fused weight): the principal directions of both together, ordered by what each costs alone.

    It is not the least cost of all bases: a rotation cannot weigh the two sides against each other.
    """

    def normed(matrix: Tensor) -> Tensor:
        return matrix / matrix.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-300)[..., None, None]

    directions = torch.linalg.eigh(normed(second) + normed(gram)).eigenvectors
    energy = torch.einsum("...ij,...ik,...kj->...j", directions, second, directions)
    energy = energy * torch.einsum("...ij,...ik,...kj->...j", directions, gram, directions)
    order = energy.argsort(dim=-1, descending=True)
    directions = torch.gather(directions, -1, order.unsqueeze(-2).expand_as(directions))
    return Basis(directions.mT, directions, energy.gather(-1, order).clamp(min=0))
