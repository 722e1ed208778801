"""What `config.json` has to say so that a loader which reads the shapes of caches from it reads those of the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fxslim.passes.plan import Plan

__all__ = ["changes_of", "neurons", "readable_configs"]

_NEURONS = ("intermediate_size", "ffn_dim", "n_inner")


def readable_configs(config: Any, caches: Sequence[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Changes to a configuration, by the names of its file, in the order in which to try them: none; the result's own
    heads and widths; and a `hidden_size` that is their product, which it need not be: it is what optimum divides by the
    heads to learn the width.

    `caches` has the heads and the width of every cache. Where they differ, no configuration can say it, and only none
    is left.
    """
    yield {}
    if len(set(caches)) != 1:
        return
    heads, width = caches[0]
    queries, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    many = queries * heads // (groups or queries)
    own = {"num_attention_heads": many}
    own |= {name: value for name, value in (("num_key_value_heads", heads), ("head_dim", width)) if _has(config, name)}
    tried: list[dict[str, Any]] = [{}]
    for changes in (
        own, {**own, "hidden_size": many * width},
        {**own, "num_attention_heads": heads, "hidden_size": heads * width},
    ):  # fmt: skip
        changed = {n: v for n, v in changes.items() if getattr(config, n, None) != v}
        if changed not in tried:
            tried.append(changed)
            yield {config.attribute_map.get(name, name): value for name, value in changed.items()}


def neurons(config: Any, plan: Plan) -> dict[str, Any]:
    """The change that says how many neurons a layer has, where the plan leaves equally many in all of them."""
    cuts = [cut for cut in plan.cuts if cut.kind == "neurons"]
    sizes, counts = {cut.size for cut in cuts}, {cut.count for cut in cuts}
    layers = getattr(config, "num_hidden_layers", None)
    if len(sizes) != 1 or len(counts) != 1 or len(cuts) != layers:
        return {}
    (size,), (count,) = sizes, counts
    return {name: count for name in _NEURONS if getattr(config, name, None) == size}


def _has(config: Any, name: str) -> bool:
    return getattr(config, name, None) is not None


def changes_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`[before, after]` for every field that differs."""
    return {name: [before.get(name), value] for name, value in after.items() if before.get(name) != value}
