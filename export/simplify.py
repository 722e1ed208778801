"""Simplification of an ONNX graph: constants are folded, and what says the same in fewer operators is replaced."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import RewritePass, RewriteRule
from onnxscript.rewriter.rules import common as rules

__all__ = ["RULES", "simplify"]

_ITERATIONS = 2

# What `onnxscript.optimizer.optimize` applies, in its order, but for the rule that makes one Split of two Slices: it
# walks the whole graph for every node, minutes where there are thousands, and what was split in the model is a Split
# already. Some are not in every version.
_NAMES = (
    "mul_by_1_rule", "add_0_rule", "sub_0_rule", "div_by_1_rule", "dropout_zero_rule", "dropout_inference_rule",
    "one_reshape_matmul_reshape_rule", "two_reshapes_matmul_reshape_rule", "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule", "collapse_slice_rule", "collapse_slice2_rule",
    "materialize_reshape_shape_rule", "min_min_rule", "max_max_rule", "min_max_rule", "max_min_rule",
    "successive_clip_relu_rule", "successive_relu_clip_rule", "successive_relu_rule", "successive_clip_rule",
    "cast_cast_rule", "no_op_cast_rule", "no_op_expand_rule", "flatten_to_reshape_rule", "reshape_reshape_rule",
    "no_op_transpose_rule", "transpose_transpose_rule", "unsqueeze_unsqueeze_rule", "squeeze_reshape_1d_rule",
    "no_op_dynamic_scatter_nd_rule", "no_op_static_scatter_nd_rule", "normalize_pad_format_conv_rule",
    "normalize_pad_format_conv_integer_rule", "fuse_pad_into_conv_rule", "fuse_pad_into_conv_integer_rule",
    "fuse_batchnorm_into_conv_rule", "fuse_batchnorm_into_conv_transpose_rule", "fuse_batchnorm_into_gemm_rule",
    "remove_optional_bias_from_conv_rule", "remove_optional_bias_from_conv_transpose_rule",
    "remove_optional_bias_from_qlinear_conv_rule", "remove_optional_bias_from_gemm_rule",
)  # fmt: skip

_EITHER_WAY = ("mul_by_1_rule", "add_0_rule")  # the operator does not mind which operand comes first


def _known() -> Iterator[RewriteRule]:
    for name in (name for name in _NAMES if hasattr(rules, name)):
        rule = getattr(rules, name)
        yield from rule.commute() if name in _EITHER_WAY else [rule]


RULES = tuple(_known())


def simplify(model: ir.Model) -> None:
    """Rewrites `model` in place: the same outputs for the same inputs, in fewer operators."""
    passes.InlinePass()(model)
    for _ in range(_ITERATIONS):
        folded = fold_constants_ir(model, onnx_shape_inference=True)
        rewritten = RewritePass(RULES)(model)
        for unused in (passes.RemoveUnusedNodesPass, passes.RemoveUnusedFunctionsPass, passes.RemoveUnusedOpsetsPass):
            unused()(model)
        if not (folded.modified or rewritten.modified):
            break
    _tidy(model)


def _tidy(model: ir.Model) -> None:
    """Weights as initializers, each once, each call once, names for everything."""
    for one in (
        passes.RemoveUnusedNodesPass(), passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(), passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(), passes.OutputFixPass(), passes.NameFixPass(),
    ):  # fmt: skip
        one(model)
