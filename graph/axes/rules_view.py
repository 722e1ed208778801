"""Rules of view-like operators, computed by the algebra of terms instead of written down.

A view is an equation between two products: all dimensions before and all after. Solving it gives the rule, for example
`a b (c d) -> a b c d`; `cat`, `split` and `slice` are concatenations, `a [p|b|q] -> a b`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxslim.graph.axes.notation import Concat, DimRule, Pattern, Product, Symmetry
from fxslim.graph.axes.registry import Call, NewSizes, names, rule, text
from fxslim.graph.axes.terms import Axis, Cat, Expr, Reason, Size, Terms, quotient

__all__ = ["view_rule"]

aten = torch.ops.aten
GENERAL = Symmetry.GENERAL


def view_rule(before: Sequence[Size], after: Sequence[Size]) -> DimRule:
    """The rule of a reshape: the common refinement of two shapes with the same number of elements."""
    terms = Terms()
    left, right = [terms.fresh(s) for s in before], [terms.fresh(s) for s in after]
    terms.unify(tuple(f for e in left for f in e), tuple(f for e in right for f in e), Reason("view"))
    letters: dict[Axis, str] = {}
    operand = tuple(_pattern(terms.resolve(e), letters) for e in left)
    result = tuple(_pattern(terms.resolve(e), letters) for e in right)
    fixed = {letters[a] for expr, _ in terms.fixations for a in terms.atoms(expr)}
    sizes = {letter: axis.size for axis, letter in letters.items()}
    return DimRule(
        (operand,), (result,), fixed=frozenset(fixed), default=GENERAL, sizes=sizes,
        why="the two layouts have no common refinement",
    )  # fmt: skip


def _pattern(expr: Expr, letters: dict[Axis, str]) -> Pattern:
    parts: list[Pattern] = []
    for factor in expr:
        if isinstance(factor, Cat):
            parts.append(Concat(tuple(_pattern(p, letters) for p in factor.parts)))
        else:
            parts.append(letters.setdefault(factor, f"{names(26)[len(letters) % 26]}{len(letters) // 26 or ''}"))
    return parts[0] if len(parts) == 1 else Product(tuple(parts))


def _sizes(call: Call, new: NewSizes) -> Mapping[str, Any]:
    name = next(n for n in ("size", "shape", "sizes") if n in call.arguments)
    return {name: list(new.result())}


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, literals=_sizes)
def view(call: Call) -> DimRule:
    """Another shape of the same elements in the same order."""
    return view_rule(call.shapes[0], call.results[0])


@rule(aten.flatten.using_ints)
def flatten(call: Call) -> DimRule:
    """Neighbouring dimensions as one."""
    return view_rule(call.shapes[0], call.results[0])


@rule(
    aten.unflatten.int,
    literals=lambda call, new: {"sizes": list(new.result()[_first(call) : _first(call) + len(call.arg("sizes"))])},
)
def unflatten(call: Call) -> DimRule:
    """One dimension as several."""
    return view_rule(call.shapes[0], call.results[0])


def _first(call: Call) -> int:
    return call.dim("dim", len(call.shapes[0]))


@rule(aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def singleton(call: Call) -> DimRule:
    """Dimensions of size 1 come and go."""
    return view_rule(call.shapes[0], call.results[0])


@rule(aten.permute.default)
def permute(call: Call) -> DimRule:
    """Dimensions in another order."""
    letters = names(len(call.shapes[0]))
    order = call.dims("dims", len(letters))
    return DimRule.parse(f"{text(letters)} -> {text([letters[d] for d in order])}", default=GENERAL)


@rule(aten.transpose.int)
def transpose(call: Call) -> DimRule:
    """Two dimensions change places."""
    letters = names(len(call.shapes[0]))
    out = list(letters)
    if letters:
        i, j = call.dim("dim0", len(letters)), call.dim("dim1", len(letters))
        out[i], out[j] = out[j], out[i]
    return DimRule.parse(f"{text(letters)} -> {text(out)}", default=GENERAL)


@rule(aten.t.default)
def matrix_transpose(call: Call) -> DimRule:
    """The transpose of a matrix; anything less is itself."""
    letters = names(len(call.shapes[0]))
    return DimRule.parse(f"{text(letters)} -> {text(letters[::-1])}", default=GENERAL)


@rule(aten.movedim.int)
def movedim(call: Call) -> DimRule:
    """One dimension changes its place."""
    letters = list(names(len(call.shapes[0])))
    out = list(letters)
    out.insert(int(call.arg("destination")) % len(letters), out.pop(int(call.arg("source")) % len(letters)))
    return DimRule.parse(f"{text(letters)} -> {text(out)}", default=GENERAL)


@rule(aten.expand.default, aten.expand_as.default, literals=lambda call, new: _expanded(call, new))
def expand(call: Call) -> DimRule:
    """Dimensions of size 1 are repeated: the new positions hold the same values."""
    shape, result = call.shapes[0], call.results[0]
    letters = names(len(result))
    own = letters[len(result) - len(shape) :]
    operand = ["1" if s == 1 else x for s, x in zip(shape, own, strict=True)]
    other = f", {text(letters)}" if call.op is aten.expand_as.default else ""
    repeated = [x for x in letters if x not in operand]
    clause = f" | permutation {text(repeated)}" if repeated else ""
    return DimRule.parse(f"{text(operand)}{other} -> {text(letters)}{clause}", default=GENERAL)


def _expanded(call: Call, new: NewSizes) -> Mapping[str, Any]:
    if call.op is aten.expand_as.default:
        return {}
    return {"size": [old if old == -1 else size for old, size in zip(call.arg("size"), new.result(), strict=True)]}


@rule(
    aten.repeat.default, literals=lambda call, new: {"repeats": [new.letter(f"r{x}") for x in names(len(new.result()))]}
)
def repeat(call: Call) -> DimRule:
    """Whole dimensions one after the other: `a -> (r a)`."""
    shape, result = call.shapes[0], call.results[0]
    letters, repeats = names(len(result)), list(call.arg("repeats"))
    own = letters[len(result) - len(shape) :]
    out = [f"(r{x} {x})" if x in own else f"r{x}" for x in letters]
    sizes: dict[str, Size] = {}
    for i, x in enumerate(letters):
        times = repeats[i]
        if isinstance(times, fx.Node):
            times = None
        own_size = shape[i - len(result) + len(shape)] if x in own else 1
        sizes[f"r{x}"] = times if times is not None else _exact(result[i], own_size)
        sizes[x] = own_size
    clause = f" | permutation {text([f'r{x}' for x in letters])}" if letters else ""
    return DimRule.parse(f"{text(own)} -> {text(out)}{clause}", default=GENERAL, sizes=sizes)


def _exact(whole: Size, part: Size) -> Size:
    value = quotient(whole, part)
    return whole if value is None else value


def _interleaved(call: Call, new: NewSizes) -> Mapping[str, Any]:
    counted = isinstance(call.arg("repeats"), int)
    return {"output_size": None, **({"repeats": new.letter("r")} if counted else {})}


@rule(aten.repeat_interleave.self_int, literals=_interleaved)
def repeat_interleave(call: Call) -> DimRule:
    """Every position several times: `a -> (a r)`; without `dim`, of the flattened tensor."""
    shape, times = call.shapes[0], call.arg("repeats")
    letters = list(names(len(shape)))
    if call.arg("dim") is None:
        out = [f"({' '.join((*letters, 'r'))})"]
    else:
        out = [f"({x} r)" if i == call.dim("dim", len(shape)) else x for i, x in enumerate(letters)]
    counted = isinstance(times, int)
    sizes: dict[str, Size] = {**dict(zip(letters, shape, strict=True)), "r": times} if counted else {}
    clause = "permutation r" if counted else "fixed r"
    return DimRule.parse(
        f"{text(letters)} -> {text(out)} | {clause}", default=GENERAL, sizes=sizes, why="the count is computed"
    )


@rule(aten.cat.default)
def cat(call: Call) -> DimRule:
    """Operands one after the other along `dim`."""
    rank = len(call.results[0])
    letters, dim = names(rank), call.dim("dim", rank)
    parts = [f"c{i}" for i in range(len(call.tensors))]
    operands = [text((*letters[:dim], part, *letters[dim + 1 :])) for part in parts]
    out = text((*letters[:dim], f"[{'|'.join(parts)}]" if len(parts) > 1 else parts[0], *letters[dim + 1 :]))
    return DimRule.parse(f"{', '.join(operands)} -> {out}", default=GENERAL)


@rule(aten.stack.default)
def stack(call: Call) -> DimRule:
    """Operands side by side in a new dimension of fixed size."""
    rank = len(call.results[0])
    dim, count = call.dim("dim", rank), len(call.tensors)
    letters = names(rank - 1)
    new = f"[{'|'.join(['1'] * count)}]" if count > 1 else "1"
    out = text((*letters[:dim], new, *letters[dim:]))
    return DimRule.parse(f"{', '.join([text(letters)] * count)} -> {out}", default=GENERAL)


def _split_literals(call: Call, new: NewSizes) -> Mapping[str, Any]:
    dim = call.dim("dim", len(call.shapes[0]))
    return {"split_sizes": [new.result(i)[dim] for i in range(len(call.results))]}


@rule(aten.split_with_sizes.default, literals=_split_literals)
def split_with_sizes(call: Call) -> DimRule:
    """Pieces of given sizes along `dim`."""
    return _pieces(call)


@rule(aten.split.Tensor, aten.chunk.default)
def split(call: Call) -> DimRule:
    """Pieces of equal size along a dimension that stays: equal pieces could not be cut differently."""
    found = _pieces(call)
    fixed = frozenset(found.sizes)  # the pieces; a letter of the other dimensions has no size of its own
    return DimRule(
        found.operands, found.results, fixed=fixed, default=GENERAL, sizes=found.sizes, why="the pieces are equal"
    )


def _pieces(call: Call) -> DimRule:
    (shape,) = call.shapes
    letters, dim = names(len(shape)), call.dim("dim", len(shape))
    parts = [f"c{i}" for i in range(len(call.results))]
    whole = f"[{'|'.join(parts)}]" if len(parts) > 1 else parts[0]
    operand = text((*letters[:dim], whole, *letters[dim + 1 :]))
    results = [text((*letters[:dim], part, *letters[dim + 1 :])) for part in parts]
    sizes = {part: result[dim] for part, result in zip(parts, call.results, strict=True)}
    return DimRule.parse(f"{operand} -> {', '.join(results)}", default=GENERAL, sizes=sizes)


@rule(aten.unbind.int)
def unbind(call: Call) -> DimRule:
    """One tensor for each position of `dim`, which stays."""
    (shape,) = call.shapes
    letters, dim = names(len(shape)), call.dim("dim", len(shape))
    out = text((*letters[:dim], *letters[dim + 1 :]))
    return DimRule.parse(
        f"{text(letters)} -> {', '.join([out] * len(call.results))} | fixed {letters[dim]}",
        default=GENERAL, why="every position is a result of its own",
    )  # fmt: skip


@rule(aten.select.int)
def select(call: Call) -> DimRule:
    """One position of `dim`, which stays."""
    (shape,) = call.shapes
    letters, dim = names(len(shape)), call.dim("dim", len(shape))
    return DimRule.parse(
        f"{text(letters)} -> {text((*letters[:dim], *letters[dim + 1 :]))} | fixed {letters[dim]}",
        default=GENERAL, why="one of its positions is read by number",
    )  # fmt: skip


def _slice_literals(call: Call, new: NewSizes) -> Mapping[str, Any]:
    if not _is_static(call) or "s" not in new.rule.letters() or "s" in new.rule.fixed:
        return {}
    if call.arg("step") != 1:  # a start counted from the end would move
        return {"start": _start(call)}
    start, end = new.letter("p") if "p" in new.letters else 0, call.arg("end")
    stays_open = end is None or (isinstance(end, int) and end >= 2**62)
    return {"start": start, "end": end if stays_open else start + new.letter("s")}


def _is_static(call: Call) -> bool:
    dim = call.dim("dim", len(call.shapes[0]))
    bounds = [call.arg(name) for name in ("start", "end", "step")]
    computed = any(isinstance(b, fx.Node) for b in bounds)
    return not computed and isinstance(call.shapes[0][dim], int) and isinstance(call.results[0][dim], int)


@rule(aten.slice.Tensor, literals=_slice_literals)
def slice_(call: Call) -> DimRule:
    """A stretch of `dim`: `[p|s|q] -> s`; with a step k that divides the size, one of every k, `(s k) -> s`."""
    (shape,) = call.shapes
    letters, dim = list(names(len(shape), "d")), call.dim("dim", len(shape))
    total, kept, step = shape[dim], call.results[0][dim], call.arg("step")
    if total == kept and step == 1:
        return DimRule.parse(f"{text(letters)} -> {text(letters)}", default=GENERAL)
    out = [*letters[:dim], "s", *letters[dim + 1 :]]
    if not _is_static(call):
        return _fixed_slice(letters, out, dim, "its bounds are computed")
    start = _start(call)
    if step != 1:
        return _strided_slice(letters, out, dim, start, step, call)
    sizes = {"p": start, "s": kept, "q": total - start - kept}
    whole = "|".join(x for x in ("p", "s", "q") if sizes[x])
    operand = [*letters[:dim], f"[{whole}]" if "|" in whole else whole, *letters[dim + 1 :]]
    return DimRule.parse(
        f"{text(operand)} -> {text(out)}", default=GENERAL, sizes={k: v for k, v in sizes.items() if v}
    )


def _start(call: Call) -> Any:
    """The first position, counted from the front and inside the dimension, which is static."""
    total, start = call.shapes[0][call.dim("dim", len(call.shapes[0]))], call.arg("start") or 0
    return min(max(start + total if start < 0 else start, 0), total)


def _strided_slice(letters: list[str], out: list[str], dim: int, start: Any, step: int, call: Call) -> DimRule:
    total, kept = call.shapes[0][dim], call.results[0][dim]
    if start >= step or total != kept * step:
        return _fixed_slice(letters, out, dim, "the step does not divide its size")
    operand = [*letters[:dim], "(s k)", *letters[dim + 1 :]]
    return DimRule.parse(
        f"{text(operand)} -> {text(out)} | fixed k",
        default=GENERAL,
        sizes={"s": kept, "k": step},
        why="one of every k is read",
    )


def _fixed_slice(letters: list[str], out: list[str], dim: int, why: str) -> DimRule:
    return DimRule.parse(f"{text(letters)} -> {text(out)} | fixed {letters[dim]} s", default=GENERAL, why=why)


@rule(aten.constant_pad_nd.default)
def pad(call: Call) -> DimRule:
    """Padded dimensions stay; the others pass. Padding of (1, -1) keeps the size and still moves the positions."""
    letters, amounts = list(names(len(call.shapes[0]))), list(call.arg("pad"))
    amounts += [0] * (2 * len(letters) - len(amounts))  # two for each dimension, the last dimension first
    padded = [amounts[2 * i] != 0 or amounts[2 * i + 1] != 0 for i in reversed(range(len(letters)))]
    out = [f"p{x}" if p else x for x, p in zip(letters, padded, strict=True)]
    fixed = [y for x, o in zip(letters, out, strict=True) if x != o for y in (x, o)]
    clause = f" | fixed {text(fixed)}" if fixed else ""
    default = GENERAL if call.arg("value") == 0 else Symmetry.PERMUTATION  # a linear map only if it pads with zeros
    return DimRule.parse(f"{text(letters)} -> {text(out)}{clause}", default=default, why="the padding is a number")
