"""All rules: importing this module fills the registry."""

from fxslim.graph.axes import (
    rules_conv,
    rules_index,
    rules_linear,
    rules_norm,
    rules_pointwise,
    rules_reduce,
    rules_view,
)
from fxslim.graph.axes.registry import REGISTRY

__all__ = [
    "REGISTRY",
    "rules_conv",
    "rules_index",
    "rules_linear",
    "rules_norm",
    "rules_pointwise",
    "rules_reduce",
    "rules_view",
]
