"""Checks an ONNX file against the program it was made from, on the execution provider that will serve it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fxslim.export.interface import constant_outputs, interface_failures, tensor_outputs, weight_failures
from fxslim.export.model_file import Constant, finite, load_model, read_dtype
from fxslim.export.narrow import OnnxDtype, torch_dtype
from fxslim.export.providers import create_session, node_assignments, provider_name, resolve_provider
from fxslim.export.quality import Quality, measure_quality
from fxslim.export.reference import run_float64
from fxslim.export.rounding import RoundedEvaluator, run_rounded
from fxslim.export.running import run_session
from fxslim.export.samples import Sizes, default_shapes, draw_inputs, example_sizes, reordered_rows, single_variations
from fxslim.export.together import Answer, run_together
from fxslim.export.tolerance import Comparison, Tolerance, compare, tolerance_for, tolerance_of_type
from fxslim.graph.dims import summands
from fxslim.graph.errors import CheckError, InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.program import Program

__all__ = ["OnnxCheck", "Reference", "ShapeCheck", "check_onnx"]

Reference = Callable[[list[torch.Tensor]], list[torch.Tensor]]
"""The flat outputs for flat inputs, computed in float64."""

_Answer = Callable[[], Sequence[Any]]
_Answers = Callable[[int, list[torch.Tensor]], tuple[_Answer, _Answer]]  # of the program and of its reference

REQUIRED_RUNS = 2
_STREAMED = (
    "the weights stayed on disk: the program was run operator by operator, and ONNX Runtime read the file's weights "
    "where they lie, without packing them anew"
)


@dataclass(frozen=True)
class ShapeCheck:
    """One run. `not_applicable` is PyTorch's reason where the program itself cannot run at these sizes."""

    sizes: Sizes
    outputs: tuple[Comparison, ...] = ()
    not_applicable: str | None = None
    failure: str | None = None  # ONNX Runtime could not run, or returned other shapes

    @property
    def ok(self) -> bool:
        """Whether the run happened and every output is within its tolerance."""
        return self.not_applicable is None and self.failure is None and all(c.ok for c in self.outputs)


@dataclass(frozen=True)
class OnnxCheck:
    """The result of `check_onnx`. Only `failures` decide; `quality` (original against slim) never does."""

    provider: str
    nodes_by_provider: dict[str, int]
    off_provider: tuple[str, ...]  # operators that did not land on the provider asked for
    tolerance: Tolerance
    shapes: tuple[ShapeCheck, ...]
    failures: tuple[str, ...]
    quality: tuple[Quality, ...] = field(default=())
    constants: dict[str, Constant] = field(default_factory=dict)  # outputs that the file holds as metadata
    dtype: str = "float32"  # of the file's arithmetic; a narrow one is judged by the program rounded to it
    streamed: bool = False  # the weights of the program are on disk, and neither it nor the file was loaded whole

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def notes(self) -> tuple[str, ...]:
        """What weakens a check that passed, one sentence each."""
        runs = [s.outputs for s in self.shapes if s.outputs]
        idle = [rows[0].name for rows in zip(*runs, strict=False) if all(row.constant for row in rows)]
        skipped = [s for s in self.shapes if s.not_applicable is not None]
        return (
            *((_STREAMED,) if self.streamed else ()),
            *(f"the output {name!r} is constant in every run, so that agreeing with it proves little" for name in idle),
            *(f"the output {k!r} is always {v!r}, and no tensor of the file" for k, v in self.constants.items()),
            *(f"at {_at(s.sizes)} the program itself cannot run: {s.not_applicable}" for s in skipped),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "ok": self.ok,
            "notes": list(self.notes),
            "dtype": self.dtype,
            "provider": self.provider,
            "nodes_by_provider": self.nodes_by_provider,
            "off_provider": list(self.off_provider),
            "tolerance": vars(self.tolerance),
            "shapes": [
                {
                    "sizes": s.sizes,
                    "ok": s.ok,
                    "not_applicable": s.not_applicable,
                    "failure": s.failure,
                    "outputs": [c.to_dict() for c in s.outputs],
                }
                for s in self.shapes
            ],
            "constants": {k: finite(v) for k, v in self.constants.items()},
            "failures": list(self.failures),
            "quality": [q.to_dict() for q in self.quality],
        }


