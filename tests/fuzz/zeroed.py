"""A second oracle: the original module with the removed columns of its consuming weights set to zero.

`prove` masks by the rules that the rewriter also reads, so a wrong rule may fool both. Here the arithmetic is that of
the eager module. Which positions those are is read from the printed layout of a site, not by the code that slices.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from fxslim.graph.axes.analysis import CallAxes
from fxslim.graph.axes.groups import Analysis, Group, Site
from fxslim.graph.axes.notation import Kind, letters_of
from fxslim.graph.axes.select import Kept, Selection
from fxslim.passes.plan import Cut, Plan

__all__ = ["by_weights", "positions", "zeroed_outputs"]

aten = torch.ops.aten
# What lies between a weight and its consumer may move elements, not change them.
_MOVES = frozenset(
    {
        aten.t.default, aten.permute.default, aten.transpose.int, aten.view.default, aten.reshape.default,
        aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.select.int, aten.slice.Tensor,
        aten.expand.default, aten.clone.default, aten._unsafe_view.default, aten.flatten.using_ints,
    }
)  # fmt: skip


def by_weights(analysis: Analysis) -> list[Group]:
    """The exact groups whose every sum runs over a weight, so that zeroing that weight removes them."""
    return [g for g in analysis.prunable if g.exact and g.size > 1 and _zeroable(analysis, g) is not None]


def _zeroable(analysis: Analysis, group: Group) -> frozenset[str] | None:
    """The weights to zero for a group, None where a sum over it has no weight in it."""
    found: set[str] = set()
    for call, letter in _sums(analysis, group):
        roots = [
            _root(n) for n, dims in zip(call.operands, call.rule.operands, strict=True) if letter in letters_of(dims)
        ]
        weights = [r for r in roots if r is not None]
        if not weights:
            return None
        found.update(weights)
    return frozenset(found) or None


def _sums(analysis: Analysis, group: Group) -> Iterator[tuple[CallAxes, str]]:
    """Calls that sum over the group's axis, with their letter for it."""
    for call in analysis.axes.calls.values():
        for letter, expr in call.letters.items():
            if call.rule.kind(letter) is Kind.REDUCE and group.axis in set(analysis.axes.terms.atoms(expr)):
                yield call, letter


def _root(node: fx.Node) -> str | None:
    """The weight that a value is, in another arrangement at most."""
    while node.op == "call_function" and node.target in _MOVES:
        node = node.all_input_nodes[0]
    return str(node.target) if node.op == "get_attr" else None


def zeroed_outputs(
    model: nn.Module, analysis: Analysis, plan: Plan, args: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs in float64 with consuming weights zeroed where the plan removes, and those of the module as it is.

    Weights that do not consume are changed at the removed positions: that must not matter.
    """
    wide = [a.double() if a.is_floating_point() else a for a in args]
    masked = copy.deepcopy(model).double()
    with torch.no_grad():
        original = _flat(copy.deepcopy(model).double()(*wide))
        tensors = dict(masked.named_parameters(remove_duplicate=False)) | dict(masked.named_buffers())
        for cut in plan.cuts:
            group = analysis.group(cut.group)
            consuming = _zeroable(analysis, group) or frozenset()
            for site in group.sites:
                tensor = tensors.get(site.weight)
                if tensor is not None and tensor.is_floating_point():
                    gone = removed(analysis, group, site, cut)
                    tensor.data = torch.where(gone, 0.0 if site.weight in consuming else tensor * 1.7, tensor.data)
        return _flat(masked(*wide)), original


def removed(analysis: Analysis, group: Group, site: Site, cut: Cut) -> Tensor:
    """True where a site's weight loses elements, broadcastable to it."""
    weight = analysis.program.weight_nodes()[site.weight]
    rank = len(analysis.axes.dims(weight))
    if cut.batch:
        mask = Selection({group.axis: Kept(group.batch, cut.mask())}).mask(analysis.axes.dims(weight))
        assert mask is not None
        return mask.logical_not()
    where = positions(site.layout, cut.size)
    kept = torch.tensor([set(places) <= set(cut.kept) for places in where])
    return kept.logical_not().reshape([-1 if d == site.dim else 1 for d in range(rank)])


_PARTS = re.compile(r"\[|\]|\||·|\*|\d+")


Places = tuple[int, ...]
"""Where a position lies on an axis: nowhere, at one place, or at several (an outer product with itself)."""


def positions(layout: str, size: int) -> list[Places]:
    """For every position of a dimension printed as `layout`, its places on the axis `*` (of `size`)."""
    tokens = _PARTS.findall(layout)
    found, rest = _product(tokens, size)
    assert not rest, layout
    return found


def _product(tokens: list[str], size: int) -> tuple[list[Places], list[str]]:
    result: list[Places] = [()]
    while tokens and tokens[0] not in ("]", "|"):
        head, *tokens = tokens
        if head == "·":
            continue
        if head == "[":
            factor: list[Places] = []
            while head != "]":
                part, tokens = _product(tokens, size)
                factor += part
                head, *tokens = tokens
        else:
            factor = [(i,) for i in range(size)] if head == "*" else [()] * int(head)
        result = [a + b for a in result for b in factor]
    return result, tokens


def _flat(outputs: object) -> list[Tensor]:
    return [v.detach() for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor)]
