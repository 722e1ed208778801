"""Models of many equal layers: a few are captured, and the graph of the others is copied from them.

Nothing is taken for granted: the layers have to be alike in every attribute but their own number, the graphs of three
neighbours the same, and in a run of the whole model on fake tensors every further layer has to call the same operators,
in the same order, with the same constants, on the same values, as its neighbour. Otherwise all are captured.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxslim.graph.placeholder import entry_of
from fxslim.graph.program import Program
from fxslim.graph.run_log import OUTSIDE, run_log

__all__ = ["CAPTURED", "Repeats", "find_repeats", "grown", "run_alike", "shortened"]

CAPTURED = 4  # layers of the run that are captured: one that may be special, and three neighbours to compare
WORTH_IT = 12  # layers from which on copying is faster
_PLAIN = (int, float, str, bool, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class Repeats:
    """A list of modules of which those from `start` on are alike."""

    name: str  # of the list, as `model.layers`
    modules: nn.ModuleList
    layers: tuple[nn.Module, ...]  # all of them, also while the list is shortened
    start: int

    @property
    def last(self) -> int:
        """Number of the last layer that is captured."""
        return self.start + CAPTURED - 1


def find_repeats(model: nn.Module) -> Repeats | None:
    """The longest list of modules that ends with enough alike ones, or None."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) >= WORTH_IT]
    if not lists:
        return None
    name, modules = max(lists, key=lambda pair: len(pair[1]))
    layers = tuple(modules)
    start = len(layers) - 1
    while start > 0 and _alike(layers[start - 1], layers[-1], start - 1, len(layers) - 1):
        start -= 1
    found = Repeats(name, modules, layers, start)
    return found if len(layers) - start >= WORTH_IT else None


def _alike(a: nn.Module, b: nn.Module, i: int, j: int) -> bool:
    """Whether two modules are the same but for the values of their weights and their own numbers `i` and `j`."""
    if type(a) is not type(b) or a._modules.keys() != b._modules.keys():
        return False
    for name in ("_parameters", "_buffers"):
        own, other = getattr(a, name), getattr(b, name)
        if own.keys() != other.keys() or not all(_same_kind(own[k], other[k]) for k in own):
            return False
    rest = [{k: v for k, v in vars(m).items() if k not in ("_parameters", "_buffers", "_modules")} for m in (a, b)]
    if rest[0].keys() != rest[1].keys() or not all(_same(rest[0][k], rest[1][k], i, j) for k in rest[0]):
        return False
    return all(
        (x is None and y is None) or (x is not None and y is not None and _alike(x, y, i, j))
        for x, y in zip(a._modules.values(), b._modules.values(), strict=True)
    )


def _same_kind(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def _same(a: Any, b: Any, i: int, j: int) -> bool:
    if a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and (a == b or (a, b) == (i, j))):
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k], i, j) for k in a)
    if isinstance(a, list | tuple | set | frozenset) and type(a) is type(b):
        return len(a) == len(b) and (a == b or all(_same(x, y, i, j) for x, y in zip(a, b, strict=False)))
    return False


@contextmanager
def shortened(repeats: Repeats) -> Iterator[None]:
    """The list ends with the layer `last` inside of the block."""
    del repeats.modules[repeats.last + 1 :]
    try:
        yield
    finally:
        repeats.modules.extend(repeats.layers[repeats.last + 1 :])


def grown(program: Program, model: nn.Module, repeats: Repeats, canonical: Mapping[str, str]) -> bool:
    """Copies the layers that were not captured into a program of the shortened model, in place. False, and all as it
    was, where the captured ones differ or are tied to each other by more than what one hands to the next.

    `canonical` maps every weight name of the whole model to the name its tensor goes by."""
    segments = _segments(program, repeats)
    if segments is None:
        return False
    first, *others = segments
    links = [_links(before, segment, repeats, first) for before, segment in itertools.pairwise(others)]
    if any(link is None for link in links) or links[0] != links[1] or not _ends_well(program, segments):
        return False
    return _copy(program, model, repeats, canonical, segments[-2], segments[-1])


