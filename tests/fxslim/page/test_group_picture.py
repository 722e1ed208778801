from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import fxslim
from fxslim.graph.axes.groups import Analysis
from fxslim.graph.errors import AnalysisError
from fxslim.page.group_picture import picture
from tests.fxslim import factories

SVG = "{http://www.w3.org/2000/svg}"


def analysis_of(factory: Any) -> Analysis:
    model, inputs, _, shapes = factory()
    return fxslim.analyze(fxslim.capture(model, inputs, dynamic_shapes=shapes))


@pytest.fixture(scope="module")
def classifier() -> Analysis:
    return analysis_of(factories.classifier)


def drawn(source: str) -> tuple[ElementTree.Element, list[str]]:
    """The tree, which is well formed, and its lines of text; all of them inside the picture."""
    root = ElementTree.fromstring(source)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    texts = list(root.iter(f"{SVG}text"))
    for text in texts:
        assert 0 <= float(text.attrib["x"]) < width and 0 < float(text.attrib["y"]) < height
        assert float(text.attrib["x"]) + 7.2 * len(text.text or "") < width + 24, text.text
    assert "href" not in source and "<script" not in source
    return root, [t.text or "" for t in texts]


def test_a_group_stands_on_the_tree_of_its_modules(classifier: Analysis) -> None:
    root, texts = drawn(picture(classifier, "first.weight[0]"))
    said = " | ".join(texts)
    for part in ("neurons: 32 positions", "first", "weight[0]", "second", "weight[1]", "summed by", "exact"):
        assert part in said, part
    title, desc = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None and title.text == "first.weight[0]" and desc is not None
    assert desc.text == classifier.explain("first.weight[0]"), "who does not see it is told the same"
    assert root.attrib["role"] == "img" and len(root.findall(f"{SVG}line")) == 1
    assert len(root.findall(f"{SVG}g")) == len(classifier.group("first.weight[0]").sites)


def test_two_dimensions_are_joined_by_the_calls_that_tie_them(classifier: Analysis) -> None:
    _, texts = drawn(picture(classifier, "first.weight[0]", "second.weight[1]"))
    said = " | ".join(texts)
    assert "first.weight[0] and second.weight[1] are tied" in said
    assert "at linear" in said and "rule b" in said and "factories.py" in said


def test_modules_stand_in_the_order_in_which_the_model_reads_them() -> None:
    analysis = analysis_of(factories.repeated)
    stream = max(analysis.groups, key=lambda g: len(g.sites))
    _, texts = drawn(picture(analysis, stream.name))
    branches = [[n, "0", "2"] for n in ("0", "1", "2")]  # each a linear map, something pointwise, a linear map
    assert [t for t in texts if t.isdigit()] == [name for branch in branches for name in branch]
    assert texts.index("head") > texts.index("branches")


def test_axes_that_are_tied_by_the_same_calls_share_the_chain() -> None:
    analysis = analysis_of(factories.fused)
    _, texts = drawn(picture(analysis, "qkv.weight[0]", "out.weight[1]"))
    steps = [t for t in texts if t.startswith("at ")]
    assert len(steps) == len(set(steps)) > 1 and len([t for t in texts if t.startswith("group ")]) > 1


def test_what_is_not_tied_is_shown_apart(classifier: Analysis) -> None:
    _, texts = drawn(picture(classifier, "first.weight[0]", "head.weight[0]"))
    said = " | ".join(texts)
    assert "are not tied" in said and "What head.weight[0] belongs to" in said and "fixed:" in said


def test_what_is_fixed_says_why(classifier: Analysis) -> None:
    root, texts = drawn(picture(classifier, "head.weight[0]"))
    assert any(t.startswith("fixed: ") for t in texts)
    assert root.findall(f"{SVG}g/{SVG}rect"), "a square, not a circle"
    assert not [t for t in texts if t.startswith("exact")]


def test_dimensions_of_one_dimension(classifier: Analysis) -> None:
    _, texts = drawn(picture(classifier, "first.weight[0]", "first.weight[0]"))
    assert "they are one dimension" in " | ".join(texts)


def test_every_group_of_a_model_with_several_on_one_dimension() -> None:
    analysis = analysis_of(factories.fused)
    for group in analysis.groups:
        drawn(picture(analysis, group.name))
    _, texts = drawn(picture(analysis, "qkv.weight[0]"))
    assert len([t for t in texts if t.startswith("group ")]) > 1


def test_a_group_on_many_weights_stays_a_picture() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(70)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(x)
            return x

    analysis = fxslim.analyze(fxslim.capture(Deep(), (torch.randn(2, 8),)))
    widest = max(analysis.groups, key=lambda g: len(g.sites))
    _, texts = drawn(picture(analysis, widest.name))
    assert any("more dimensions of weights" in t for t in texts)


def test_an_unknown_name_is_refused(classifier: Analysis) -> None:
    with pytest.raises(AnalysisError, match="no weight dimension"):
        picture(classifier, "<script>")
