"""Verification: what must hold of every program, checked after every pass."""

from __future__ import annotations

import sympy
import torch
from torch import Tensor, fx

from fxslim.graph.axes.analysis import find_caches
from fxslim.graph.axes.terms import Size, same_size, size_of
from fxslim.graph.errors import VerifyError, where
from fxslim.graph.program import Program
from fxslim.graph.rewriter import evaluate_fake, fake_mode

__all__ = ["verify"]


def verify(program: Program, original: Program | None = None) -> None:
    """Checks structure, weights and shapes of `program`; against `original`, that its interface is unchanged too.

    Static dimensions of cache inputs may differ from the original's; everything else of the interface may not.

    Raises:
        VerifyError: names the node and what does not hold.
    """
    try:
        program.graph.lint()
    except RuntimeError as error:
        raise VerifyError(f"the graph is malformed: {error}") from error
    _verify_weights(program)
    _verify_shapes(program)
    if original is not None:
        _verify_interface(program, original)


def _verify_weights(program: Program) -> None:
    nodes = program.weight_nodes()
    if len(nodes) != len(program.graph.find_nodes(op="get_attr")):
        raise VerifyError("a weight is read by more than one node", remedy="share the node: a weight is cut once")
    for name, node in nodes.items():
        info = program.info.get(name)
        if info is None or name not in program.weights:
            raise VerifyError(f"the graph reads the weight {name!r}, which the program does not have", at=where(node))
        tensor = program.weights.entry(name)
        if tuple(tensor.shape) != info.shape or tensor.dtype != info.dtype:
            found, recorded = f"{tensor.dtype} {tuple(tensor.shape)}", f"{info.dtype} {info.shape}"
            raise VerifyError(f"the weight {name!r} is {found}, recorded as {recorded}", at=where(node))
        if tuple(node.meta["val"].shape) != info.shape:
            raise VerifyError(
                f"the weight {name!r} is {info.shape}, its node says {tuple(node.meta['val'].shape)}", at=where(node)
            )
    if unused := sorted(set(program.info) - set(nodes)):
        raise VerifyError(f"weights that no node reads: {', '.join(unused)}")


def _verify_shapes(program: Program) -> None:
    known = _known(program)
    with fake_mode(program):
        for node in program.graph.nodes:
            if node.op != "call_function":
                continue
            value = evaluate_fake(node)
            for new, old in zip(_tensors(value), _tensors(node.meta["val"]), strict=True):
                if not _same_shape(new, old, known) or new.dtype != old.dtype:
                    raise VerifyError(
                        f"the value is {new.dtype} {tuple(new.shape)}, recorded as {old.dtype} {tuple(old.shape)}",
                        at=where(node),
                    )


def _known(program: Program) -> set[sympy.Symbol]:
    """The symbols of the inputs' sizes: all others depend on data."""
    sizes = [size_of(s) for node in _placeholders(program) for s in node.meta["val"].shape]
    return {symbol for size in sizes if not isinstance(size, int) for symbol in size.free_symbols}


def _same_size(a: Size, b: Size, known: set[sympy.Symbol]) -> bool:
    """Whether two sizes are equal. One that depends on the data (how many are not zero) gets a new name each time it is
    derived: two of those cannot be told apart."""
    if same_size(a, b):
        return True
    return all(not isinstance(size, int) and bool(size.free_symbols - known) for size in (a, b))


def _tensors(value: object) -> list[Tensor]:
    values = value if isinstance(value, list | tuple) else (value,)
    return [v for v in values if isinstance(v, torch.Tensor)]


def _verify_interface(program: Program, original: Program) -> None:
    caches = find_caches(original)
    if program.input_names != original.input_names or program.output_names != original.output_names:
        raise VerifyError("names of inputs or outputs changed")
    for new, old in zip(_placeholders(program), _placeholders(original), strict=True):
        if old.name not in caches and not _same_shape(new.meta["val"], old.meta["val"]):
            raise VerifyError(f"the input {old.name!r} changed its shape")
    _verify_loops(program, original)
    outputs = zip(program.output_names, program.output_nodes, original.output_nodes, strict=True)
    for name, new_out, old_out in outputs:
        if not (isinstance(new_out, fx.Node) and isinstance(old_out, fx.Node)) or name in caches.values():
            continue
        if not _same_shape(new_out.meta["val"], old_out.meta["val"], _known(program)):
            raise VerifyError(f"the output {name!r} changed its shape", at=where(new_out))


def _verify_loops(program: Program, original: Program) -> None:
    """What replaced a cache still does: where both had one size, they have one now."""
    sizes = [_cache_sizes(p) for p in (original, program)]
    for cache, pairs in sizes[0].items():
        for old, new in zip(pairs, sizes[1].get(cache, []), strict=True):
            if isinstance(old[0], int) and old[0] == old[1] and new[0] != new[1]:
                raise VerifyError(f"the cache {cache!r} has size {new[0]} and comes back with {new[1]}")


def _cache_sizes(program: Program) -> dict[str, list[tuple[Size, Size]]]:
    """The sizes of every dimension of a cache, going in and coming back."""
    inputs = {n.name: n for n in _placeholders(program)}
    outputs = dict(zip(program.output_names, program.output_nodes, strict=True))
    found = {}
    for name, output in find_caches(program).items():
        into, back = (n.meta["val"].shape for n in (inputs[name], outputs[output]))
        found[name] = [(size_of(a), size_of(b)) for a, b in zip(into, back, strict=False)]
    return found


def _placeholders(program: Program) -> list[fx.Node]:
    return list(program.graph.find_nodes(op="placeholder"))


def _same_shape(a: Tensor, b: Tensor, known: set[sympy.Symbol] | None = None) -> bool:
    if known is None or len(a.shape) != len(b.shape):
        return [size_of(s) for s in a.shape] == [size_of(s) for s in b.shape]
    return all(_same_size(size_of(x), size_of(y), known) for x, y in zip(a.shape, b.shape, strict=True))