def _segments(program: Program, repeats: Repeats) -> list[list[fx.Node]] | None:
    """The calls of each captured layer; None where calls of others stand among them."""
    numbers = [_number(node, repeats) for node in program.graph.nodes if node.op == "call_function"]
    known = [n for n in numbers if n is not None]
    wanted = list(range(repeats.last + 1))
    inside = numbers[numbers.index(known[0]) : len(numbers) - numbers[::-1].index(known[-1])] if known else []
    if sorted(set(known)) != wanted or None in inside or known != sorted(known):
        return None
    found: list[list[fx.Node]] = [[] for _ in wanted]
    for node in program.graph.nodes:
        if node.op == "call_function" and (number := _number(node, repeats)) is not None:
            found[number].append(node)
    return found[repeats.start :]


def _number(node: fx.Node, repeats: Repeats) -> int | None:
    """The number of the layer that a call belongs to."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        match = re.search(rf"(?:^|\.){re.escape(repeats.name)}\.(\d+)(?:$|\.)", path)
        if match:
            return int(match[1])
    return None


def _links(
    before: Sequence[fx.Node], segment: Sequence[fx.Node], repeats: Repeats, first: Sequence[fx.Node]
) -> list[Any] | None:
    """What a segment is, said without its number: each call with its operands as places in the segment or in the one
    before, weights by their names inside of the layer, and else the nodes themselves."""
    own, previous = ({node: i for i, node in enumerate(part)} for part in (segment, before))
    number = _number(segment[0], repeats)
    special = set(first)

    def said(node: fx.Node) -> Any:
        if node in own or node in previous:
            return ("own", own[node]) if node in own else ("before", previous[node])
        inner = _inside(str(node.target), repeats, number) if node.op == "get_attr" else None
        if inner is not None:
            return ("weight", inner)
        size = node in special and not isinstance(node.meta.get("val"), Tensor)
        return ("other", node) if size or _number(node, repeats) is None else None

    found: list[Any] = []
    for node in segment:
        operands: list[Any] = []
        arguments = fx.map_arg((node.args, node.kwargs), lambda n, o=operands: o.append(said(n)))  # type: ignore[misc]
        if None in operands or not _is_closed(node):
            return None
        found.append((node.target, repr(arguments), operands, _shape(node)))
    return found


def _is_closed(node: fx.Node) -> bool:
    """Whether no size comes up here that the inputs do not say."""
    values = node.meta.get("val")
    for value in values if isinstance(values, list | tuple) else (values,):
        sizes = value.shape if isinstance(value, Tensor) else (value,)
        for size in sizes:
            if isinstance(size, torch.SymInt) and any(str(s).startswith("u") for s in size.node.expr.free_symbols):
                return False
    return True


def _shape(node: fx.Node) -> str:
    values = node.meta.get("val")
    values = values if isinstance(values, list | tuple) else (values,)
    return str([(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else v for v in values])


def _inside(name: str, repeats: Repeats, number: int | None) -> str | None:
    """A weight's name inside of its layer, where it belongs to the layer of that number."""
    prefix = f"{repeats.name}.{number}."
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def _ends_well(program: Program, segments: Sequence[Sequence[fx.Node]]) -> bool:
    """Whether what follows the layers reads only the last one, and sizes of the first."""
    inside = {node: i for i, part in enumerate(segments) for node in part}
    last = len(segments) - 1
    for node, i in inside.items():
        outside = [user for user in node.users if user not in inside]
        if outside and i != last and not (i == 0 and not isinstance(node.meta.get("val"), Tensor)):
            return False
    return True


