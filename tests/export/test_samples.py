from __future__ import annotations

import pytest
import torch
from torch import nn

from fxslim.export.samples import default_shapes, draw_inputs, example_sizes
from fxslim.graph.capture import capture
from fxslim.graph.errors import InputError
from tests.export.nets import Exported

SPREAD = 0.15  # of a standard deviation estimated from some thousands of values drawn, and from few given


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_shapes_are_the_example_odd_one_and_larger(attention: Exported) -> None:
    example, odd, one, larger = default_shapes(attention.program)
    assert example == example_sizes(attention.program) == {"batch": 2, "sequence": 6}
    assert all(size % 2 for size in odd.values()) and len(set(odd.values())) == 2
    assert set(one.values()) == {1}
    assert all(larger[name] > size for name, size in example.items())


def test_a_static_program_has_one_shape() -> None:
    program = capture(nn.ReLU(), (torch.randn(2, 3),))
    assert default_shapes(program) == [{}]
    assert draw_inputs(program, {}, generator())[0].shape == (2, 3)


def test_integers_stay_in_the_range_of_the_example(attention: Exported) -> None:
    ids, mask = draw_inputs(attention.program, {"batch": 40, "sequence": 30}, generator())
    assert ids.shape == mask.shape == (40, 30) and ids.dtype is mask.dtype is torch.int64
    assert int(ids.min()) >= 0 and int(ids.max()) <= int(attention.program.example_inputs[0].max())
    assert len(ids.unique()) > 10


def test_a_mask_is_mostly_ones_and_never_empty(attention: Exported) -> None:
    _, mask = draw_inputs(attention.program, {"batch": 200, "sequence": 9}, generator())
    assert set(mask.unique().tolist()) == {0, 1}
    assert 0.7 < float(mask.float().mean()) < 0.99
    assert bool((mask.sum(-1) > 0).all())


def test_floats_have_the_mean_and_spread_of_the_example() -> None:
    example = 5 + 3 * torch.randn(2000, 3)
    program = capture(nn.ReLU(), (example,), {}, ({0: "batch"},))
    (drawn,) = draw_inputs(program, {"batch": 2000}, generator())
    assert drawn.dtype is torch.float32
    assert float(drawn.std()) == pytest.approx(3, rel=SPREAD) and float(drawn.mean()) == pytest.approx(5, rel=SPREAD)


def test_the_same_seed_draws_the_same_inputs(attention: Exported) -> None:
    sizes = {"batch": 3, "sequence": 4}
    first, second = (draw_inputs(attention.program, sizes, generator()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_dimension_that_is_a_sum_of_others_follows_them() -> None:
    class Cache(nn.Module):
        def forward(self, x: torch.Tensor, past: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.cat([past, x], 1) * mask[..., None]

    args = (torch.randn(2, 3, 4), torch.randn(2, 5, 4), torch.ones(2, 8))
    shapes = tuple({1: torch.export.Dim.DYNAMIC} for _ in args)
    program = capture(Cache(), args, {}, shapes)
    names = [program.dynamic[key][1] for key in ("x", "past")]
    x, before, mask = draw_inputs(program, dict(zip(names, (4, 7), strict=True)), generator())
    assert (x.shape[1], before.shape[1], mask.shape[1]) == (4, 7, 11)


def test_shapes_of_programs_with_caches_are_prefill_and_a_step_too() -> None:
    class Step(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, ...]:
            whole = torch.cat([past, x], 1)
            return x + (whole * mask[..., None]).sum(1, keepdim=True), whole

    args = (torch.randn(2, 3, 4), torch.ones(2, 8), torch.randn(2, 5, 4))
    shapes = ({0: "batch", 1: "new"}, {0: "batch", 1: "past + new"}, {0: "batch", 1: "past"})
    program = capture(Step(), args, {}, shapes, caches={"past": "output_1"})
    assert example_sizes(program) == {"batch": 2, "new": 3, "past": 5}
    prefill, step = default_shapes(program)[-2:]
    assert prefill == {"batch": 2, "new": 3, "past": 0} and step == {"batch": 2, "new": 1, "past": 5}
    for sizes in default_shapes(program):
        x, mask, past = draw_inputs(program, sizes, generator())
        assert (x.shape[1], past.shape[1], mask.shape[1]) == (sizes["new"], sizes["past"], sizes["new"] + sizes["past"])


def test_a_missing_size_is_an_input_error(attention: Exported) -> None:
    with pytest.raises(InputError, match="'sequence'"):
        draw_inputs(attention.program, {"batch": 3}, generator())


def test_columns_of_whole_numbers_stay_in_the_range_of_the_example() -> None:
    """A table that is read by row and column, both handed over as floats."""
    places = torch.cartesian_prod(torch.arange(1.0, 4.0), torch.arange(0.0, 5.0)).expand(2, -1, -1)
    example = torch.cat([places, torch.randn(2, 15, 6)], -1)
    program = capture(nn.ReLU(), (example,), {}, ({0: "batch"},))
    (drawn,) = draw_inputs(program, {"batch": 50}, generator())
    for column, most in ((0, 3), (1, 4)):
        assert set(drawn[..., column].unique().tolist()) == set(map(float, range(most + 1)))
    assert float(drawn[..., 2:].std()) == pytest.approx(float(example[..., 2:].std()), rel=SPREAD)


def test_rare_ones_keep_their_number_in_each_row() -> None:
    """What is put in where the mask says so has as many values as the mask has ones."""

    class PutIn(nn.Module):
        def forward(self, x: torch.Tensor, places: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
            return x.index_put((places.bool(),), found.flatten(0, 1))

    places = torch.zeros(2, 9, dtype=torch.int64)
    places[:, 2:5] = 1
    program = capture(PutIn(), (torch.randn(2, 9, 4), places, torch.randn(2, 3, 4)))
    drawn = draw_inputs(program, {}, generator())
    assert drawn[1].dtype is torch.int64 and drawn[1].sum(-1).tolist() == [3, 3]
    assert not torch.equal(drawn[1], places)
    program.flat_module()(*drawn)


def test_flags_of_one_position_take_both_values() -> None:
    class Not(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ~x

    program = capture(Not(), (torch.zeros(2, 1, dtype=torch.bool),), {}, ({0: "batch"},))
    (drawn,) = draw_inputs(program, {"batch": 50}, generator())
    assert set(drawn.unique().tolist()) == {False, True}
