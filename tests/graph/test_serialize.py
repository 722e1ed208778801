"""Saved programs: damaged, hostile, or in the way. (That they compute the same is in tests/models/test_proofs.py.)"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxslim.graph.axes.notation import DimRule
from fxslim.graph.axes.registry import REGISTRY, Entry
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from fxslim.graph.evaluate import Evaluator
from fxslim.graph.serialize import GRAPH_FILE, INPUTS_FILE, WEIGHTS_FILE, is_saved_program, load, save
from fxslim.graph.stores import FileTensor
from tests.models.modules import MLP


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    return save(capture(model, (torch.randn(3, 4),)), tmp_path / "saved")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((path / GRAPH_FILE).read_text())
    change(data)
    (path / GRAPH_FILE).write_text(json.dumps(data))


def operator(name: str) -> Callable[[dict[str, Any]], object]:
    def change(data: dict[str, Any]) -> None:
        next(n for n in data["nodes"] if n["target"] == "aten.relu.default")["target"] = name

    return change


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "builtins.eval", "aten.__class__.x", "aten.relu.__class__", "aten.relu.default.__init__",
        "aten.relu",
        "aten.relu.op", "aten.nothing.default", "aten._dir.default", "prim.device.default", "operator.attrgetter", "",
        "aten..",
        "torch.load", "aten.relu.__call__",
    ],
)  # fmt: skip
def test_only_atens_operators_are_loaded(saved: Path, name: str) -> None:
    edit(saved, operator(name))
    with pytest.raises(InputError, match=r"operator|not allowed"):
        load(saved)


def first_weight(data: dict[str, Any]) -> dict[str, Any]:
    return next(iter(data["weights"].values()))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(format=99),
        lambda d: d.pop("nodes"),
        lambda d: d.update(nodes=3),
        lambda d: d["nodes"].pop(0),
        lambda d: d["nodes"].reverse(),
        lambda d: d["nodes"][-1].update(op="call_module"),
        lambda d: d["nodes"].pop(),
        lambda d: d["weights"].update(ghost=first_weight(d)),
        lambda d: d["weights"].pop("0.weight"),
        lambda d: d.update(inputs={"set": []}),
        lambda d: d.update(outputs="nothing"),
        lambda d: d.update(dynamic={"input": {"x": "rows"}}),
    ],
)
def test_damaged_graphs_are_refused(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(saved, change)
    with pytest.raises(InputError):
        load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_what_is_no_json_is_refused(saved: Path, text: str) -> None:
    (saved / GRAPH_FILE).write_text(text)
    with pytest.raises(InputError, match=r"damaged|unknown format"):
        load(saved)


@pytest.mark.parametrize("name", [GRAPH_FILE, WEIGHTS_FILE, INPUTS_FILE])
def test_missing_and_truncated_files_are_refused(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    for size in (0, 5, len(content) - 3):
        (saved / name).write_bytes(content[:size])
        with pytest.raises(InputError, match="damaged"):
            load(saved)
    (saved / name).unlink()
    with pytest.raises(InputError, match="missing"):
        load(saved)


def test_an_existing_directory_is_not_overwritten(saved: Path) -> None:
    program = load(saved)
    before = {f.name: f.read_bytes() for f in saved.iterdir()}
    with pytest.raises(InputError, match="exists and is not empty"):
        save(program, saved)
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["saved"], "no temporary files stay behind"
    (saved.parent / "empty").mkdir()
    assert is_saved_program(save(program, saved.parent / "empty"))
    (saved.parent / "file").write_text("mine")
    with pytest.raises(InputError):
        save(program, saved.parent / "file")
    assert (saved.parent / "file").read_text() == "mine"


def test_numbers_that_json_does_not_know_survive(tmp_path: Path) -> None:
    class Bounds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill(x > 1, -math.inf).clamp(max=math.inf).nan_to_num(neginf=0.1 + 0.2)

    x = torch.randn(20)
    again = load(save(capture(Bounds(), (x,)), tmp_path / "saved"))
    assert torch.equal(Evaluator(again).run([x])[0], Bounds()(x))
    json.loads((tmp_path / "saved" / GRAPH_FILE).read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_operators_of_others_cannot_be_saved(tmp_path: Path) -> None:
    library = torch.library.Library("fxslim_test", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")

    class Custom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.fxslim_test.twice(x)

    with pytest.raises(InputError, match=r"fxslim_test\.twice\.default is not ATen's"):
        save(capture(Custom(), (torch.randn(3),)), tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_calls_remember_the_modules_that_they_were_made_in(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    program = capture(module, (torch.randn(2, 4),))
    again = load(save(program, tmp_path / "saved"))
    scopes = [[n.meta["nn_module_stack"] for n in p.graph.nodes if n.op == "call_function"] for p in (program, again)]
    assert scopes[0] == scopes[1]
    assert [path for path, _ in scopes[1][-1].values()] == ["", "1", "1.1"]


def test_what_is_saved_again_is_the_same(tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (torch.randn(2, 4),))
    first = save(program, tmp_path / "first")
    second = save(load(first), tmp_path / "second")
    for file in first.iterdir():
        assert (second / file.name).read_bytes() == file.read_bytes()


def test_names_of_calls_survive(tmp_path: Path) -> None:
    """Tracing a loaded program anew would give other ones, and a run that goes on from it would write other files."""
    first = save(capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), (torch.randn(2, 4),)), tmp_path / "first")
    graph = first / "graph.json"
    assert graph.read_text().count('"relu"') > 1
    graph.write_text(graph.read_text().replace('"relu"', '"relu_7"'))
    again = save(load(first), tmp_path / "second")
    assert (again / "graph.json").read_bytes() == graph.read_bytes()


def test_operators_of_others_with_a_rule_are_saved_and_loaded_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = torch.library.Library("fxslim_test", "FRAGMENT")
    library.define("thrice(Tensor x) -> Tensor")
    library.impl("thrice", lambda x: x * 3, "CompositeExplicitAutograd")
    op = torch.ops.fxslim_test.thrice.default

    class Custom(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return op(x)

    with monkeypatch.context() as patched:
        patched.setitem(REGISTRY, op, Entry(op, lambda call: DimRule.parse("a -> a")))
        saved, x = save(capture(Custom(), (torch.randn(3),)), tmp_path / "saved"), torch.randn(3)
        assert torch.equal(Evaluator(load(saved)).run([x])[0], 3 * x)
    with pytest.raises(InputError, match=r"(?s)'fxslim_test.thrice.default' is not allowed.*that of a plug-in"):
        load(saved)  # an operator that happens to be there is not enough: its author has to have said so


def test_weights_go_to_several_files_where_they_are_large(tmp_path: Path) -> None:
    program = capture(MLP(), (torch.randn(2, 6),))
    place = save(program, tmp_path / "p", shard=100)
    assert not (place / WEIGHTS_FILE).exists() and len(list(place.glob("weights-*-of-*.safetensors"))) > 2
    for stream in (False, True):
        found = load(place, stream=stream)
        assert found.weights.on_disk is stream and found.fingerprint() == program.fingerprint()
        assert all(torch.equal(found.weights[n], program.weights[n]) for n in program.info)
    index = place / f"{WEIGHTS_FILE}.index.json"
    index.write_text(index.read_text().replace('"weights-00001', '"../weights-00001'))
    with pytest.raises(InputError, match="files elsewhere"):
        load(place)
    next(place.glob("weights-00002*")).unlink()
    index.write_text(index.read_text().replace("../", ""))
    with pytest.raises(InputError, match=r"weights-00002.* is missing"):
        load(place, stream=True)


def test_a_saved_program_runs_off_its_files(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    program = capture(MLP(), (x,))
    found = load(save(program, tmp_path / "p"), stream=True)
    assert all(isinstance(found.weights.entry(n), FileTensor) for n in found.info)
    assert torch.equal(Evaluator(found).run([x])[0], Evaluator(program).run([x])[0])
