"""Recipes: what they say, and how a mistake in one is shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from fxslim.graph.errors import InputError
from fxslim.recipe import SHARED, Pinned, load_recipe, parse_recipe, recipe_text
from fxslim.slim_options import SlimOptions
from fxslim.yaml_lines import read_yaml

FULL = SlimOptions(
    "bundled:opt-python", keep=0.7, of="macs", method="fasp", importance="flap", budget="uniform", rounds=2,
    schedule="linear", slope=0.5, calibration=("a.txt=0.7", "b.txt=0.3"), evaluation="c.txt", restore="bias",
    groups=("neurons", "heads*"), keep_fixed=("*.head",), uncounted=("embed*",), inexact=True, round_to=8, samples=32,
    window=64, text_field="body", seed=3, opset=21, provider="cpu", threads=2, latency_seconds=2.5,
    sizes="batch=1,sequence=64", split_fused=True, prepare=("fold-norms",),
    task="text-generation", loader_compatible=True, dtype="float32",
    onnx_dtype="float16", quantize="dynamic", max_quality_loss=0.02, min_speedup=1.2, max_bytes=30_000_000,
    max_parity_error=1e-4, stream=True, offload_activations=True, device="cuda:0", trust_pt2=True,
    trust_remote_code=True,
)  # fmt: skip


def message(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_recipe(text, "r.yaml")
    return str(caught.value)


def test_everything_that_flags_can_say_goes_through_a_recipe_and_back() -> None:
    unsaid = {f.name for f in dataclasses.fields(FULL) if getattr(FULL, f.name) == f.default}
    assert unsaid == {"width", "plan"}  # they exclude `keep`
    pinned = Pinned("0" * 64, "1" * 64, None, {"torch": "2.13"})
    found = parse_recipe(recipe_text(FULL, pinned))
    assert found.options == FULL and found.pinned == pinned and not found.targets


def test_a_recipe_says_defaults_too_since_these_may_change() -> None:
    said = yaml.safe_load(recipe_text(SlimOptions("m", keep=0.5), Pinned()))
    assert said == {
        "recipe": 1, "model": "m", "keep": 0.5, "of": "params", "schedule": "geometric", "slope": 0.25, "seed": 0,
        "opset": 20, "provider": "auto", "threads": 1, "latency_seconds": 10.0,
    }  # fmt: skip


def test_targets_take_what_is_common_and_their_own_share() -> None:
    text = """
recipe: 1
model: bundled:digits-resnet
keep: 0.9
round_to: 8
targets:
  half: {keep: 0.5}
  wide: {width: 0.5, quantize: dynamic}
