"""Shrinking: a failing net becomes the smallest one, by greedy steps, that still fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.grammar import Invalid, Net, Node, Ref, Text, write

__all__ = ["shrink"]


def shrink(text: Text, fails: Callable[[Text], bool], *, limit: int = 150) -> Text:
    """The smallest net found for which `fails` still says True, after at most `limit` trials."""
    trials = 0
    progress = True
    while progress and trials < limit:
        progress = False
        for candidate in _candidates(text):
            if trials >= limit:
                break
            smaller = _written(candidate)
            if smaller is None or _size(smaller) >= _size(text):
                continue
            trials += 1
            if fails(smaller):
                text, progress = smaller, True
                break
    return text


def _written(net: Net) -> Text | None:
    try:
        return write(_live(net))
    except Invalid:
        return None


def _size(text: Text) -> tuple[int, int, int, int]:
    """What is to become smaller, in this order: layers, what is dynamic, lines, distance to the simplest choices."""
    distance = sum(
        list(text.menus[index, name]).index(value)
        for index, node in enumerate(text.net.nodes)
        for name, value in node.options
        if (index, name) in text.menus
    )
    dynamic = ("none", "batch", "both").index(text.net.dynamic)
    net = text.net
    return len(net.nodes) + len(net.outputs), dynamic, text.source.count("\n"), distance + net.batch + net.length


def _candidates(text: Text) -> Iterator[Net]:
    """Smaller nets, the boldest first."""
    net = text.net
    for output in net.outputs if len(net.outputs) > 1 else ():
        yield replace(net, outputs=(output,))
    for index in range(len(net.nodes) - 1, -1, -1):
        yield from _without(net, index)
    for index, port in [(i, 0) for i in range(len(net.nodes) - 1)]:
        yield replace(net, outputs=((index, port),))
    yield from (replace(net, dynamic=d) for d in ("none", "batch") if d != net.dynamic)
    yield from _simpler_choices(text)
    yield from (replace(net, batch=b) for b in (1, 2) if b < net.batch)
    yield from (replace(net, length=n) for n in (2, 3) if n < net.length)


def _without(net: Net, index: int) -> Iterator[Net]:
    """A node taken out: what read it reads one of its operands."""
    for operand in net.nodes[index].inputs:
        yield replace(
            net,
            nodes=tuple(
                replace(n, inputs=tuple(operand if r[0] == index else r for r in n.inputs)) if i != index else n
                for i, n in enumerate(net.nodes)
            ),
            outputs=tuple(dict.fromkeys(operand if r[0] == index else r for r in net.outputs)),
        )


def _simpler_choices(text: Text) -> Iterator[Net]:
    """One choice moved to the front of its menu, or half the way."""
    for index, node in enumerate(text.net.nodes):
        for name, value in node.options:
            menu = list(text.menus.get((index, name), ()))
            at = menu.index(value) if value in menu else 0
            for simpler in dict.fromkeys((0, at // 2, at - 1)):
                if 0 <= simpler < at:
                    yield _with_option(text.net, index, name, menu[simpler])


def _with_option(net: Net, index: int, name: str, value: object) -> Net:
    node = net.nodes[index]
    changed = replace(node, options=tuple((k, value if k == name else v) for k, v in node.options))
    return replace(net, nodes=(*net.nodes[:index], changed, *net.nodes[index + 1 :]))


def _live(net: Net) -> Net:
    """Without nodes that no output needs."""
    needed: set[int] = set()
    pending = [r[0] for r in net.outputs]
    while pending:
        index = pending.pop()
        if index not in needed:
            needed.add(index)
            pending += [r[0] for r in net.nodes[index].inputs]
    number = {old: new for new, old in enumerate(sorted(needed))}

    def moved(refs: tuple[Ref, ...]) -> tuple[Ref, ...]:
        return tuple((number[i], port) for i, port in refs)

    nodes = tuple(Node(net.nodes[i].layer, moved(net.nodes[i].inputs), net.nodes[i].options) for i in sorted(needed))
    return replace(net, nodes=nodes, outputs=moved(net.outputs))
