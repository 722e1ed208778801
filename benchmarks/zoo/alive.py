"""Random weights that keep activations alive: what a library initialises to a constant would let errors pass unseen."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["enliven"]

_SMALL = 0.1  # constants below this (layer scales of 1e-6, zeros) make a branch invisible
_SPREAD = 0.2
_CODEBOOKS = ("embed", "embed_sum")  # of vector quantisers: zeros until they are trained


def enliven(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int = 0) -> None:
    """Gives every constant parameter a spread, and every batch norm statistics of the data that really arrives.

    Zero biases, ones of norms, layer scales of 1e-6 and zero-initialised last norms would make whole branches, or a
    mix-up of positions, invisible; statistics of a freshly made batch norm let activations vanish or overflow in depth.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() and _is_constant(parameter):
                value = float(parameter.flatten()[0])
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.copy_(_centre(value) + _SPREAD * max(abs(value), _SMALL) * noise)
        for name, buffer in model.named_buffers():
            if name.rpartition(".")[2] in _CODEBOOKS and _is_constant(buffer):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
        _settle_batch_norms(model, args, kwargs)


def _is_constant(tensor: torch.Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _centre(value: float) -> float:
    """Biases stay around zero; tiny scales are raised."""
    return value if value == 0.0 or abs(value) >= _SMALL else 0.3 * (1 if value > 0 else -1)


def _settle_batch_norms(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    before = [(m.training, m.momentum) for m in norms]
    for norm in norms:
        norm.train()
        norm.momentum = None  # a plain average
        norm.reset_running_stats()
    try:
        model(*args, **kwargs)
    except ValueError:  # one value per channel: no statistics to take, those of initialisation stay
        for norm in norms:
            norm.reset_running_stats()
    finally:
        for norm, (training, momentum) in zip(norms, before, strict=True):
            norm.train(training)
            norm.momentum = momentum
            assert norm.running_var is not None
            norm.running_var.clamp_(min=1e-3)
