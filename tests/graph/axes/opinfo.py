"""Sample calls from PyTorch's own OpInfo database: the ATen calls that its sample inputs make, as the analysis would
meet them.

Every sample is traced before dispatch, so that composite operators stay whole as they do in `torch.export`, and once
more after `normalize`. The database is a part of PyTorch's tests and needs `expecttest`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from fxslim.graph.axes import rules as _rules  # noqa: F401  (fills the registry)
from fxslim.graph.axes.oracle import Sample
from fxslim.graph.axes.registry import REGISTRY
from fxslim.graph.normalize import normalize
from fxslim.graph.program import Program

__all__ = ["ABSENT", "Harvest", "harvest"]

ABSENT = None if find_spec("expecttest") else "PyTorch's OpInfo database needs the package expecttest"
LARGEST = 4096  # elements of an operand: a larger one tells nothing more
_DTYPES = (torch.float64, torch.int64, torch.bool, torch.float32)


@dataclass
class Harvest:
    """Distinct calls by overload, and what was left out."""

    calls: dict[Any, list[Sample]] = field(default_factory=dict)
    traced: int = 0  # sample inputs
    infos: int = 0  # operators of the database with at least one traced sample
    modules: int = 0  # modules, likewise
    untraced: Counter[str] = field(default_factory=Counter)  # sample inputs, by reason
    skipped: Counter[str] = field(default_factory=Counter)  # calls of operators with rules, by reason
    unruled: Counter[str] = field(default_factory=Counter)  # calls of operators without one, by overload
    seen: set[Any] = field(default_factory=set)

    def spread(self, limit: int) -> Iterator[Sample]:
        """At most `limit` calls of each overload, evenly over all that were found."""
        for found in self.calls.values():
            step = max(1.0, len(found) / limit)
            yield from (found[int(i * step)] for i in range(min(limit, len(found))))

    def note(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One call, kept if it is new and can be tried."""
        if not isinstance(op, torch._ops.OpOverload):
            return
        if op not in REGISTRY:
            self.unruled[str(op)] += 1
            return
        key = (op, repr(pytree.tree_map(_shape_of, (args, kwargs))))
        if key in self.seen:
            return
        self.seen.add(key)
        reason = (
            "a size that depends on values"
            if _sized_by_values(op, args)
            else _unfit(pytree.tree_leaves((args, kwargs)))
        )
        if reason is not None:
            self.skipped[reason] += 1
            return
        own = pytree.tree_map_only(Tensor, _plain, (args, kwargs))
        name = op._schema.name.removeprefix("aten::")
        note = f"OpInfo {len(self.calls.get(op, ()))}"
        floor = 2 if name == "squeeze" else 1  # what is cut down to one position would vanish; capture names dimensions
        self.calls.setdefault(op, []).append(Sample(op, *own, note, undefined="empty" in name, floor=floor))


def _shape_of(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().clone()


def _sized_by_values(op: Any, args: tuple[Any, ...]) -> bool:
    """`one_hot` without a number of classes: nothing that can be captured."""
    return op is torch.ops.aten.one_hot.default and (len(args) < 2 or args[1] == -1)


def _unfit(leaves: list[Any]) -> str | None:
    """Why a call cannot be tried."""
    for value in leaves:
        if isinstance(value, Tensor):
            if value.layout is not torch.strided:
                return "sparse"
            if value.is_complex():
                return "complex numbers"
            if value.numel() == 0:
                return "a tensor without elements"
            if value.numel() > LARGEST:
                return f"more than {LARGEST} elements"
    return None


class _Recorder(fx.Interpreter):
    """Runs a traced graph on real values; every call is noted with the arguments as they were before it."""

    def __init__(self, module: fx.GraphModule, found: Harvest) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found = found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["val"] = result
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.found.note(target, args, kwargs)
        return super().call_function(target, args, kwargs)


def harvest(samples_each: int, every: int = 1) -> Harvest:
    """The calls that the first `samples_each` sample inputs make of every `every`-th operator, and module, of the
    database."""
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db

    found = Harvest()
    with warnings.catch_warnings(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # deprecated operators are sampled too
        for info in op_db[::every]:
            torch.manual_seed(0)
            _of_operator(info, samples_each, found)
        for info in module_db[::every]:
            torch.manual_seed(0)
            _of_module(info, samples_each, found)
    return found


def _of_operator(info: Any, samples_each: int, found: Harvest) -> None:
    dtype = next((d for d in _DTYPES if info.supports_dtype(d, "cpu")), None)
    if dtype is None:
        found.untraced["the operator takes no real numbers, or does not run on a CPU"] += 1
        return
    if info.name.startswith("as_strided"):
        found.untraced["strides of the caller's memory"] += 1
        return
    before = found.traced
    try:
        samples = info.sample_inputs_func(info, "cpu", dtype, requires_grad=False)
        for sample in _first(samples, samples_each):
            _trace(info.op, (sample.input, sample.args, sample.kwargs), found)
    except AssertionError as error:  # entries for other devices assert theirs
        found.untraced[f"no sample inputs: {str(error).splitlines()[0]}"] += 1
    found.infos += found.traced > before


def _first(samples: Iterable[Any], count: int) -> list[Any]:
    """The first of the samples. Their generator is closed here: the garbage collector might do it while a call is
    traced, and closing it enters `no_grad`, which the tracer would take for a part of the call."""
    drawn = list(islice(samples, count))
    if isinstance(samples, Generator):
        samples.close()
    return drawn


def _of_module(info: Any, samples_each: int, found: Harvest) -> None:
    inputs = info.module_inputs_func(info, "cpu", torch.float64, requires_grad=False, training=False)
    before = found.traced
    for sample in _first(inputs, samples_each):
        given, forward = sample.constructor_input, sample.forward_input
        module = info.module_cls(*given.args, **given.kwargs).double().eval()
        if forward is not None:
            _trace(lambda _, *args, m=module, **kwargs: m(*args, **kwargs), (0, forward.args, forward.kwargs), found)
    found.modules += found.traced > before


def _trace(function: Callable[..., Any], given: tuple[Any, Any, Any], found: Harvest) -> None:
    """Notes the calls of `function(first, *args, **kwargs)`, as PyTorch makes them and as capture rewrites them."""
    leaves, spec = pytree.tree_flatten(given)
    places = [i for i, v in enumerate(leaves) if isinstance(v, Tensor)]

    def call(*tensors: Tensor) -> Any:
        values = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            values[place] = tensor
        first, args, kwargs = pytree.tree_unflatten(values, spec)
        return function(first, *args, **kwargs)

    tensors = [leaves[i] for i in places]
    if any(t.layout is not torch.strided for t in tensors):
        found.untraced["sparse tensors"] += 1
        return
    try:
        module = make_fx(call, pre_dispatch=True)(*tensors)
    except RuntimeError as error:
        if "get value out of a tracing tensor" not in str(error):
            raise
        found.untraced["Python reads the values of a tensor"] += 1
        return
    found.traced += 1
    _Recorder(module, found).run(*map(torch.clone, tensors))
    before = [node.target for node in module.graph.nodes]
    normalize(cast(Program, SimpleNamespace(graph=module.graph)))
    if [node.target for node in module.graph.nodes] != before:
        _Recorder(module, found).run(*map(torch.clone, tensors))