def check_onnx(
    program: Program,
    path: str | Path,
    *,
    original: Program | None = None,
    provider: str = "auto",
    shapes: Sequence[Mapping[str, int]] | None = None,
    inputs: Sequence[Sequence[torch.Tensor]] | None = None,
    seed: int = 0,
    threads: int | None = None,
    reference64: Reference | None = None,
    dtype: OnnxDtype | None = None,
) -> OnnxCheck:
    """Whether the file `path` computes what `program` computes, and where it runs.

    Compares names, types, dimensions and weights, then the outputs of ONNX Runtime and PyTorch for the example inputs
    and for inputs drawn at each of `shapes` (sizes by dimension name), or for the flat `inputs` given, against float64.
    A file in float16 or bfloat16 is compared with the program whose every result is rounded to that type. `dtype` is
    the type that the file has to be in; None takes the one that it says. Where the program has weights on disk, it is
    run operator by operator, at all shapes side by side, and ONNX Runtime maps the file's external data into memory.

    Raises:
        InputError: the file cannot be read.
        CheckError: the check cannot run: no ONNX Runtime, no such provider, no float64 reference.
    """
    path = Path(path)
    model = load_model(path)
    ort_provider = resolve_provider(provider)
    said = read_dtype(model)
    if dtype is not None:
        torch_dtype(dtype)
    tolerance = (
        tolerance_for(ort_provider, {w.dtype for w in program.info.values()})
        if said == "float32"
        else tolerance_of_type(said)
    )
    failures = [f"the file is in {said}, {dtype} was asked for"] if dtype not in (None, said) else []
    failures += [*interface_failures(program, model, said), *weight_failures(program, model, path, said)]
    streamed = program.weights.on_disk
    session = _session(path, ort_provider, threads, said, streamed)
    nodes = node_assignments(session)
    counts = Counter(provider_name(n.provider) for n in nodes)
    off = Counter(n.op_type for n in nodes if n.provider != ort_provider)
    rows: list[ShapeCheck] = []
    quality: list[Quality] = []
    if not _interface_differs(session, program):
        batches = list(_batches(program, shapes, inputs, seed))
        judge = _Judge(program, session, reference64, tolerance, said)
        rows = judge.run_all(batches)
        if shapes is None and inputs is None and _too_few(rows):
            more = list(_batches(program, single_variations(program), None, seed))
            batches, rows = [*batches, *more], [*rows, *judge.run_all(more)]
        rolled = reordered_rows(program) if shapes is None and inputs is None and _too_few(rows) else None
        if rolled is not None:
            more = [(example_sizes(program), rolled)]
            batches, rows = [*batches, *more], [*rows, *judge.run_all(more)]
        failures.extend(_run_failures(rows))
        quality = measure_quality(original, program, [i for (_, i), r in zip(batches, rows, strict=True) if r.outputs])
    elif not failures:
        failures.append("ONNX Runtime reports other inputs or outputs than the program has, so nothing was run")
    return OnnxCheck(
        provider_name(ort_provider), dict(counts), tuple(f"{op} x{n}" for op, n in off.most_common()),
        tolerance, tuple(rows), tuple(failures), tuple(quality), constant_outputs(program), said, streamed,
    )  # fmt: skip


def _session(path: Path, ort_provider: str, threads: int | None, dtype: str, mapped: bool) -> Any:
    try:
        return create_session(path.resolve(), ort_provider, threads=threads, mapped=mapped)
    except CheckError as error:
        if dtype == "float32":
            raise
        raise CheckError(
            f"a file in {dtype} was not run, so it is not checked: {error.what}",
            remedy="check it on the provider that will serve it (--provider cuda), or export float16, which every "
            "provider runs" if dtype == "bfloat16" else error.remedy,
        ) from error  # fmt: skip


def _interface_differs(session: Any, program: Program) -> bool:
    """Where names differ, no run is possible; the interface failures say so already."""
    return [i.name for i in session.get_inputs()] != list(program.outside_names) or [
        o.name for o in session.get_outputs()
    ] != list(tensor_outputs(program))


def _batches(
    program: Program,
    shapes: Sequence[Mapping[str, int]] | None,
    inputs: Sequence[Sequence[torch.Tensor]] | None,
    seed: int,
) -> Iterator[tuple[Sizes, list[torch.Tensor]]]:
    if inputs is not None:
        if shapes is not None:
            raise InputError("both shapes and inputs were given", remedy="give one of them: inputs have shapes")
        for given in inputs:
            yield _sizes_of(program, given), list(given)
        return
    if shapes is None:
        yield example_sizes(program), list(program.example_inputs)
    generator = torch.Generator().manual_seed(seed)
    for sizes in default_shapes(program) if shapes is None else shapes:
        yield dict(sizes), draw_inputs(program, sizes, generator)


def _sizes_of(program: Program, inputs: Sequence[torch.Tensor]) -> Sizes:
    if len(inputs) != len(program.input_names):
        raise InputError(f"{len(inputs)} inputs were given, the program has {len(program.input_names)}")
    named = zip(program.input_names, inputs, strict=True)
    dims = ((t, dim, name) for key, t in named for dim, name in program.dynamic.get(key, {}).items())
    return {name: t.shape[dim] for t, dim, name in dims if dim < t.dim() and not summands(name)}


