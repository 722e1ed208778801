"""What OpInfo's samples show of the rules' caution, and why it is meant."""

from __future__ import annotations

__all__ = ["CAUTIONS", "REFUSALS"]

_INACTIVE = "a dropout with p = 0 in training drops nothing; with any other p it draws numbers"
_STILL = "a shift by nothing, or by whole turns"
_INTEGERS = "these integers happen not to name what is removed"
_LOOKED_UP = "positions of an index, which is data: with accumulation they are terms of a sum, one idea with the rest"
_NUCLEAR = "of the nuclear norm a zero row takes nothing; the rule does not tell the orders apart"
_EPSILON = "eps makes a zeroed difference not quite zero, by less than any tolerance"

# Operator -> (letters, why slicing that is exact on every sample, with other numbers too, is not claimed).
CAUTIONS: dict[str, tuple[str, str]] = {
    "aten.chunk.default": ("c2", "only the last piece may be shorter; capture writes split_with_sizes"),
    "aten.split.Tensor": ("c0 c1 c2", "only the last piece may be shorter; capture writes split_with_sizes"),
    "aten.scaled_dot_product_attention.default": ("q t", "positions of a sequence: fixed together, one idea"),
    "aten.rot90.default": ("a b", "of a quarter turn one dimension only changes its place; the rule fixes both"),
    "aten.roll.default": ("a b c", _STILL),
    "aten.flip.default": ("a b c", "no dimensions are named, and none are flipped"),
    "aten.dropout.default": ("a b c d e", _INACTIVE),
    "aten.feature_dropout.default": ("a b c d e", _INACTIVE),
    "aten.alpha_dropout.default": ("a b c d e", _INACTIVE),
    "aten.feature_alpha_dropout.default": ("a b c d e", _INACTIVE),
    "aten.isin.Tensor_Tensor": ("ka", _INTEGERS),
    "aten.max_unpool2d.default": ("h w", _INTEGERS),
    "aten.max_unpool3d.default": ("h w z", _INTEGERS),
    "aten.pairwise_distance.default": ("a b", _EPSILON),
    "aten.triplet_margin_loss.default": ("b", _EPSILON),
    "aten.index_add.default": ("i", _LOOKED_UP),
    "aten.index_put.default": ("ia ib ic", _LOOKED_UP),
    "aten.repeat_interleave.self_Tensor": (
        "b",
        "how often each is repeated is data, of which the size of the result is made",
    ),
    "aten.linalg_matrix_norm.str_ord": ("a b c", _NUCLEAR),
    "aten.linalg_norm.ord_str": ("a b", _NUCLEAR),
    "aten.linalg_pinv.atol_rtol_float": (
        "m n",
        "zero rows stay zero only while no threshold moves: rtol times the largest",
    ),
    "aten.cosine_embedding_loss.default": ("b", "a loss: nobody prunes across it"),
}

# Operators whose rules do not fit some call that PyTorch accepts -> which. The analysis then reports them by name.
REFUSALS: dict[str, str] = {
    "aten.unfold.default": "a tensor without dimensions",
    "aten.count_nonzero.default": "a tensor without dimensions",
    "aten.prelu.default": "a slope without dimensions",
    "aten.addmm.default": "a bias without dimensions",
    "aten.topk.default": "a tensor without dimensions",
    "aten.gather.default": "a tensor without dimensions",
    "aten.index_select.default": "a tensor without dimensions",
}
