from __future__ import annotations

from fxslim.page.modules import CHUNK, CUT_LANES, SEGMENT, module_map, tree_rows
from fxslim.page.sizes import ROWS, module_bars
from tests.fxslim import reports


def test_a_module_that_holds_one_other_is_joined_with_it() -> None:
    paths = [("model", "embed"), ("model", "layers", "0", "mlp", "up"), ("model", "layers", "1", "mlp", "up")]
    assert [(name, depth) for _, depth, name in tree_rows(paths)] == [
        ("model", 0), ("embed", 1), ("layers", 1), ("0.mlp.up", 2), ("1.mlp.up", 2),
    ]  # fmt: skip


def test_modules_of_one_parent_stand_together_whatever_the_order() -> None:
    paths = [("a", "x"), ("b",), ("a", "y"), ("c",), ("a", "z")]
    assert [name for _, _, name in tree_rows(paths)] == ["a", "x", "y", "z", "b", "c"]


def test_weights_of_the_model_itself_have_a_row() -> None:
    assert tree_rows([(), ("head",)]) == [((), 0, "(the model itself)"), (("head",), 0, "head")]


def test_a_group_has_a_lane_from_its_first_module_to_its_last() -> None:
    found = module_map(reports.report())
    (segment,) = found.segments
    rows = {row.path: row for row in segment.rows}
    up, down = rows["layers.0.up"].marks, rows["layers.0.down"].marks
    assert up[0].shape == "produces" and down[0].shape == "consumes"
    assert (up[0].up, up[0].down, down[0].up, down[0].down) == (False, True, True, False)
    assert up[0].x == rows["layers.1.up"].marks[0].x, "a lane is free again below its group"
    assert "neurons: 32 → 16" in rows["layers.0.up"].said
    stream = rows["layers.1.down"].marks[-1]
    assert stream.state == "fixed" and "an input of the model has it" in stream.said
    assert rows["layers.0.up"].params == (256, 128)


def test_lanes_that_overlap_stand_apart_and_those_without_room_are_counted() -> None:
    report = reports.report(layers=2)
    many = CUT_LANES + 5
    template = report["groups"][0]
    template["sites"]["consumes"] = ["layers.1.down.weight[1]"]
    report["groups"] = [{**template, "group": f"g{n}"} for n in range(many)]
    found = module_map(report)
    row = next(r for r in found.segments[0].rows if r.path == "layers.0.up")
    places = [m.x for m in row.marks if m.state == "cut"]
    assert len(places) == len(set(places)) == CUT_LANES
    assert found.undrawn == many - CUT_LANES


def test_large_models_are_folded_by_block() -> None:
    found = module_map(reports.report(layers=SEGMENT))
    assert found.folded
    assert [s.title for s in found.segments][:2] == ["layers.0 to layers.16", "layers.17 to layers.33"]
    assert all(CHUNK <= len(s.rows) < 2 * CHUNK for s in found.segments[:-1])
    assert sum(len(s.rows) for s in found.segments) + found.left_out == 1 + 3 * SEGMENT


def test_sizes_are_summed_by_module_and_agree_with_the_whole() -> None:
    for layers in (1, 2, 20, 300):
        report = reports.report(layers=layers)
        found = module_bars(report["weights"])
        bars = [*found.bars, *found.more]
        assert [sum(b.before for b in bars), sum(b.after for b in bars)] == report["costs"]["params"]
        assert len(found.bars) <= ROWS and max(b.width_before for b in bars) == 100
    few = module_bars(reports.report(layers=20)["weights"])
    assert few.inside == "layers" and [b.name for b in few.bars][:2] == ["0.up", "0.down"]
    assert len(module_bars(reports.report(layers=300)["weights"]).more) == 300 - ROWS


def test_what_is_not_listed_is_a_bar_of_its_own() -> None:
    weights = reports.report()["weights"]
    weights["rest"] = {"weights": 12, "params": [100, 40]}
    last = module_bars(weights).bars[-1]
    assert last.name == "12 small weights" and (last.before, last.after, last.share) == (100, 40, 0.4)


def test_a_new_weight_has_no_share() -> None:
    weights = reports.report()["weights"]
    weights["rows"].append({"name": "pair.weight_out", "shape": [None, [8, 4]], "params": [0, 32]})
    assert module_bars(weights).bars[-1].share is None


def test_small_parts_that_did_not_change_are_folded() -> None:
    weights = reports.report()["weights"]
    weights["rows"].insert(1, {"name": "layers.0.norm.weight", "shape": [[1], [1]], "params": [1, 1]})
    found = module_bars(weights)
    assert [b.name for b in found.more] == ["0.norm"] and found.quiet
    weights["rows"] = weights["rows"][1:2]
    alone = module_bars(weights)
    assert [b.name for b in alone.bars] == ["layers.0.norm"] and alone.more == ()