def _copy(
    program: Program, model: nn.Module, repeats: Repeats, canonical: Mapping[str, str], before: Sequence[fx.Node],
    template: Sequence[fx.Node],
) -> bool:  # fmt: skip
    names = [name for name in program.weight_nodes() if _inside(name, repeats, repeats.last) is not None]
    numbers = range(repeats.last + 1, len(repeats.layers))
    wanted = {(n, i): f"{repeats.name}.{i}.{_inside(n, repeats, repeats.last)}" for i in numbers for n in names}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shared = any(n.startswith(f"{repeats.name}.") and n != first for n, first in canonical.items())
    if shared or not set(wanted.values()) <= tensors.keys():
        return False  # the exporter puts a weight that layers share where it likes
    weights = _copy_weights(program.graph, repeats, names, wanted)
    previous, end = list(template), template[-1]
    for i in numbers:
        # The template reads what stands in the segment before it; its copy reads what stands in that place now.
        env = dict(zip(before, previous, strict=True)) | {
            old: weights[str(old.target), i] for old in _of(names, program)
        }
        previous = []
        for node in template:
            with program.graph.inserting_after(end):
                end = env[node] = program.graph.node_copy(node, lambda n, e=env: e.get(n, n))  # type: ignore[misc]
            end.meta = _renumbered(node.meta, repeats, i)
            previous.append(end)
    _read_the_last(dict(zip(template, previous, strict=True)), repeats)
    _add_weights(program, tensors, wanted, canonical)
    return True


def _of(names: Sequence[str], program: Program) -> list[fx.Node]:
    nodes = program.weight_nodes()
    return [nodes[name] for name in names]


def _copy_weights(
    graph: fx.Graph, repeats: Repeats, names: Sequence[str], wanted: Mapping[tuple[str, int], str]
) -> dict[tuple[str, int], fx.Node]:
    """Nodes of the further layers' weights, where the exporter would have put them: behind those of the layer before,
    parameters and buffers apart."""
    runs: list[list[fx.Node]] = []
    adjacent = False
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in names:
            runs = runs if adjacent else [*runs, []]
            runs[-1].append(node)
        adjacent = node.op == "get_attr" and node.target in names
    made: dict[tuple[str, int], fx.Node] = {}
    for run in runs:
        place = run[-1]
        for i in range(repeats.last + 1, len(repeats.layers)):
            for old in run:
                with graph.inserting_after(place):
                    place = made[str(old.target), i] = graph.get_attr(wanted[str(old.target), i])
                place.meta = _renumbered(old.meta, repeats, i)
    return made


def _read_the_last(copies: Mapping[fx.Node, fx.Node], repeats: Repeats) -> None:
    """What follows the layers reads the last copy in place of the template."""
    for old, new in copies.items():
        old.replace_all_uses_with(new, lambda user: user.op == "output" or _number(user, repeats) is None)


def _renumbered(meta: Mapping[str, Any], repeats: Repeats, number: int) -> dict[str, Any]:
    """The description of a node of the last captured layer, for one of another number."""
    place = re.compile(rf"((?:^|\.|__){re.escape(repeats.name)}\.){repeats.last}(?=$|\.)")
    stack = meta.get("nn_module_stack") or {}
    to = rf"\g<1>{number}"
    renumbered = {place.sub(to, key): (place.sub(to, path), kind) for key, (path, kind) in stack.items()}
    return {**meta, "nn_module_stack": renumbered} if stack else dict(meta)


def _add_weights(
    program: Program, tensors: Mapping[str, Tensor], wanted: Mapping[tuple[str, int], str], canonical: Mapping[str, str]
) -> None:
    found = dict(program.info)
    for (name, _), new in wanted.items():
        found[new] = replace(found[name], name=new)
        program.weights.link(new, entry_of(tensors[new]))
    aliases: dict[str, list[str]] = defaultdict(list)
    for alias, name in canonical.items():
        if alias != name:
            aliases[name].append(alias)
    program.info = {n: replace(found[n], aliases=tuple(aliases[n])) for n in program.weight_nodes()}


def run_alike(model: nn.Module, repeats: Repeats, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether all layers that would be copied do what the last captured one does, and the model around them does not
    care how many there are: seen in two runs on fake tensors, of the whole model and of the shortened one."""
    try:
        whole = run_log(model, repeats.name, repeats.layers, args, kwargs)
        with shortened(repeats):
            short = run_log(model, repeats.name, tuple(repeats.modules), args, kwargs)
    except Exception:  # the model's own code: the exporter will say what is wrong with it
        return False
    if whole is None or short is None or whole.get(OUTSIDE) != short.get(OUTSIDE):
        return False
    captured = range(repeats.last + 1)
    return all(whole.get(i) == short.get(i) for i in captured) and all(
        whole.get(i) == whole.get(repeats.last) for i in range(repeats.start + 2, len(repeats.layers))
    )
