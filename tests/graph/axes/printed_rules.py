"""The printed rule of every registered operator on its canonical sample (see samples.py), alphabetical.

Operator -> the rule, and the symmetry that it leaves to letters for which it names none.
"""

from __future__ import annotations

from tests.graph.axes import printed_a_f, printed_g_m, printed_n_z

EXPECTED: dict[str, tuple[str, str]] = {**printed_a_f.RULES, **printed_g_m.RULES, **printed_n_z.RULES}
