"""Mistakes that users make, and others with bad intent: what is said, and the exit code."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tests.bad_input.place import Place
from tests.fxslim.factories import BROKEN, CLASSIFIER, OTHER

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """A mistake. `make` makes it in a place of its own and gives the words of the command."""

    area: str
    name: str
    make: Callable[[Place], list[str]]
    says: str
    exit_code: int = 2


def _recipe(name: str, says: str, *lines: str) -> Case:
    return Case("recipe", name, lambda p: p.recipe(*lines), says)


def _slim(area: str, name: str, says: str, *words: str) -> Case:
    return Case(area, name, lambda p: p.slim(*words), says)


def _model(name: str, says: str, damage: Callable[[Place], object]) -> Case:
    """A language model whose directory was damaged."""

    def make(place: Place) -> list[str]:
        damage(place)
        return ["slim", str(place.model), "--keep", "0.8", "--calibration", str(place.text), "-o", place.out]

    return Case("model", name, make, says)


def _data(name: str, says: str, write: Callable[[Place], str]) -> Case:
    return Case("data", name, lambda p: p.slim("--keep", "0.8", "--calibration", write(p)), says)


def _plan(name: str, says: str, damage: Callable[[Place], object]) -> Case:
    def make(place: Place) -> list[str]:
        damage(place)
        return place.slim("--plan", str(place.plan))

    return Case("plan", name, make, says)


def _check(name: str, says: str, damage: Callable[[Place], object], exit_code: int = 1) -> Case:
    def make(place: Place) -> list[str]:
        damage(place)
        return ["check", str(place.result)]

    return Case("result", name, make, says, exit_code)


def _flip(file: Path, at: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _swap(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def _cuts(place: Place) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(place.plan.read_text())["cuts"]
    return found


def _first_cut(place: Place, **changes: object) -> None:
    first, *rest = _cuts(place)
    place.edit(place.plan, cuts=[{**first, **changes}, *rest])


def _huge_header(place: Place) -> str:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    return place.write("huge.safetensors", struct.pack("<Q", len(header)) + header)


def _huge_array(place: Place) -> str:
    np.save(place.root / "huge.npy", np.zeros((2, 8), np.float32))
    _bytes = (place.root / "huge.npy").read_bytes()
    return place.write("huge.npy", _bytes.replace(b"(2, 8), }         ", b"(99999999999, 8), }", 1))


def _locked(place: Place) -> list[str]:
    """Where everyone may write to everything (root), a file stands in for a directory that may not be written to."""
    folder = place.root / "locked"
    if not hasattr(os, "geteuid") or os.geteuid() == 0:
        folder.write_text("")
    else:
        folder.mkdir(mode=0o500)
    return ["slim", CLASSIFIER, "--keep", "0.8", "-o", str(folder / "out")]


def _occupied(place: Place, name: str, content: str) -> list[str]:
    place.write(name, content)
    return ["slim", CLASSIFIER, "--keep", "0.8", "-o", place.out]


def _onnx(place: Place) -> Path:
    return place.result / "model.onnx"


def _external(place: Place) -> list[str]:
    """An ONNX file that says that its weights lie somewhere else on this machine."""
    import onnx

    model = onnx.load(_onnx(place))
    first = model.graph.initializer[0]
    first.ClearField("raw_data")
    first.data_location = onnx.TensorProto.EXTERNAL
    entry = first.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/hostname"
    _onnx(place).write_bytes(model.SerializeToString())
    return ["check", str(place.result / "slim"), str(_onnx(place))]


def _weight(place: Place, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    place.weights(place.model / "model.safetensors", change)


FC1 = "model.decoder.layers.0.fc1.weight"
NO_MODEL = "no such model"

RECIPES = [
    _recipe("text for a number", "recipe.yaml:3: keep is 'lots'; a number is wanted", "keep: lots"),
    _recipe("truth for a number", "keep is True; a number is wanted", "keep: yes"),
    _recipe("a share above 1", "recipe.yaml:3", "keep: 1.5"),
    _recipe("a share of 0", "recipe.yaml:3", "keep: 0"),
    _recipe("not a number", "recipe.yaml:3", "keep: .nan"),
    _recipe("an unknown currency", "'params', 'macs' or 'latency' is wanted", "keep: 0.8", "of: bytes"),
    _recipe("an unknown quantisation", "'dynamic' or 'static' is wanted", "keep: 0.8", "quantize: int4"),
    _recipe("an unknown importance", "choose one of magnitude", "keep: 0.8", "importance: best"),
    _recipe("an unknown method", "there is no method 'fast'", "keep: 0.8", "method: fast"),
    _recipe("a dash for an underscore", "did you mean 'round_to'?", "keep: 0.8", "round-to: 8"),
    _recipe("an unknown key", "there is no 'colour'; choose among", "keep: 0.8", "colour: red"),
    _recipe("a key said twice", "'keep' is said twice", "keep: 0.8", "keep: 0.7"),
    _recipe("half a position", "seed is 1.5; a whole number is wanted", "keep: 0.8", "seed: 1.5"),
    _recipe("text for a list", "groups is 'neurons'; a list is wanted", "keep: 0.8", "groups: neurons"),
    _recipe("a date", "a date is no value here", "keep: 0.8", "text_field: 2020-01-01"),
    _recipe("no YAML", "this is no YAML", "keep: ["),
    _recipe("a tab", "this is no YAML", "keep:\t\t0.8", "\tx: 1"),
    _recipe("an object", "tags such as", "keep: !!python/object/apply:os.system [id]"),
    _recipe("an alias", "aliases are not read", "sizes: &a b", "task: *a"),
    _recipe("deep nesting", "nested too deeply", "keep: " + "[" * 4000 + "]" * 4000),
    _recipe("two amounts", "exclude each other", "keep: 0.8", "width: 0.8"),
    _recipe("no amount", "nothing says how much remains", "seed: 1"),
    _recipe("an opset that is not supported", "opset 3 is not supported", "keep: 0.8", "opset: 3"),
    _recipe("no thread", "--threads is 0", "keep: 0.8", "threads: 0"),
    _recipe("a gate that nothing passes", "--min-speedup is 0", "keep: 0.8", "min_speedup: 0"),
    _recipe("a gate on quality without data", "needs evaluation data", "keep: 0.8", "max_quality_loss: 0.1"),
    _recipe("no target", "`targets` are names with what differs in each", "targets: []"),
    _recipe("a target outside", "cannot be the name of a directory", "targets: {../x: {keep: 0.8}}"),
    _recipe("a target with a model of its own", "the same for all targets", "targets: {a: {model: x, keep: 0.8}}"),
    _recipe("a mistake in a target", "recipe.yaml:5: keep is 'x'", "targets:", "  a:", "    keep: x"),
    _recipe("another model than pinned", "the model is not what the recipe was made with", "keep: 0.8", "pinned: {model: 'ab'}"),
    _recipe("a pin that is a number", "`pinned` holds texts", "keep: 0.8", "pinned: {model: 12}"),
    Case("recipe", "another version", lambda p: ["run", p.write("r.yaml", "recipe: 9\n"), "-o", p.out], "format 9"),
    Case("recipe", "an empty file", lambda p: ["run", p.write("r.yaml", ""), "-o", p.out], "a recipe is a mapping"),
    Case("recipe", "not UTF-8", lambda p: ["run", p.write("r.yaml", b"model: \xe9"), "-o", p.out], "not UTF-8"),
    Case("recipe", "no file", lambda p: ["run", str(p.root / "none.yaml"), "-o", p.out], "cannot be read"),
    Case("recipe", "a directory", lambda p: ["run", str(p.root), "-o", p.out], "cannot be read"),
    Case("recipe", "too long", lambda p: ["run", p.write("r.yaml", "#" * 1_100_000), "-o", p.out], "bytes are no recipe"),
    Case("recipe", "a malformed change", lambda p: [*p.recipe("keep: 0.8"), "--set", "keep"], "is no change of a recipe"),
]  # fmt: skip

OPTIONS = [
    _slim("option", "nothing to keep", "nothing says how much remains"),
    _slim("option", "keep and width", "exclude each other", "--keep", "0.8", "--width", "0.5"),
    _slim("option", "keep of 0", "keep", "--keep", "0"),
    _slim("option", "less than can remain", "keep", "--keep", "0.0001"),
    _slim("option", "an unknown method", "is not one of", "--keep", "0.8", "--method", "magic"),
    _slim("option", "an unknown provider", "provider", "--keep", "0.8", "--provider", "abacus"),
    _slim("option", "a pattern without match", "matches no group", "--keep", "0.8", "--keep-fixed", "nothing.*"),
    _slim("option", "sizes without number", "is no size of a dimension", "--keep", "0.8", "--sizes", "batch"),
    _slim("option", "sizes of another dimension", "has no dynamic dimension", "--keep", "0.8", "--sizes", "time=3"),
    _slim("option", "data without need", "needs calibration data", "--keep", "0.8", "--method", "fasp"),
    _slim("option", "static without data", "static quantisation needs calibration data", "--keep", "0.8", "--quantize", "static"),
    _slim("option", "a classifier's own text", "can write its own calibration text", "--keep", "0.8", "--calibration", "self"),
    _slim("option", "an option that is none", "No such option", "--keep", "0.8", "--fast"),
    Case("option", "nowhere to write to", lambda p: ["slim", CLASSIFIER, "--keep", "0.8"], "nothing says where the result goes"),
    Case("option", "no such command", lambda p: ["squeeze", CLASSIFIER], "No such command"),
    Case("option", "explain a weight that is not there", lambda p: ["explain", CLASSIFIER, "nothing[0]"], "nothing"),
    Case("option", "explain a dimension that is not there", lambda p: ["explain", CLASSIFIER, "first.weight[7]"], "first.weight"),
]  # fmt: skip

MODELS = [
    Case("model", "no such name", lambda p: ["groups", "no/such/model/here"], "no"),
    Case("model", "no such bundled model", lambda p: ["groups", "bundled:gpt-5"], "opt-python"),
    Case("model", "no such module", lambda p: ["groups", "no_such_module:make"], "no_such_module"),
    Case("model", "no such factory", lambda p: ["groups", "tests.fxslim.factories:nothing"], "nothing"),
    Case("model", "weights that are NaN", lambda p: ["slim", BROKEN, "--keep", "0.8", "-o", p.out], "NaN"),
    Case("model", "a .pt2 without trust", lambda p: ["groups", p.write("m.pt2", b"PK")], "--trust-pt2"),
    Case("model", "a .pt2 that is none", lambda p: ["groups", p.write("m.pt2", b"PK"), "--trust-pt2"], "m.pt2"),
    Case("model", "a text file", lambda p: ["groups", str(p.text)], "text.txt"),
    Case("model", "an empty directory", lambda p: [(p.root / "empty").mkdir(), "groups", str(p.root / "empty")][1:], "config.json"),
    _model("no config", "config.json", lambda p: (p.model / "config.json").unlink()),
    _model("a config that is no JSON", "config.json", lambda p: (p.model / "config.json").write_text("{")),
    _model("a config of an unknown kind", "the architecture 'Nope' is unknown", lambda p: p.edit(p.model / "config.json", model_type="nope", architectures=["Nope"])),
    _model("a config that names code", "--trust-remote-code", lambda p: p.edit(p.model / "config.json", auto_map={"AutoModelForCausalLM": "x.Y"}, architectures=["Y"])),
    _model("a config with other sizes", "have another shape", lambda p: p.edit(p.model / "config.json", ffn_dim=48)),
    _model("no weights", "model.safetensors", lambda p: (p.model / "model.safetensors").unlink()),
    _model("pickled weights alone", "unpickling can run any code", lambda p: (p.model / "model.safetensors").rename(p.model / "pytorch_model.bin")),
    _model("half a weight file", "the file of weights is damaged or cut off", lambda p: _cut(p.model / "model.safetensors")),
    _model("weights that are no safetensors", "the file of weights is damaged or cut off", lambda p: (p.model / "model.safetensors").write_bytes(b"x" * 100)),
    _model("a header of terabytes", "the file of weights is damaged or cut off", lambda p: shutil.copyfile(_huge_header(p), p.model / "model.safetensors")),
    _model("a weight that is NaN", "NaN", lambda p: _weight(p, lambda t: t[FC1].fill_(float("nan")))),
    _model("a weight that is missing", FC1, lambda p: _weight(p, lambda t: t.pop(FC1))),
    _model("a weight of another shape", "fc1.weight (", lambda p: _weight(p, lambda t: t.update({FC1: torch.ones(3, 3)}))),
    _model("no tokenizer", "tokenizer", lambda p: [f.unlink() for f in p.model.glob("tokenizer*")]),
    _model("text that is too short", "tokens", lambda p: p.text.write_text("the")),
    _model("text that is not UTF-8", "UTF-8", lambda p: p.text.write_bytes(b"\xff\xfe" * 2000)),
    _model("no text", "text.txt", lambda p: p.text.unlink()),
]  # fmt: skip

DATA = [
    _data("no file", "none.npz", lambda p: str(p.root / "none.npz")),
    _data("an unknown kind", ".csv", lambda p: p.write("d.csv", "1,2")),
    _data("no zip", "d.npz", lambda p: p.write("d.npz", b"not a zip")),
    _data("pickled objects", "d.npz", lambda p: p.arrays("d.npz", x=np.array([{}], dtype=object))),
    _data("another name", "x", lambda p: p.arrays("d.npz", y=np.zeros((4, 8), np.float32))),
    _data("another width", "x", lambda p: p.arrays("d.npz", x=np.zeros((4, 9), np.float32))),
    _data("another rank", "x", lambda p: p.arrays("d.npz", x=np.zeros(8, np.float32))),
    _data("text for numbers", "x", lambda p: p.arrays("d.npz", x=np.array([["a"] * 8]))),
    _data("NaN", "d.npz", lambda p: p.arrays("d.npz", x=np.full((4, 8), np.nan, np.float32))),
    _data("no rows", "d.npz", lambda p: p.arrays("d.npz", x=np.zeros((0, 8), np.float32))),
    _data("arrays of different length", "d.npz", lambda p: p.arrays("d.npz", x=np.zeros((4, 8), np.float32), labels=np.zeros(3, int))),
    _data("an array of terabytes", "a header speaks of 3,199,999,999,968 bytes", _huge_array),
    _data("a header of terabytes", "huge.safetensors", _huge_header),
    _data("text for a model without tokenizer", "tokenizer", lambda p: str(p.text)),
    _data("a weight that is no number", "much", lambda p: f"{p.data}=much"),
    Case("data", "no labels to score by", lambda p: p.slim("--keep", "0.8", "--evaluation", p.arrays("e.npz", x=np.zeros((4, 8), np.float32))), "labels"),
    Case("data", "a record without text", lambda p: ["slim", str(p.model), "--keep", "0.8", "-o", p.out, "--calibration", p.write("d.jsonl", '{"body": "x"}\n')], "--text-field"),
    Case("data", "a line that is no JSON", lambda p: ["slim", str(p.model), "--keep", "0.8", "-o", p.out, "--calibration", p.write("d.jsonl", "{\n")], "d.jsonl"),
]  # fmt: skip

PLANS = [
    Case("plan", "no file", lambda p: p.slim("--plan", str(p.root / "none.json")), "none.json"),
    Case("plan", "of another model", lambda p: ["slim", OTHER, "--plan", str(p.plan), "-o", p.out], "made for another model"),
    _plan("no JSON", "not a plan", lambda p: p.plan.write_text("{")),
    _plan("a list", "not a plan", lambda p: p.plan.write_text("[]")),
    _plan("of another version", "plan of format 99", lambda p: p.edit(p.plan, format=99)),
    _plan("without cuts", "not a plan", lambda p: p.plan.write_text('{"format": 1}')),
    _plan("an unknown group", "nothing.weight[0]", lambda p: _first_cut(p, group="nothing.weight[0]")),
    _plan("another size", "the plan has sizes (7,), the program (32,)", lambda p: _first_cut(p, size=7)),
    _plan("more kept than there are", "1000000 of 32 positions cannot remain", lambda p: _first_cut(p, count=10**6)),
    _plan("positions outside", "`kept` must hold 16 positions", lambda p: _first_cut(p, kept=[10**6])),
    _plan("a group twice", "twice", lambda p: p.edit(p.plan, cuts=_cuts(p) + _cuts(p)[:1])),
    _plan("another fingerprint", "made for another model", lambda p: p.edit(p.plan, fingerprint="0" * 64)),
    _plan("an unknown preparation", "melt", lambda p: p.edit(p.plan, prepare=["melt"], fingerprint="0" * 64)),
    Case("plan", "with options that made it", lambda p: p.slim("--plan", str(p.plan), "--method", "fasp"), "no effect on a plan"),
]  # fmt: skip

RESULTS = [
    _check("a changed ONNX file", "model.onnx: its content has changed", lambda p: _flip(_onnx(p))),
    _check("half an ONNX file", "bytes instead of", lambda p: _cut(_onnx(p))),
    _check("changed weights", "weights.safetensors: its content has changed", lambda p: _flip(p.result / "slim/weights.safetensors")),
    _check("a changed report", "report.json", lambda p: _swap(p.result / "report.json", '"ok"', '"OK"')),
    _check("a missing file", "plan.json: missing", lambda p: (p.result / "plan.json").unlink()),
    _check("a file more", "extra.txt: not listed", lambda p: (p.result / "extra.txt").write_text("x")),
    _check("a link", "is a link", lambda p: [(p.result / "plan.json").unlink(), (p.result / "plan.json").symlink_to("/etc/hostname")]),
    _check("a manifest that points outside", "points outside", lambda p: _swap(p.result / "manifest.json", '"plan.json"', '"../plan.json"')),
    _check("a manifest that is no JSON", "manifest.json cannot be read", lambda p: (p.result / "manifest.json").write_text("{")),
    _check("no manifest", "manifest.json", lambda p: (p.result / "manifest.json").unlink(), 2),
    Case("result", "the file of another model", lambda p: ["check", OTHER, str(_onnx(p))], "FAILED", 1),
    Case("result", "an ONNX file that is none", lambda p: ["check", CLASSIFIER, p.write("m.onnx", b"x" * 50)], "not a readable ONNX model"),
    Case("result", "no ONNX file", lambda p: ["check", CLASSIFIER, str(p.root / "none.onnx")], "none.onnx"),
    Case("result", "external data outside", _external, "points outside the directory"),
    Case("result", "bench of what is no result", lambda p: ["bench", str(p.model)], "report.json"),
    Case("result", "a graph with a foreign operator", lambda p: [_swap(p.result / "slim/graph.json", "aten.relu.default", "aten.from_file.default"), "groups", str(p.result)][1:], "not allowed"),
    Case("result", "a graph that is no JSON", lambda p: [(p.result / "slim/graph.json").write_text("{"), "groups", str(p.result)][1:], "damaged"),
    Case("result", "a graph without weights", lambda p: [(p.result / "slim/weights.safetensors").unlink(), "groups", str(p.result)][1:], "missing"),
]  # fmt: skip

OUTPUTS = [
    Case("output", "a directory with other files", lambda p: _occupied(p, "out/thesis.txt", "x"), "not empty"),
    Case("output", "other files, and overwrite", lambda p: [*_occupied(p, "out/thesis.txt", "x"), "--overwrite"], "no earlier result"),
    Case("output", "a file", lambda p: _occupied(p, "out", "x"), "taken by a file"),
    Case("output", "a parent that may not be written to", _locked, "cannot be written here"),
    Case("output", "a parent that is a file", lambda p: ["slim", CLASSIFIER, "--keep", "0.8", "-o", str(p.text / "out")], "cannot be written here"),
    Case("output", "no name", lambda p: ["slim", CLASSIFIER, "--keep", "0.8", "-o", ".."], "cannot be the name"),
    Case("output", "targets into a result", lambda p: [*p.recipe("targets: {a: {keep: 0.8}}")[:-1], str(p.result)], "is a result itself"),
    Case("output", "a name that is too long", lambda p: ["slim", CLASSIFIER, "--keep", "0.8", "-o", str(p.root / ("x" * 300))], "cannot be written"),
    Case("output", "a plan where a directory is", lambda p: ["plan", CLASSIFIER, "--keep", "0.8", "-o", str(p.model)], "cannot be written"),
]  # fmt: skip

CASES = (*RECIPES, *OPTIONS, *MODELS, *DATA, *PLANS, *RESULTS, *OUTPUTS)
