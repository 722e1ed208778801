"""Rules of products other than those of matrices: outer, inner, bilinear, tensordot, Kronecker; bags of embeddings."""

from __future__ import annotations

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.rules_lines import clause, filled
from fxslim.graph.axes.terms import Size

__all__: list[str] = []

aten = torch.ops.aten
GENERAL = Symmetry.GENERAL


@rule(aten.outer.default)
def outer(call: Call) -> DimRule:
    """x y^T."""
    return DimRule.parse("m, n -> m n", default=GENERAL, costs=["m n"])


@rule(aten.vdot.default)
def vdot(call: Call) -> DimRule:
    """The product of two vectors, the first one conjugate."""
    return DimRule.parse("k, k -> ()", default=GENERAL, costs=["k"])


@rule(aten.inner.default)
def inner(call: Call) -> DimRule:
    """Over the last dimension of both; a number scales."""
    x, y = call.shapes
    if not x or not y:
        letters = text(names(max(len(x), len(y))))
        return DimRule.parse(f"{letters if x else '()'}, {letters if y else '()'} -> {letters}", default=GENERAL)
    left, right = names(len(x) - 1, "m"), names(len(y) - 1, "n")
    return DimRule.parse(
        f"{text((*left, 'k'))}, {text((*right, 'k'))} -> {text((*left, *right))}",
        default=GENERAL, costs=[text((*left, *right, "k"))],
    )  # fmt: skip


@rule(aten.tensordot.default)
def tensordot(call: Call) -> DimRule:
    """Over pairs of dimensions."""
    x, y = call.shapes
    pairs = [(i % len(x), j % len(y)) for i, j in zip(call.arg("dims_self"), call.arg("dims_other"), strict=True)]
    left = ["1" if size == 1 else n for n, size in zip(names(len(x), "m"), x, strict=True)]
    right = ["1" if size == 1 else n for n, size in zip(names(len(y), "n"), y, strict=True)]
    for i, j in pairs:
        if left[i] != "1" and right[j] != "1":
            left[i] = right[j] = f"k{left[i]}"
    out = [n for i, n in enumerate(left) if i not in {i for i, _ in pairs}]
    out += [n for j, n in enumerate(right) if j not in {j for _, j in pairs}]
    letters = dict.fromkeys(n for n in (*left, *right) if n != "1")
    alone = clause("permutation", [n for n in letters if n not in out and not (n in left and n in right)])
    line = f"{text(left)}, {text(right)} -> {text(out)}{alone}"
    return DimRule.parse(line, default=GENERAL, costs=[text(list(letters))])


@rule(aten.addmv.default)
def addmv(call: Call) -> DimRule:
    """b + x y, y a vector."""
    bias, spread = _bias(call.shapes[0], ("m",))
    return DimRule.parse(f"{bias}, m k, k -> m{spread}", default=GENERAL, costs=["m k"])


@rule(aten.addr.default)
def addr(call: Call) -> DimRule:
    """b + x y^T."""
    bias, spread = _bias(call.shapes[0], ("m", "n"))
    return DimRule.parse(f"{bias}, m, n -> m n{spread}", default=GENERAL, costs=["m n"])


@rule(aten.addbmm.default)
def addbmm(call: Call) -> DimRule:
    """z + the sum over a batch of x y."""
    bias, spread = _bias(call.shapes[0], ("m", "n"))
    return DimRule.parse(f"{bias}, b m k, b k n -> m n{spread}", default=GENERAL, costs=["b m n k"])


def _bias(shape: tuple[Size, ...], letters: tuple[str, ...]) -> tuple[str, str]:
    """A summand's dimensions, and the clause for the letters along which it broadcasts."""
    own = letters[len(letters) - len(shape) :]
    dims = ["1" if size == 1 else n for size, n in zip(shape, own, strict=True)]
    return text(dims), clause("permutation", [n for n in letters if n not in dims])


@rule(aten.bilinear.default)
def bilinear(call: Call) -> DimRule:
    """y = x1^T W x2 + b for each row of W."""
    bias = ", n" if len(call.tensors) == 4 else ""
    return filled(call, f"* p, * q, n p q{bias} -> * n | permutation *", GENERAL)


@rule(aten.kron.default)
def kron(call: Call) -> DimRule:
    """Every element of the first times the whole of the second."""
    x, y = call.shapes
    rank = max(len(x), len(y))
    letters = names(rank)
    left, right = letters[rank - len(x) :], [f"k{n}" for n in letters[rank - len(y) :]]
    out = []
    for n in letters:
        own = [m for m in (n, f"k{n}") if m in left or m in right]
        out.append(f"({' '.join(own)})" if len(own) > 1 else own[0])
    return DimRule.parse(f"{text(left)}, {text(right)} -> {text(out)}", default=GENERAL)


@rule(aten.embedding_bag.padding_idx, aten.embedding_bag.default)
def embedding_bag(call: Call) -> DimRule:
    """Rows of a table, summed or averaged by bags; the largest of a bag comes with its place."""
    largest = int(call.arg("mode")) == 2
    results = [names(len(shape), f"y{i}") for i, shape in enumerate(call.results)]
    results[0] = ("n", "d")
    if largest and len(results[3]) == 2:
        results[3] = ("n", "d")
    indices = [names(len(shape), f"x{i}") for i, shape in enumerate(call.shapes[1:])]
    fixed = clause("fixed", [x for dims in (("v",), *indices, *results) for x in dims if x != "d"])
    operands = ", ".join(map(text, [("v", "d"), *indices]))
    return DimRule.parse(
        f"{operands} -> {', '.join(map(text, results))}{fixed}",
        why="indices choose among its rows",
    )  # fmt: skip
