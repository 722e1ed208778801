"""Sizes of dimensions as numbers: budgets ask for them many thousand times, so that no symbol is handled twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy

from fxslim.graph.axes.terms import Axis, Expr

__all__ = ["Counter"]


class Counter:
    """Counts positions of expressions, dynamic sizes having given values; data-dependent ones count as 1."""

    def __init__(self, symbols: Mapping[sympy.Symbol, int]) -> None:
        self._symbols = dict(symbols)
        self._numbers: dict[Axis, int] = {}

    def number(self, expr: Expr, counts: Mapping[Axis, int] | None = None) -> int:
        """The size of a dimension under given counts of axes."""
        counts = counts or {}
        total = 1
        for factor in expr:
            if isinstance(factor, Axis):
                total *= counts[factor] if factor in counts else self._whole(factor)
            else:
                total *= sum(self.number(part, counts) for part in factor.parts)
        return total

    def _whole(self, axis: Axis) -> int:
        """The size as a number; one that depends on the values of the data counts as 1."""
        if axis not in self._numbers:
            size: Any = axis.size
            size = size if isinstance(size, int) else size.subs(self._symbols)
            self._numbers[axis] = int(size) if isinstance(size, int) or size.is_number else 1
        return self._numbers[axis]