"""
    found = parse_recipe(text)
    half, wide = found.targets["half"], found.targets["wide"]
    assert (half.keep, half.width, half.round_to) == (0.5, None, 8)
    assert (wide.keep, wide.width, wide.quantize, wide.model) == (None, 0.5, "dynamic", "bundled:digits-resnet")


def test_what_the_targets_share_exists() -> None:
    assert set(SHARED) <= {f.name for f in dataclasses.fields(SlimOptions)}


def test_a_change_takes_the_place_of_a_value(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("recipe: 1\nmodel: m\nkeep: 0.9\n")
    found = load_recipe(path, ["keep=0.5", "groups=[neurons]"])
    assert found.options == SlimOptions("m", keep=0.5, groups=("neurons",))
    with pytest.raises(InputError, match="no change"):
        load_recipe(path, ["keep"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("keep: lots", "r.yaml:3: keep is 'lots'; a number is wanted"),
        ("keep: true", "r.yaml:3: keep is True; a number is wanted"),
        ("keep: 1.5", "r.yaml:3"),
        ("keep: .nan", "r.yaml:3"),
        ("of: bytes", "r.yaml:3: of is 'bytes'; 'params', 'macs' or 'latency' is wanted"),
        ("quantize: int4", "'dynamic' or 'static' is wanted"),
        ("round-to: 8", "r.yaml:3: there is no 'round-to'; did you mean 'round_to'?"),
        ("Keep: 0.5", "did you mean 'keep'?"),
        ("colour: red", "there is no 'colour'; choose among model, keep"),
        ("seed: 1.5", "a whole number is wanted"),
        ("groups: neurons", "a list is wanted"),
        ("groups: [1]", "text is wanted"),
        ("opset: 3\nkeep: 0.5", "opset 3 is not supported"),
        ("threads: 0\nkeep: 0.5", "--threads is 0"),
        ("max_quality_loss: -1\nkeep: 0.5", "--max-quality-loss is -1"),
        ("min_speedup: 0\nkeep: 0.5", "--min-speedup is 0"),
        ("model: again", "'model' is said twice\n  where: r.yaml:3"),
        ("window: 2020-01-01", "a date is no value here"),
        ("pinned: {model: 12}", "`pinned` holds texts"),
        ("pinned: {modle: x}", "choose among model, calibration"),
        ("targets: {}", "`targets` are names with what differs"),
        ("targets: {targets.json: {keep: 0.5}}", "cannot be the name of a directory"),
        ("targets: {con: {keep: 0.5}}", "cannot be the name of a directory"),
        ("targets: {a.: {keep: 0.5}}", "cannot be the name of a directory"),
        ("targets: {Half: {keep: 0.5}, half: {keep: 0.4}}", "is one directory with another target"),
        ("keep: !!float 0.5", "tags such as"),
        ("targets: {a/b: {keep: 0.5}}", "cannot be the name of a directory"),
        ("targets: {..: {keep: 0.5}}", "cannot be the name of a directory"),
        ("targets: {a: {model: x}}", "is the same for all targets"),
        ("targets: {a: 3}", "is no mapping"),
        ("a: &x 1\nb: *x", "aliases are not read"),
        ("keep: [", "this is no YAML"),
        ("[]: 1", "a key must be a name"),
        ("plan: p.json\nkeep: 0.5", "exclude each other"),
    ],
)
def test_a_mistake_is_shown_with_its_line_and_what_is_allowed(line: str, expected: str) -> None:
    found = message(f"recipe: 1\nmodel: m\n{line}\n")
    assert expected in found
    assert "r.yaml" in found


def test_all_mistakes_are_shown_at_once() -> None:
    found = message("recipe: 1\nmodel: m\nkeep: lots\nof: bytes\n")
    assert "r.yaml:3" in found and "r.yaml:4" in found


def test_a_mistake_in_a_target_has_the_line_of_the_target() -> None:
    text = "recipe: 1\nmodel: m\ntargets:\n  half:\n    keep: 0.5\n    opset: high\n"
    assert "r.yaml:6: opset is 'high'" in message(text)
    assert "r.yaml:5" in message("recipe: 1\nmodel: m\ntargets:\n  half:\n    keep: 2\n")


@pytest.mark.parametrize(
    "text", ["", "- a", "3", "model: m\nkeep: 0.5", "recipe: 2\nmodel: m", "recipe: true\nmodel: m"]
)
def test_what_is_no_recipe_is_told_so(text: str) -> None:
    assert "recipe" in message(text)


def test_a_model_has_to_be_named() -> None:
    assert "'model' is missing" in message("recipe: 1\nkeep: 0.5\n")


def test_deep_nesting_and_long_files_are_refused() -> None:
    assert "nested too deeply" in message("a: " + "[" * 5000 + "]" * 5000)
    assert "bytes are no recipe" in message("#" * (1 << 20) + "\n")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_lines_are_those_of_keys_and_of_items() -> None:
    document = read_yaml("a:\n  - 1\n  - x: 2\n", "d")
    assert document.at(("a",)) == "d:1"
    assert document.at(("a", 1, "x")) == "d:3"
    assert document.at(("a", 0, "missing")) == "d:2"


def test_a_change_goes_on_top_of_what_targets_say() -> None:
    text = "recipe: 1\nmodel: m\ntargets: {a: {keep: 0.5, round_to: 3}, b: {width: 0.5}}\n"
    found = parse_recipe(text, changes=["keep=0.7", "round_to=4"])
    assert {(t.keep, t.width, t.round_to) for t in found.targets.values()} == {(0.7, None, 4)}


@pytest.mark.parametrize("change", ["window=2020-01-01", "window=2020-13-40", "window=[", "window=*x", "=3"])
def test_a_change_that_is_none(change: str) -> None:
    with pytest.raises(InputError):
        parse_recipe("recipe: 1\nmodel: m\nkeep: 0.5\n", changes=[change])


def test_no_more_is_read_than_a_recipe_may_hold() -> None:
    with pytest.raises(InputError, match="bytes are no recipe"):
        load_recipe("/dev/zero")
