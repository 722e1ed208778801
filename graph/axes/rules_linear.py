"""Rules of contractions: linear, the matrix products, einsum, embedding, scaled dot product attention."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxslim.graph.axes.notation import DimRule, Symmetry
from fxslim.graph.axes.registry import Call, names, rule, text
from fxslim.graph.axes.terms import Size

__all__: list[str] = []

aten = torch.ops.aten
GENERAL = Symmetry.GENERAL


@rule(aten.linear.default)
def linear(call: Call) -> DimRule:
    """y = x W^T + b; a one-dimensional weight gives a scalar for each row. With a bias, rows are only permuted."""
    batch = names(len(call.shapes[0]) - 1, "b")
    n = ("n",) if len(call.shapes[1]) == 2 else ()
    bias = ", " + text(n) if len(call.tensors) == 3 else ""
    return DimRule.parse(
        f"{text((*batch, 'k'))}, {text((*n, 'k'))}{bias} -> {text((*batch, *n))}{_permuted(batch if bias else ())}",
        default=GENERAL, costs=[text((*batch, *n, "k"))],
    )  # fmt: skip


def _permuted(letters: Iterable[str]) -> str:
    """The clause that allows only permutations of `letters`."""
    members = text(list(dict.fromkeys(x for x in letters if x != "1")))
    return "" if members == "()" else f" | permutation {members}"


@rule(aten.addmm.default)
def addmm(call: Call) -> DimRule:
    """b + x W, with W stored transposed (GPT-2's Conv1D). Letters along which b broadcasts are permuted."""
    bias = call.shapes[0]
    full = ["m", "n"]
    dims = ["1" if size == 1 and result != 1 else letter for size, result, letter in
            zip(bias, call.results[0][2 - len(bias):], full[2 - len(bias):], strict=True)]  # fmt: skip
    spread = _permuted(x for x in full if x not in dims)
    return DimRule.parse(f"{text(dims)}, m k, k n -> m n{spread}", default=GENERAL, costs=["m n k"])


@rule(aten.mm.default)
def mm(call: Call) -> DimRule:
    """x y."""
    return DimRule.parse("m k, k n -> m n", default=GENERAL, costs=["m n k"])


@rule(aten.mv.default)
def mv(call: Call) -> DimRule:
    """x y, y a vector."""
    return DimRule.parse("m k, k -> m", default=GENERAL, costs=["m k"])


@rule(aten.dot.default)
def dot(call: Call) -> DimRule:
    """x y, both vectors."""
    return DimRule.parse("k, k -> ()", default=GENERAL, costs=["k"])


@rule(aten.bmm.default)
def bmm(call: Call) -> DimRule:
    """Batched x y: the batch letter is permuted, the others take any basis."""
    return DimRule.parse("b m k, b k n -> b m n | permutation b", default=GENERAL, costs=["b m n k"])


@rule(aten.baddbmm.default)
def baddbmm(call: Call) -> DimRule:
    """z + x y, batched; z may broadcast."""
    (z, _, _), result = call.shapes, call.results[0]
    letters = ["b", "m", "n"][3 - len(z) :]
    dims = ["1" if s == 1 and r != 1 else x for s, r, x in zip(z, result[3 - len(z) :], letters, strict=True)]
    spread = _permuted(["b", *(x for x in ("m", "n") if x not in dims)])
    return DimRule.parse(f"{text(dims)}, b m k, b k n -> b m n{spread}", default=GENERAL, costs=["b m n k"])


@rule(aten.matmul.default)
def matmul(call: Call) -> DimRule:
    """x y with broadcast batch dimensions; a one-dimensional operand is a vector."""
    x, y = call.shapes
    rank = max(len(x), len(y), 2) - 2
    batch = [f"b{n}" for n in names(rank)]
    result = call.results[0]
    left = _batch(x[:-2], batch) + (["m", "k"] if len(x) > 1 else ["k"])
    right = _batch(y[:-2], batch) + (["k", "n"] if len(y) > 1 else ["k"])
    out = [b if (b in left or b in right) else "1" for b in batch]
    out += (["m"] if len(x) > 1 else []) + (["n"] if len(y) > 1 else [])
    shared = [b for b in batch if b in left and b in right]
    letters = " ".join(dict.fromkeys(x for x in (*left, *right) if x != "1"))
    clause = f" | permutation {' '.join(shared)}" if shared else ""
    assert len(out) == len(result)
    return DimRule.parse(f"{text(left)}, {text(right)} -> {text(out)}{clause}", default=GENERAL, costs=[letters])


def _batch(shape: tuple[object, ...], letters: list[str]) -> list[str]:
    own = letters[len(letters) - len(shape) :]
    return ["1" if size == 1 else letter for size, letter in zip(shape, own, strict=True)]


@rule(aten.einsum.default)
def einsum(call: Call) -> DimRule | None:
    """The equation is the rule; dimensions of size 1 broadcast. An ellipsis becomes letters of its own."""
    equation = str(call.arg("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        counts = {c: left.count(c) for c in left if c.isalpha()}
        right = ("..." if "..." in left else "") + "".join(sorted(c for c, n in counts.items() if n == 1))
    rank = max(
        (len(s) - len(t.replace("...", "")) for s, t in zip(call.shapes, terms, strict=True) if "..." in t), default=0
    )
    dots = [f"e{n}" for n in names(rank)]
    operands: list[list[str]] = []
    for term, shape in zip(terms, call.shapes, strict=True):
        letters = _einsum_letters(term, dots, len(shape))
        operands.append(["1" if s == 1 else x for s, x in zip(shape, letters, strict=True)])
    present = {x for dims in operands for x in dims}
    out = [x if x in present else "1" for x in _einsum_letters(right, dots, rank + len(right.replace("...", "")))]
    permuted = [
        x for x in dict.fromkeys(x for dims in operands for x in dims) if not _takes_any_basis(x, operands, out)
    ]
    cost = " ".join(sorted(x for x in present if x != "1"))
    return DimRule.parse(
        f"{', '.join(map(text, operands))} -> {text(out)}{_permuted(permuted)}", default=GENERAL, costs=[cost]
    )


def _takes_any_basis(letter: str, operands: list[list[str]], out: list[str]) -> bool:
    """A letter of one operand that stays, or one that two operands are summed over (A and its inverse transpose)."""
    once = all(dims.count(letter) <= 1 for dims in operands)
    return once and sum(letter in dims for dims in operands) == (1 if letter in out else 2)


def _einsum_letters(term: str, dots: list[str], rank: int) -> list[str]:
    head, found, tail = term.partition("...")
    middle = dots[len(dots) - (rank - len(head) - len(tail)) :] if found and rank > len(head) + len(tail) else []
    return [*head, *middle, *tail]


@rule(aten.embedding.default)
def embedding(call: Call) -> DimRule:
    """Rows of a table by index: the table's rows are the values that indices take, so they stay."""
    indices = names(len(call.shapes[1]), "i")
    return DimRule.parse(
        f"v d, {text(indices)} -> {text((*indices, 'd'))} | fixed v{_permuted(indices)}",
        default=GENERAL, why="indices choose among its rows",
    )  # fmt: skip


@rule(aten.scaled_dot_product_attention.default)
def attention(call: Call) -> DimRule | None:
    """softmax(q k^T · scale + mask) v, scale explicit. With `enable_gqa`, query heads are kv heads times repeats."""
    if call.arg("scale") is None:
        return None
    gqa = bool(call.arg("enable_gqa"))
    batch = names(max(0, len(call.shapes[0]) - 3), "b")
    heads = ("h",) if len(call.shapes[0]) > 2 else ()
    q_heads = ("(h r)",) if gqa and heads else heads
    outer = [(*batch, *q_heads), (*batch, *heads), (*batch, *heads)]
    rows = [_broadcast((*o, *tail), shape) for o, tail, shape in
            zip(outer, (("q", "e"), ("t", "e"), ("t", "v")), call.shapes, strict=False)]  # fmt: skip
    if len(call.tensors) == 4:
        rows.append(_broadcast((*batch, *q_heads, "q", "t")[-len(call.shapes[3]) :], call.shapes[3]))
    clause = _permuted((*batch, *heads, *(("r",) if gqa and heads else ())))
    seen = {x for row in rows for x in row.split()}  # a single position is written 1
    fixed = " ".join(x for x in ("q", "t") if x in seen)
    every = text((*batch, *heads, *(("r",) if gqa else ())))
    return DimRule.parse(
        f"{', '.join(rows)} -> {text((*batch, *q_heads, 'q', 'v'))}{f' | fixed {fixed}' if fixed else ''}{clause}",
        default=GENERAL, sizes={"h": call.shapes[1][-3]} if gqa else {},
        costs=[f"{every} q t e", f"{every} q t v"], why="attention is over these positions",
    )  # fmt: skip


def _broadcast(letters: tuple[str, ...], shape: tuple[Size, ...]) -> str:
    """The letters as rule text, with 1 for every dimension that may be broadcast."""
    return text(["1" if size == 1 and x not in ("e", "v") else x for x, size in zip(letters, shape, strict=True)])