@dataclass(frozen=True)
class _Judge:
    """Runs the program and the file on the same inputs and compares them."""

    program: Program
    session: Any
    reference64: Reference | None
    tolerance: Tolerance
    dtype: str

    def run_all(self, batches: Sequence[tuple[Sizes, list[torch.Tensor]]]) -> list[ShapeCheck]:
        """One row for each batch."""
        with _quiet():
            answer = self._together([x for _, x in batches]) if self.program.weights.on_disk else self._one_by_one()
            return [self._run_one(sizes, inputs, *answer(i, inputs)) for i, (sizes, inputs) in enumerate(batches)]

    def _one_by_one(self) -> _Answers:
        module = self.program.flat_module().eval()
        exact = self.reference64 or (lambda x: run_float64(self.program, x))

        def expected(inputs: list[torch.Tensor]) -> Sequence[Any]:
            if self.dtype == "float32":
                return module(*inputs)  # type: ignore[no-any-return]
            return run_rounded(self.program, inputs, torch_dtype(self.dtype))

        return lambda _, inputs: (lambda: expected(inputs), lambda: exact(inputs))

    def _together(self, batches: Sequence[list[torch.Tensor]]) -> _Answers:
        """All answers of the program from one walk over it."""
        narrow = self.dtype != "float32"
        own = RoundedEvaluator(self.program, torch_dtype(self.dtype)) if narrow else Evaluator(self.program)
        evaluators = [own] if self.reference64 else [own, Evaluator(self.program, dtype=torch.float64)]
        found = run_together(evaluators, batches)

        def answers(i: int, inputs: list[torch.Tensor]) -> tuple[_Answer, _Answer]:
            given = self.reference64
            exact = (lambda: given(inputs)) if given else (lambda: _or_raise(found[1][i]))
            return lambda: _or_raise(found[0][i]), exact

        return answers

    def _run_one(self, sizes: Sizes, inputs: list[torch.Tensor], own: _Answer, reference: _Answer) -> ShapeCheck:
        try:
            with torch.no_grad():
                expected = _tensors(own())
        except Exception as error:  # any operator may refuse a size
            return ShapeCheck(sizes, not_applicable=_reason(error))
        try:
            found = run_session(self.session, inputs)
        except Exception as error:  # the errors of ONNX Runtime share no base class of their own
            return ShapeCheck(sizes, failure=f"ONNX Runtime cannot run: {_reason(error)}")
        got, want = [list(t.shape) for t in found], [list(t.shape) for t in expected]
        if got != want:
            return ShapeCheck(sizes, failure=f"ONNX Runtime returns the shapes {got}, the program {want}")
        exact = _tensors(_exact(reference))
        rows = zip(tensor_outputs(self.program), found, expected, exact, strict=True)
        return ShapeCheck(sizes, tuple(compare(*row, self.tolerance) for row in rows))


def _or_raise(answer: Answer) -> list[Any]:
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def _quiet() -> Iterator[None]:
    """Operators warn about the sizes they are given; what matters shows in the outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tensors(outputs: Iterable[Any]) -> list[torch.Tensor]:
    """Without the outputs that are constants: the metadata of the file is compared with those."""
    return [value for value in outputs if isinstance(value, torch.Tensor)]


def _exact(reference: _Answer) -> Sequence[Any]:
    try:
        return reference()
    except CheckError:
        raise
    except Exception as error:  # any operator may refuse float64
        raise CheckError(
            f"the program cannot be evaluated in float64, so there is nothing to judge rounding by: {_reason(error)}",
            remedy="pass reference64, a function that computes the outputs in float64",
        ) from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _at(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "the example's shapes"


def _too_few(rows: Sequence[ShapeCheck]) -> bool:
    """Whether fewer than two runs happened, or only at one of several shapes: one shape hides what it was frozen at."""
    ran = [row.sizes for row in rows if row.not_applicable is None]
    offered = [row.sizes for row in rows]
    one_of_many = all(sizes == ran[0] for sizes in ran) and any(sizes != offered[0] for sizes in offered)
    return len(ran) < REQUIRED_RUNS or one_of_many


def _run_failures(rows: Sequence[ShapeCheck]) -> Iterator[str]:
    for row in rows:
        at = _at(row.sizes)
        if row.failure:
            yield f"at {at}: {row.failure}"
        for output in row.outputs:
            if not output.ok:
                yield f"at {at}: the output {output.name!r} differs: {output.problem}"
    if _too_few(rows):
        ran = len({tuple(row.sizes.items()) for row in rows if row.not_applicable is None})
        reason = next((r.not_applicable for r in rows if r.not_applicable), "no other shapes were given")
        yield f"the program ran at {ran} shapes, {REQUIRED_RUNS} are needed; give shapes that it can run ({reason})"
