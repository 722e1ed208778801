"""What passes that preserve the numerics promise: the same outputs for the example inputs."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from fxslim.graph.errors import VerifyError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.graph.verify import verify
from fxslim.passes.caches import CacheMoves

__all__ = ["random_inputs", "relative_difference", "verify_outputs", "verify_same_function"]

# Relative to the largest magnitude of an output: sums in another order, in the program's own precision.
TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2
_HALF = (torch.float16, torch.bfloat16)


def verify_same_function(
    result: Program, original: Program, inputs: Sequence[Tensor] | None = None, moves: CacheMoves | None = None
) -> None:
    """Checks that `result` is well formed, keeps its interface, and computes what `original` does on `inputs`, by
    default its examples. Caches that `moves` takes to other coordinates are compared in those.

    Raises:
        VerifyError: it does not, or it cannot be run because its weights are on the meta device.
    """
    if _untouched(result, original):
        return
    verify(result, original)
    if any(isinstance(entry, Tensor) and entry.is_meta for entry in map(original.weights.entry, original.weights)):
        raise VerifyError("the weights are on the meta device: the same function cannot be shown", remedy="load them")
    verify_outputs(result, original, original.example_inputs if inputs is None else inputs, moves)


def _untouched(result: Program, original: Program) -> bool:
    """Whether a pass replaced nothing: the same calls of the same weights, and the very values that were derived for
    them. There is nothing to derive again then, which takes its time for a deep model."""
    same = result.weights.keys() == original.weights.keys() and all(
        result.weights.entry(n) is original.weights.entry(n) for n in original.info
    )
    return (
        same
        and result.info == original.info
        and (result.in_spec, result.out_spec, result.dynamic) == (original.in_spec, original.out_spec, original.dynamic)
        and result.fingerprint() == original.fingerprint()
        and all(map(operator.is_, _derived(result), _derived(original)))
    )


def _derived(program: Program) -> list[object]:
    return [node.meta.get("val") for node in program.graph.nodes]


def verify_outputs(
    result: Program, original: Program, given: Sequence[Tensor], moves: CacheMoves | None = None
) -> None:
    """Checks that two well formed programs compute the same on the inputs `given`, those of the original.

    Raises:
        VerifyError: they do not.
    """
    before, after = _outputs(original, given), _outputs(result, given if moves is None else moves.inputs(given))
    before = before if moves is None else moves.outputs(before, given)
    half = any(w.dtype in _HALF for w in original.info.values())
    for name, wanted, got in zip(original.output_names, before, after, strict=True):
        if isinstance(wanted, Tensor):
            error = relative_difference(wanted, got)
            if error > (HALF_TOLERANCE if half else TOLERANCE):
                raise VerifyError(f"the output {name!r} changed by {error:.1e} (relative)", at=result.source)


def random_inputs(program: Program) -> list[Tensor]:
    """Numbers of a normal distribution for the examples that are floating point, with the same seed every time."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(v.shape, generator=generator).to(v.dtype) if v.is_floating_point() else v
        for v in program.example_inputs
    ]


def _outputs(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Evaluator(program).run(inputs)


def relative_difference(wanted: Tensor, got: Tensor) -> float:
    """The largest difference over the largest magnitude; infinite where shapes, types or infinities differ, or integers
    do."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        return float("inf")
    if not wanted.is_floating_point() and not wanted.is_complex():
        return 0.0 if torch.equal(wanted, got) else float("inf")
    if torch.equal(wanted.isfinite(), got.isfinite()):
        finite = wanted.isfinite()
        a, b = wanted[finite].to(torch.complex128), got[finite].to(torch.complex128)
        return float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) if a.numel() else 0.0
    return float("inf")
