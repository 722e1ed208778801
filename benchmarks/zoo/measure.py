"""One model of the sweep: captured, analysed, cut, proven, exported, compared. Every shortfall is said in words."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree

from benchmarks.zoo.alive import enliven
from benchmarks.zoo.case import Build, Case
from fxslim.api import analyze, apply, capture, make_plan, prepare, prove
from fxslim.export import check_onnx, export_onnx
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import CaptureError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program
from fxslim.passes.importance import top
from fxslim.passes.plan import Cut, Plan
from fxslim.passes.prove import Proof
from fxslim.passes.same import relative_difference

__all__ = ["COLUMNS", "Row", "measure"]

WIDTH = 0.7
ODD = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 127, 129, 255, 257)
SAME = 1e-3  # float32, sums in another order; chaotic depths amplify it
FELT = 1e-12  # masking must change an output by more, or the proof says nothing


@dataclass
class Row:
    """What was found for one model. Times in seconds; shares of all trainable parameters; errors relative."""

    library: str
    model: str
    status: str = ""
    reason: str = ""
    dynamic: str = ""  # which dimensions are: as given, the batch alone, none
    parameters: int = 0
    nodes: int = 0
    groups: int = 0
    inexact_groups: int = 0
    unknown_operators: str = ""
    unknown_touching: int = 0  # groups that an operator without a rule fixes
    exact_share: float = 0.0
    prunable_share: float = 0.0
    not_prunable: str = ""
    error_capture: float = float("nan")  # the model as it is called against the prepared program
    error_width: float = float("nan")
    effect_width: float = float("nan")
    error_odd: float = float("nan")
    effect_odd: float = float("nan")
    parity: str = ""
    shapes: int = 0
    capture_s: float = 0.0
    analysis_s: float = 0.0
    rewrite_s: float = 0.0
    prove_s: float = 0.0
    onnx_s: float = 0.0
    code: str = ""  # fingerprint of the code that measured it

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds of a block to the field `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, round(getattr(self, name) + time.perf_counter() - start, 3))

    def ended(self, status: str, reason: str = "") -> Row:
        """This row with its status."""
        self.status, self.reason = status, reason
        return self

    def to_dict(self) -> dict[str, Any]:
        """The columns of the table."""
        return asdict(self)


COLUMNS = [f.name for f in fields(Row)]


def measure(library: str, name: str, build: Build, *, static: bool = False) -> Row:
    """The row of one model; `static` leaves its dynamic dimensions out, which halves the time."""
    row = Row(library, name)
    torch.manual_seed(0)
    try:
        case = build()
        enliven(case.model, case.args, dict(case.kwargs))
        _check_finite(case)
    except Exception as error:
        return row.ended("not built", _first_line(error))
    try:
        program = _capture(row, replace(case, dims=None) if static else case)
    except Exception as error:
        return row.ended("not captured", _first_line(error))
    row.parameters, row.nodes = program.parameters(), len(program.graph.nodes)
    try:
        with row.timed("analysis_s"):
            analysis = analyze(program)
        analysis = analyze(prepare(analysis))
        _describe(row, analysis)
        row.error_capture = _against_the_model(case, analysis.program)
    except Exception as error:
        return row.ended("not analysed", _first_line(error))
    if not row.error_capture <= SAME:
        return row.ended("not the model", f"the program differs from the model by {row.error_capture:.1e} (relative)")
    if not any(g.size > 1 for g in analysis.prunable):
        return row.ended("nothing to cut", row.not_prunable)
    return _prove_and_export(row, analysis)


def _capture(row: Row, case: Case) -> Program:
    """The program with as many dynamic dimensions as torch.export accepts: those of the case, the batch alone, none."""
    wanted = [("as given", case.dims), ("batch", _only_batch(case.dims)), ("none", None)]
    attempts = wanted if case.dims is not None else wanted[2:]
    for name, dims in attempts:
        row.dynamic, row.capture_s = name, 0.0
        try:
            with row.timed("capture_s"):
                return capture(case.model, case.args, dict(case.kwargs), dims)
        except CaptureError:
            if name == "none":
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _only_batch(dims: Any) -> Any:
    """`{name: {0: "batch", 1: "sequence"}}` without all but dimension 0."""
    if isinstance(dims, dict):
        return {key: _only_batch(value) for key, value in dims.items() if not (isinstance(key, int) and key != 0)}
    return tuple(map(_only_batch, dims)) if isinstance(dims, tuple) else dims


def _check_finite(case: Case) -> None:
    with torch.no_grad():
        outputs = case.model(*case.args, **case.kwargs)
    for value in pytree.tree_leaves(outputs):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ValueError("the model's own output is not finite")


def _against_the_model(case: Case, program: Program) -> float:
    """The largest difference between the model, called as it is, and the captured and prepared program."""
    with torch.no_grad():
        wanted = [v for v in pytree.tree_leaves(case.model(*case.args, **case.kwargs)) if isinstance(v, torch.Tensor)]
    got = [v for v in Evaluator(program).run(program.example_inputs) if isinstance(v, torch.Tensor)]
    if len(wanted) != len(got):
        return float("inf")
    return max((relative_difference(a, b) for a, b in zip(wanted, got, strict=True)), default=0.0)


def _describe(row: Row, analysis: Analysis) -> None:
    cut = [g for g in analysis.prunable if g.size > 1]
    row.groups, row.inexact_groups = len(cut), sum(not g.exact for g in cut)
    row.unknown_operators = " ".join(f"{op}:{n}" for op, n in analysis.unknown_ops.items())
    row.unknown_touching = sum(g.fixed is not None and g.fixed.text == "an operator without a rule"
                               for g in analysis.groups if g.size > 1)  # fmt: skip
    info = analysis.program.info
    trainable = {name: w.numel for name, w in info.items() if w.trainable}
    exact = {s.weight for g in cut if g.exact for s in g.sites}
    every = {s.weight for g in cut for s in g.sites}
    total = max(1, sum(trainable.values()))
    row.exact_share = round(sum(n for name, n in trainable.items() if name in exact) / total, 4)
    row.prunable_share = round(sum(n for name, n in trainable.items() if name in every) / total, 4)
    row.not_prunable = _why_not(analysis, {name: n for name, n in trainable.items() if name not in every}, total)


def _why_not(analysis: Analysis, left: dict[str, int], total: int) -> str:
    """The largest weights without a prunable dimension, with the reasons of their dimensions."""
    found = []
    for name, count in sorted(left.items(), key=lambda item: -item[1])[:2]:
        groups = [g for g in analysis.groups if g.fixed and any(s.weight == name for s in g.sites)]
        reasons = dict.fromkeys(g.fixed.text for g in groups if g.fixed)
        found.append(f"{name} ({count / total:.0%}): {'; '.join(reasons) or 'sizes of 1'}")
    return " / ".join(found)


def _prove_and_export(row: Row, analysis: Analysis) -> Row:
    try:
        with row.timed("rewrite_s"):
            plan = make_plan(analysis, width=WIDTH, inexact=True)
            slim = apply(analysis, plan)
        with row.timed("prove_s"):
            proof = prove(analysis, plan)
            odd = prove(analysis, _odd_plan(analysis))
    except Exception as error:
        return row.ended("not proven", _first_line(error))
    row.error_width, row.effect_width = proof.max_error, proof.effect
    row.error_odd, row.effect_odd = odd.max_error, odd.effect
    for which, found in (("width 0.7", proof), ("odd sizes", odd)):
        if not found.ok or (found.cuts and found.effect <= FELT):
            return row.ended("not proven", f"{which}: {_worst(found)}")
    try:
        with row.timed("onnx_s"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(slim, path)
            check = check_onnx(slim, path)
    except Exception as error:
        return row.ended("not exported", _first_line(error))
    row.shapes, row.parity = len(check.shapes), "yes" if check.ok else "no"
    return row.ended("ok") if check.ok else row.ended("no parity", "; ".join(check.failures))


def _worst(proof: Proof) -> str:
    worst = max(proof.outputs, key=lambda o: o.error)
    return f"{proof}, worst output {worst.name!r}"


def _odd_plan(analysis: Analysis) -> Plan:
    """Exact groups at sizes drawn from `ODD`, at random positions, others for every position of a batch axis."""
    generator = torch.Generator().manual_seed(1)
    cuts = []
    for group in analysis.prunable:
        sizes = [n for n in ODD if n < group.size]
        if group.exact and sizes:
            sizes = sizes[-6:]  # not 1 channel out of 512: a proof needs an output that still depends on its input
            count = sizes[int(torch.randint(len(sizes), (), generator=generator))]
            scores = torch.rand([int(a.size) for a in (*group.batch, group.axis)], generator=generator)
            cuts.append(Cut.from_mask(group, top(scores, count)))
    return Plan(analysis.program.fingerprint(), tuple(cuts))


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:400]
