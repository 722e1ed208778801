"""Names of dynamic dimensions: a plain name, or a sum of plain names, whose size follows from theirs.

An attention mask over what a cache holds and what is new has `past_sequence_length + sequence_length` positions. The
exporter has no such dimension: it is left anonymous there, and the name says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.export import Dim

__all__ = ["dim_named", "known_size", "summands"]


def summands(name: str) -> tuple[str, ...]:
    """The names that a sum adds up; none for a plain name."""
    parts = tuple(part.strip() for part in name.split("+"))
    return parts if len(parts) > 1 and all(part.isidentifier() for part in parts) else ()


def known_size(name: str, sizes: Mapping[str, int]) -> int | None:
    """The size of a dimension: its own, or that of the sum; None where a name has none."""
    parts = summands(name)
    if parts and all(part in sizes for part in parts):
        return sum(sizes[part] for part in parts)
    return sizes.get(name)


def dim_named(name: str) -> object:
    """What `torch.export` takes for a dynamic dimension of this name."""
    return Dim.DYNAMIC if summands(name) else Dim(name)
